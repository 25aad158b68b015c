/* SPDX-License-Identifier: MIT
 * model.safetensors.index.json: which shard holds which tensor. Shard names come from the file, so
 * a name that could leave the checkpoint's folder is refused. */
#include "checkpoint.h"

#include "fail.h"
#include "json.h"
#include "memory.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { DEPTH = 8 };

/* A plain, visible file name: not a path, and neither "." nor "..". */
static bool is_file_name(const char *name)
{
    return name[0] != '\0' && name[0] != '.' && !strchr(name, '/') && !strchr(name, '\\');
}

static int by_name(const void *left, const void *right)
{
    return strcmp(*(const char *const *)left, *(const char *const *)right);
}

static cmoe_status collect(const char *what, struct cmoe_index *out)
{
    const char *key;
    json_t *value;
    const size_t count = json_object_size(out->map);
    out->shards = cmoe__io_alloc(count * sizeof out->shards[0]);
    if (!out->shards) return cmoe__fail_memory(count * sizeof out->shards[0], what);
    size_t n = 0;
    json_object_foreach((json_t *)(uintptr_t)out->map, key, value)
    {
        const char *const shard = json_string_value(value);
        if (!shard) {
            return CMOE_FAIL(CMOE_ERR_CORRUPT, "%s: weight_map key %s is not a string", what,
                             cmoe__quote(key).text);
        }
        if (!is_file_name(shard)) {
            return CMOE_FAIL(CMOE_ERR_CORRUPT, "%s: tensor %s is in \"%s\", not a plain file name",
                             what, cmoe__quote(key).text, cmoe__quote(shard).text);
        }
        out->shards[n++] = shard;
    }
    qsort(out->shards, n, sizeof out->shards[0], by_name);
    for (size_t i = 0; i < n; i++) {
        const bool repeated = i > 0 && strcmp(out->shards[i], out->shards[i - 1]) == 0;
        if (!repeated) out->shards[out->n_shards++] = out->shards[i];
    }
    return CMOE_OK;
}

cmoe_status cmoe__index_parse(const char *text, size_t size, const char *what,
                              struct cmoe_index *out)
{
    *out = (struct cmoe_index){0};
    CMOE_TRY(cmoe__json_parse(text, size, DEPTH, what, 0, &out->root));
    out->map = json_object_get(out->root, "weight_map");
    cmoe_status status = CMOE_OK;
    if (!json_is_object(out->map)) {
        status = CMOE_FAIL(CMOE_ERR_CORRUPT, "%s: no object \"weight_map\"", what);
    } else {
        status = collect(what, out);
    }
    if (status != CMOE_OK) cmoe__index_free(out);
    return status;
}

void cmoe__index_free(struct cmoe_index *index)
{
    cmoe__io_free(index->shards);
    json_decref(index->root);
    *index = (struct cmoe_index){0};
}
