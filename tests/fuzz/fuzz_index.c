/* SPDX-License-Identifier: MIT
 * The index of a sharded checkpoint from any text: shard names that are accepted stay in the folder. */
#include "io/checkpoint.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct cmoe_index index;
    if (cmoe__index_parse((const char *)data, size, "fuzz", &index) != CMOE_OK) return 0;
    for (int64_t i = 0; i < index.n_shards; i++) {
        const char *const name = index.shards[i];
        if (name[0] == '\0' || name[0] == '.' || strchr(name, '/')) abort();
        if (i > 0 && strcmp(index.shards[i - 1], name) >= 0) abort();
    }
    cmoe__index_free(&index);
    return 0;
}
