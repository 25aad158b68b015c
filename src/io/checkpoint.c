/* SPDX-License-Identifier: MIT
 * Checkpoints: one safetensors or GGUF file, or shards named by an index. Shards are mapped when opened;
 * pages are read when they are touched, so opening costs the headers only. */
#include "checkpoint.h"

#include "fail.h"
#include "file.h"
#include "gguf.h"
#include "memory.h"
#include "safetensors.h"

#include <stdlib.h>
#include <string.h>

struct shard {
    char *name;
    struct cmoe_mapping mapping;
    struct cmoe_header header;
};

struct cmoe_checkpoint {
    struct shard *shards;
    int64_t n_shards;
    cmoe_tensor_info *tensors; /* by name */
    int64_t count;
};

enum { INDEX_LIMIT = 100000000 };

static cmoe_status open_shard(const char *path, const char *name, struct shard *shard)
{
    shard->name = cmoe__text_copy(name);
    if (!shard->name) return cmoe__fail_memory(strlen(name) + 1, "a file name");
    CMOE_TRY(cmoe__file_map(path, &shard->mapping));
    if (cmoe__gguf_is(shard->mapping.data, shard->mapping.size))
        return cmoe__gguf_parse(shard->mapping.data, shard->mapping.size, path, &shard->header);
    return cmoe__header_parse(shard->mapping.data, shard->mapping.size, shard->mapping.size, path,
                              &shard->header);
}

static int by_name(const void *left, const void *right)
{
    const cmoe_tensor_info *const a = left, *const b = right;
    return strcmp(a->name, b->name);
}

/* One sorted table of the tensors of all shards. */
static cmoe_status collect(cmoe_checkpoint *c)
{
    size_t count = 0;
    for (int64_t s = 0; s < c->n_shards; s++)
        count += (size_t)c->shards[s].header.count;
    c->tensors = cmoe__io_alloc(count * sizeof c->tensors[0]);
    if (!c->tensors) return cmoe__fail_memory(count * sizeof c->tensors[0], "tensor names");
    for (int64_t s = 0; s < c->n_shards; s++) {
        const struct shard *const shard = &c->shards[s];
        for (int64_t i = 0; i < shard->header.count; i++) {
            const struct cmoe_header_tensor *const t = &shard->header.tensors[i];
            cmoe_tensor_info *const info = &c->tensors[c->count++];
            *info = t->info;
            info->data = shard->mapping.data + t->begin;
            info->file = shard->name;
        }
        cmoe__io_free(c->shards[s].header.tensors);
        c->shards[s].header.tensors = NULL;
    }
    qsort(c->tensors, count, sizeof c->tensors[0], by_name);
    for (size_t i = 1; i < count; i++) {
        if (strcmp(c->tensors[i].name, c->tensors[i - 1].name) == 0) {
            return CMOE_FAIL(CMOE_ERR_CORRUPT, "tensor %s is in both %s and %s",
                             cmoe__quote(c->tensors[i].name).text,
                             cmoe__quote(c->tensors[i - 1].file).text,
                             cmoe__quote(c->tensors[i].file).text);
        }
    }
    return CMOE_OK;
}

/* Every tensor of the index must be in the shard that it names. */
static cmoe_status check_index(const cmoe_checkpoint *c, const struct cmoe_index *index,
                               const char *what)
{
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)index->map, key, value)
    {
        const cmoe_tensor_info *const t = cmoe_checkpoint_find(c, key);
        if (!t || strcmp(t->file, json_string_value(value)) != 0) {
            return CMOE_FAIL(CMOE_ERR_CORRUPT, "%s: tensor %s is not in %s", what,
                             cmoe__quote(key).text, cmoe__quote(json_string_value(value)).text);
        }
    }
    return CMOE_OK;
}

static cmoe_status open_named(cmoe_checkpoint *c, const char *dir, const char *const *names,
                              int64_t n)
{
    c->shards = cmoe__io_alloc((size_t)n * sizeof c->shards[0]);
    if (!c->shards) return cmoe__fail_memory((size_t)n * sizeof c->shards[0], "shards");
    for (int64_t i = 0; i < n; i++) {
        char *const path = cmoe__path_join(dir, names[i]);
        if (!path) return cmoe__fail_memory(strlen(names[i]), "a path");
        c->n_shards++;
        const cmoe_status status = open_shard(path, names[i], &c->shards[i]);
        cmoe__io_free(path);
        CMOE_TRY(status);
    }
    return collect(c);
}

static cmoe_status open_index(cmoe_checkpoint *c, const char *path)
{
    char *text = NULL;
    size_t size = 0;
    struct cmoe_index index;
    CMOE_TRY(cmoe__file_load(path, INDEX_LIMIT, &text, &size));
    cmoe_status status = cmoe__index_parse(text, size, path, &index);
    cmoe__io_free(text);
    CMOE_TRY(status);
    char *const dir = cmoe__path_parent(path);
    status = dir ? open_named(c, dir, index.shards, index.n_shards)
                 : cmoe__fail_memory(strlen(path), "a path");
    if (status == CMOE_OK) status = check_index(c, &index, path);
    cmoe__io_free(dir);
    cmoe__index_free(&index);
    return status;
}

static bool ends_with(const char *text, const char *end)
{
    const size_t n = strlen(text), m = strlen(end);
    return n >= m && strcmp(text + n - m, end) == 0;
}

static cmoe_status open_file(cmoe_checkpoint *c, const char *path)
{
    if (ends_with(path, ".json")) return open_index(c, path);
    const char *const slash = strrchr(path, '/');
    const char *const name = slash ? slash + 1 : path;
    char *const dir = cmoe__path_parent(path);
    if (!dir) return cmoe__fail_memory(strlen(path), "a path");
    const cmoe_status status = open_named(c, dir, &name, 1);
    cmoe__io_free(dir);
    return status;
}

static cmoe_status open_directory(cmoe_checkpoint *c, const char *dir)
{
    static const char *const names[] = {"model.safetensors.index.json", "model.safetensors"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        char *const path = cmoe__path_join(dir, names[i]);
        if (!path) return cmoe__fail_memory(strlen(dir), "a path");
        const bool exists = cmoe__path_exists(path);
        const cmoe_status status = exists ? open_file(c, path) : CMOE_OK;
        cmoe__io_free(path);
        if (exists) return status;
    }
    return CMOE_FAIL(CMOE_ERR_IO, "%s holds neither %s nor %s", dir, names[0], names[1]);
}

cmoe_status cmoe_checkpoint_open(const char *path, cmoe_checkpoint **out)
{
    CMOE_TRY(cmoe__check_argument(path, "cmoe_checkpoint_open", "path"));
    CMOE_TRY(cmoe__check_argument(out, "cmoe_checkpoint_open", "out"));
    *out = NULL;
    cmoe_checkpoint *const c = cmoe__io_alloc(sizeof *c);
    if (!c) return cmoe__fail_memory(sizeof *c, "a checkpoint");
    const cmoe_status status =
        cmoe__path_is_directory(path) ? open_directory(c, path) : open_file(c, path);
    if (status != CMOE_OK) {
        cmoe_checkpoint_close(c);
        return status;
    }
    *out = c;
    return CMOE_OK;
}

void cmoe_checkpoint_close(cmoe_checkpoint *c)
{
    if (!c) return;
    for (int64_t i = 0; i < c->n_shards; i++) {
        cmoe__file_unmap(&c->shards[i].mapping);
        cmoe__header_free(&c->shards[i].header);
        cmoe__io_free(c->shards[i].name);
    }
    cmoe__io_free(c->shards);
    cmoe__io_free(c->tensors);
    cmoe__io_free(c);
}

int64_t cmoe_checkpoint_count(const cmoe_checkpoint *c)
{
    return c ? c->count : 0;
}

const cmoe_tensor_info *cmoe_checkpoint_at(const cmoe_checkpoint *c, int64_t i)
{
    return c && i >= 0 && i < c->count ? &c->tensors[i] : NULL;
}

static int against_name(const void *name, const void *tensor)
{
    return strcmp(name, ((const cmoe_tensor_info *)tensor)->name);
}

const cmoe_tensor_info *cmoe_checkpoint_find(const cmoe_checkpoint *c, const char *name)
{
    if (!c || !name) return NULL;
    return bsearch(name, c->tensors, (size_t)c->count, sizeof c->tensors[0], against_name);
}
