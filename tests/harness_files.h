/* SPDX-License-Identifier: MIT
 * A temporary folder for tests of files, and the fault that a full disk is. */
#ifndef CMOE_TESTS_HARNESS_FILES_H
#define CMOE_TESTS_HARNESS_FILES_H

#include <stdbool.h>
#include <stddef.h>

struct folder {
    char path[256];
    char scratch[512]; /* of folder_path */
};

void folder_make(struct folder *f);
/* "folder/name"; valid until the next call. */
const char *folder_path(struct folder *f, const char *name);
void folder_write(struct folder *f, const char *name, const void *data, size_t size);
void folder_text(struct folder *f, const char *name, const char *text);
/* The file's bytes (caller frees) and size. */
void *file_bytes(const char *path, size_t *size);
bool file_exists(const char *path);
/* Number of entries. */
int folder_count(const struct folder *f);
void folder_remove(struct folder *f);

/* Writing past `bytes` in any file fails from here on, as on a full disk; 0 lifts it. */
void disk_limit(size_t bytes);

#endif
