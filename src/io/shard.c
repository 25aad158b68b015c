/* SPDX-License-Identifier: MIT
 * Writing a safetensors file without holding it: the header needs all sizes, which are known before
 * any data is made. */
#include "export.h"
#include "fail.h"
#include "file.h"
#include "memory.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

static cmoe_status fail_write(const char *path)
{
    return CMOE_FAIL(CMOE_ERR_IO, "cannot write %s: %s", path, strerror(errno));
}

/* PATH.partial; free with cmoe__io_free. */
static char *partial_path(const char *path)
{
    char *const out = cmoe__io_alloc(strlen(path) + sizeof ".partial");
    if (out) sprintf(out, "%s.partial", path);
    return out;
}

cmoe_status cmoe__shard_begin(const char *dir, const char *name, struct cmoe_shard *out)
{
    *out = (struct cmoe_shard){.path = cmoe__path_join(dir, name), .header = json_object()};
    if (out->path && out->header) return CMOE_OK;
    cmoe__shard_free(out);
    return cmoe__fail_memory(strlen(dir), "a shard's header");
}

static cmoe_status add_entry(struct cmoe_shard *s, const char *name, const char *dtype, int ndim,
                             const int64_t *shape, size_t bytes)
{
    json_t *const dims = json_array();
    for (int d = 0; d < ndim; d++)
        json_array_append_new(dims, json_integer(shape[d]));
    json_t *const entry = json_pack("{s:s, s:o, s:[I, I]}", "dtype", dtype, "shape", dims,
                                    "data_offsets", (json_int_t)s->at, (json_int_t)(s->at + bytes));
    s->at += bytes;
    if (json_object_get(s->header, name)) {
        json_decref(entry);
        return CMOE_FAIL(CMOE_ERR_CORRUPT, "tensor %s would be written twice",
                         cmoe__quote(name).text);
    }
    if (json_object_set_new(s->header, name, entry) != 0)
        return cmoe__fail_memory(bytes, "a shard's header");
    return CMOE_OK;
}

cmoe_status cmoe__shard_tensor(struct cmoe_shard *s, const char *name, const char *dtype, int ndim,
                               const int64_t *shape, const void *data, size_t bytes)
{
    if (!s->file) return add_entry(s, name, dtype, ndim, shape, bytes);
    s->at += bytes;
    if (bytes > 0 && fwrite(data, 1, bytes, s->file) != bytes) return fail_write(s->path);
    return CMOE_OK;
}

cmoe_status cmoe__shard_open(struct cmoe_shard *s)
{
    char *const partial = partial_path(s->path);
    char *const text = json_dumps(s->header, JSON_COMPACT);
    cmoe_status status = CMOE_OK;
    if (!partial || !text) {
        status = cmoe__fail_memory(s->at, "a shard's header");
    } else {
        s->file = fopen(partial, "wbe");
        if (!s->file) status = fail_write(partial);
    }
    if (status == CMOE_OK) {
        const size_t length = strlen(text), total = (length + 7) / 8 * 8;
        uint8_t size[8];
        for (int i = 0; i < 8; i++)
            size[i] = (uint8_t)(total >> (8 * i));
        const bool written = fwrite(size, 1, 8, s->file) == 8 &&
                             fwrite(text, 1, length, s->file) == length &&
                             fwrite("        ", 1, total - length, s->file) == total - length;
        if (!written) status = fail_write(partial);
    }
    s->at = 0;
    free(text);
    cmoe__io_free(partial);
    return status;
}

cmoe_status cmoe__shard_finish(struct cmoe_shard *s)
{
    char *const partial = partial_path(s->path);
    cmoe_status status = CMOE_OK;
    if (!partial) return cmoe__fail_memory(strlen(s->path), "a path");
    if (fflush(s->file) != 0 || fsync(fileno(s->file)) != 0) status = fail_write(s->path);
    if (fclose(s->file) != 0 && status == CMOE_OK) status = fail_write(s->path);
    s->file = NULL;
    if (status == CMOE_OK && rename(partial, s->path) != 0) status = fail_write(s->path);
    if (status != CMOE_OK) (void)unlink(partial);
    cmoe__io_free(partial);
    return status;
}

void cmoe__shard_free(struct cmoe_shard *s)
{
    char *const partial = s->file ? partial_path(s->path) : NULL;
    if (s->file) (void)fclose(s->file);
    if (partial) (void)unlink(partial);
    cmoe__io_free(partial);
    cmoe__io_free(s->path);
    json_decref(s->header);
    *s = (struct cmoe_shard){0};
}
