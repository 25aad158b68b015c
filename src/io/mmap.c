/* SPDX-License-Identifier: MIT
 * Read-only mappings. A file that is truncated by someone else while mapped raises SIGBUS on access:
 * replace checkpoints by renaming, as every careful writer does. */
#include "fail.h"
#include "file.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

cmoe_status cmoe__file_map(const char *path, struct cmoe_mapping *out)
{
    struct cmoe_file file;
    *out = (struct cmoe_mapping){0};
    CMOE_TRY(cmoe__file_open(path, &file));
    if (file.size > SIZE_MAX) {
        close(file.fd);
        return CMOE_FAIL(CMOE_ERR_OVERFLOW, "%s is larger than the address space", path);
    }
    const size_t size = (size_t)file.size;
    void *const data = size ? mmap(NULL, size, PROT_READ, MAP_PRIVATE, file.fd, 0) : NULL;
    const int code = errno;
    close(file.fd);
    if (data == MAP_FAILED) {
        return CMOE_FAIL(code == ENOMEM ? CMOE_ERR_NO_MEMORY : CMOE_ERR_IO, "cannot map %s: %s",
                         path, strerror(code));
    }
    *out = (struct cmoe_mapping){.data = data, .size = size};
    return CMOE_OK;
}

void cmoe__file_unmap(struct cmoe_mapping *mapping)
{
    if (mapping->data) munmap((void *)(uintptr_t)mapping->data, mapping->size);
    *mapping = (struct cmoe_mapping){0};
}
