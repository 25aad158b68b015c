/* SPDX-License-Identifier: MIT
 * Opening, loading and atomically replacing files; every short or interrupted call is continued. */
#include "file.h"

#include "fail.h"
#include "memory.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* One call moves at most this much: a transfer may not exceed SSIZE_MAX, and Linux stops at 2 GiB. */
enum { TRANSFER = 1 << 30 };

static cmoe_status fail_errno(const char *action, const char *path)
{
    const int code = errno;
    return CMOE_FAIL(CMOE_ERR_IO, "cannot %s %s: %s", action, path, strerror(code));
}

cmoe_status cmoe__file_open(const char *path, struct cmoe_file *out)
{
    struct stat info;
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return fail_errno("open", path);
    if (fstat(fd, &info) != 0) {
        fail_errno("examine", path);
        close(fd);
        return CMOE_ERR_IO;
    }
    if (!S_ISREG(info.st_mode)) {
        close(fd);
        return CMOE_FAIL(CMOE_ERR_IO, "%s is not a regular file", path);
    }
    *out = (struct cmoe_file){.fd = fd, .size = (uint64_t)info.st_size};
    return CMOE_OK;
}

cmoe_status cmoe__file_read(int fd, const char *path, void *dst, size_t n)
{
    char *at = dst;
    while (n > 0) {
        const ssize_t got = read(fd, at, n < TRANSFER ? n : TRANSFER);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return fail_errno("read", path);
        if (got == 0) return CMOE_FAIL(CMOE_ERR_IO, "%s became shorter while it was read", path);
        at += got;
        n -= (size_t)got;
    }
    return CMOE_OK;
}

cmoe_status cmoe__file_load(const char *path, size_t limit, char **text, size_t *size)
{
    struct cmoe_file file;
    cmoe_status status = CMOE_OK;
    CMOE_TRY(cmoe__file_open(path, &file));
    if (file.size > limit) {
        close(file.fd);
        return CMOE_FAIL(CMOE_ERR_CORRUPT, "%s has %llu bytes, at most %zu are read", path,
                         (unsigned long long)file.size, limit);
    }
    const size_t n = (size_t)file.size;
    char *const data = cmoe__io_alloc(n + 1);
    if (!data) status = cmoe__fail_memory(n + 1, path);
    if (status == CMOE_OK) status = cmoe__file_read(file.fd, path, data, n);
    close(file.fd);
    if (status != CMOE_OK) {
        cmoe__io_free(data);
        return status;
    }
    *text = data;
    *size = n;
    return CMOE_OK;
}

static cmoe_status write_all(int fd, const char *path, const struct cmoe_piece *piece)
{
    const char *at = piece->data;
    size_t n = piece->size;
    while (n > 0) {
        const ssize_t put = write(fd, at, n < TRANSFER ? n : TRANSFER);
        if (put < 0 && errno == EINTR) continue;
        if (put < 0) return fail_errno("write", path);
        at += put;
        n -= (size_t)put;
    }
    return CMOE_OK;
}

/* Make a rename durable; file systems that cannot sync a folder have nothing to be synced. */
static void sync_parent(const char *path)
{
    char *const parent = cmoe__path_parent(path);
    const int fd = parent ? open(parent, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    if (fd >= 0) {
        (void)fsync(fd);
        close(fd);
    }
    cmoe__io_free(parent);
}

static cmoe_status write_partial(const char *partial, const struct cmoe_piece *pieces, int n)
{
    cmoe_status status = CMOE_OK;
    const int fd = open(partial, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0666);
    if (fd < 0) return fail_errno("create", partial);
    for (int i = 0; i < n && status == CMOE_OK; i++)
        status = write_all(fd, partial, &pieces[i]);
    if (status == CMOE_OK && fsync(fd) != 0) status = fail_errno("flush", partial);
    if (close(fd) != 0 && status == CMOE_OK) status = fail_errno("close", partial);
    if (status != CMOE_OK) (void)unlink(partial);
    return status;
}

cmoe_status cmoe__file_replace(const char *path, const struct cmoe_piece *pieces, int n)
{
    static const char suffix[] = ".partial";
    const size_t length = strlen(path);
    char *const partial = cmoe__io_alloc(length + sizeof suffix);
    if (!partial) return cmoe__fail_memory(length + sizeof suffix, "a path");
    memcpy(partial, path, length);
    memcpy(partial + length, suffix, sizeof suffix);

    cmoe_status status = write_partial(partial, pieces, n);
    if (status == CMOE_OK && rename(partial, path) != 0) {
        status = fail_errno("rename the finished file to", path);
        (void)unlink(partial);
    }
    cmoe__io_free(partial);
    if (status == CMOE_OK) sync_parent(path);
    return status;
}

bool cmoe__path_is_directory(const char *path)
{
    struct stat info;
    return stat(path, &info) == 0 && S_ISDIR(info.st_mode);
}

bool cmoe__path_exists(const char *path)
{
    struct stat info;
    return stat(path, &info) == 0;
}

char *cmoe__path_join(const char *dir, const char *name)
{
    const size_t length = strlen(dir), tail = strlen(name);
    const size_t head = length > 0 && dir[length - 1] == '/' ? length - 1 : length;
    char *const out = cmoe__io_alloc(head + tail + 2);
    if (!out) return NULL;
    memcpy(out, dir, head);
    out[head] = '/';
    memcpy(out + head + 1, name, tail + 1);
    return out;
}

char *cmoe__path_parent(const char *path)
{
    const char *const slash = strrchr(path, '/');
    if (!slash) return cmoe__text_copy(".");
    const size_t n = slash == path ? 1 : (size_t)(slash - path);
    char *const out = cmoe__io_alloc(n + 1);
    if (out) memcpy(out, path, n);
    return out;
}

char *cmoe__text_copy(const char *text)
{
    const size_t n = strlen(text);
    char *const out = cmoe__io_alloc(n + 1);
    if (out) memcpy(out, text, n + 1);
    return out;
}
