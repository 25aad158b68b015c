/* SPDX-License-Identifier: MIT
 * safetensors headers from any bytes: the tensors of a file that is accepted tile its data. */
#include "io/safetensors.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct cmoe_header header;
    if (size == 0) return 0; /* data may be NULL */
    const cmoe_status status = cmoe__header_parse(data, size, size, "fuzz", &header);
    if (cmoe_safetensors_check(data, size, size) != status) abort();
    if (status != CMOE_OK) return 0;
    size_t end = size;
    for (int64_t i = header.count - 1; i >= 0; i--) {
        const struct cmoe_header_tensor *const t = &header.tensors[i];
        if (t->begin + t->info.bytes != end || t->begin < 8) abort();
        end = t->begin;
        if (cmoe_safetensors_check(data, end, size) != CMOE_OK) abort();
    }
    cmoe__header_free(&header);
    return 0;
}
