/* SPDX-License-Identifier: MIT
 * The index of a sharded checkpoint. */
#ifndef CMOE_IO_CHECKPOINT_H
#define CMOE_IO_CHECKPOINT_H

#include <cmoe/status.h>
#include <jansson.h>
#include <stddef.h>

/* What model.safetensors.index.json says. Strings belong to `root`. */
struct cmoe_index {
    json_t *root;
    const json_t *map;   /* tensor name: shard file name, every one a plain file name */
    const char **shards; /* each once, in order of name */
    int64_t n_shards;
};

cmoe_status cmoe__index_parse(const char *text, size_t size, const char *what,
                              struct cmoe_index *out);
void cmoe__index_free(struct cmoe_index *index);

#endif
