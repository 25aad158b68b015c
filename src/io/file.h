/* SPDX-License-Identifier: MIT
 * Files as a whole: open safely, load, map, replace atomically. */
#ifndef CMOE_IO_FILE_H
#define CMOE_IO_FILE_H

#include <cmoe/status.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A regular file opened for reading, with its size. Close fd. Never waits for a FIFO. */
struct cmoe_file {
    int fd;
    uint64_t size;
};
cmoe_status cmoe__file_open(const char *path, struct cmoe_file *out);
/* Read exactly n bytes; a file that became shorter meanwhile is CMOE_ERR_IO. */
cmoe_status cmoe__file_read(int fd, const char *path, void *dst, size_t n);

/* A whole file of at most `limit` bytes, with a 0 after it. Free with cmoe__io_free. */
cmoe_status cmoe__file_load(const char *path, size_t limit, char **text, size_t *size);

/* A file mapped read only; data is NULL for an empty file. */
struct cmoe_mapping {
    const uint8_t *data;
    size_t size;
};
cmoe_status cmoe__file_map(const char *path, struct cmoe_mapping *out);
void cmoe__file_unmap(struct cmoe_mapping *mapping);

/* Write pieces one after the other to PATH.partial, fsync, rename to PATH. On failure PATH is as
 * it was and PATH.partial is gone. */
struct cmoe_piece {
    const void *data;
    size_t size;
};
cmoe_status cmoe__file_replace(const char *path, const struct cmoe_piece *pieces, int n);

bool cmoe__path_is_directory(const char *path);
bool cmoe__path_exists(const char *path);
/* "dir/name" in new memory, NULL when there is none. */
char *cmoe__path_join(const char *dir, const char *name);
/* The folder that `path` lies in ("." if it names none), in new memory. */
char *cmoe__path_parent(const char *path);
/* Copy of a string in new memory, NULL when there is none. */
char *cmoe__text_copy(const char *text);

#endif
