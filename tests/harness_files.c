/* SPDX-License-Identifier: MIT
 * Temporary folders, and a limit on file sizes that stands for a full disk. */
#include "harness.h"

#include "harness_files.h"

#include <dirent.h>
#include <ftw.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

void folder_make(struct folder *f)
{
    /* In memory where that is possible: every written file is flushed to its medium. */
    const char *const memory = access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp";
    const char *const base = getenv("TMPDIR");
    snprintf(f->path, sizeof f->path, "%s/cmoe-test-XXXXXX", base ? base : memory);
    if (!mkdtemp(f->path)) fail_with("cannot make %s", f->path);
}

const char *folder_path(struct folder *f, const char *name)
{
    snprintf(f->scratch, sizeof f->scratch, "%s/%s", f->path, name);
    return f->scratch;
}

void folder_write(struct folder *f, const char *name, const void *data, size_t size)
{
    FILE *const file = fopen(folder_path(f, name), "wb");
    if (!file) fail_with("cannot write %s", f->scratch);
    assert_int_equal(fwrite(data, 1, size, file), size);
    assert_int_equal(fclose(file), 0);
}

void folder_text(struct folder *f, const char *name, const char *text)
{
    folder_write(f, name, text, strlen(text));
}

void *file_bytes(const char *path, size_t *size)
{
    FILE *const file = fopen(path, "rb");
    if (!file) fail_with("cannot read %s", path);
    assert_int_equal(fseek(file, 0, SEEK_END), 0);
    const long end = ftell(file);
    rewind(file);
    *size = (size_t)end;
    void *const data = malloc(*size + 1);
    assert_non_null(data);
    assert_int_equal(fread(data, 1, *size, file), *size);
    fclose(file);
    return data;
}

bool file_exists(const char *path)
{
    return access(path, F_OK) == 0;
}

int folder_count(const struct folder *f)
{
    int n = 0;
    DIR *const dir = opendir(f->path);
    assert_non_null(dir);
    while (readdir(dir))
        n++;
    closedir(dir);
    return n - 2;
}

static int remove_one(const char *path, const struct stat *info, int type, struct FTW *walk)
{
    (void)info;
    (void)type;
    (void)walk;
    return remove(path);
}

void folder_remove(struct folder *f)
{
    nftw(f->path, remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

void disk_limit(size_t bytes)
{
    struct rlimit limit;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &limit), 0);
    limit.rlim_cur = bytes ? bytes : limit.rlim_max;
    signal(SIGXFSZ, bytes ? SIG_IGN : SIG_DFL);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
}
