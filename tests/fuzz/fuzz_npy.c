/* SPDX-License-Identifier: MIT
 * cmoe_npy_parse on any bytes: what it accepts lies inside the image, to the last byte. */
#include <cmoe/io.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    cmoe_array array;
    if (cmoe_npy_parse(data, size, &array) != CMOE_OK) return 0;
    const uint8_t *const bytes = array.data;
    if (bytes < data || bytes + array.bytes != data + size) abort();
    size_t n = (size_t)cmoe_dtype_bits(array.dtype) / 8;
    for (int i = 0; i < array.ndim; i++)
        n *= (size_t)array.shape[i];
    if (n != array.bytes) abort();
    return 0;
}
