/* SPDX-License-Identifier: MIT
 * GGUF from any bytes: tensors of an accepted file lie inside it, and its metadata becomes a
 * configuration or an error. */
#include "io/gguf.h"
#include "io/memory.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct cmoe_header header;
    char *text = NULL;
    cmoe_model_config config;
    if (!cmoe__gguf_is(data, size)) return 0;
    if (cmoe__gguf_parse(data, size, "fuzz", &header) != CMOE_OK) return 0;
    for (int64_t i = 0; i < header.count; i++) {
        const struct cmoe_header_tensor *const t = &header.tensors[i];
        if (t->begin > size || t->info.bytes > size - t->begin || !t->info.name) abort();
    }
    cmoe__header_free(&header);
    if (cmoe__gguf_config(data, size, "fuzz", &text) != CMOE_OK) return 0;
    if (cmoe_config_parse(text, strlen(text), &config) == CMOE_OK &&
        cmoe_problem_check(&config.problem) != CMOE_OK)
        abort();
    cmoe__io_free(text);
    return 0;
}
