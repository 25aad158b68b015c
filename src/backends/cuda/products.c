/* SPDX-License-Identifier: MIT
 * Which product of element types a problem asks for. */
#include "backends/cuda/products.h"

enum cmoe_cuda_product cmoe__cuda_product(cmoe_format x, cmoe_format w)
{
    static const struct {
        uint8_t x, w;
    } types[CMOE_CUDA_PRODUCTS] = {
#define PRODUCT(name, x, w) {CMOE_##x, CMOE_##w},
#include "backends/cuda/products.def"
    };
    const int as = w.dtype == CMOE_U8 ? CMOE_I8 : (w.dtype == CMOE_U4 ? CMOE_I4 : w.dtype);
    int i = 0;
    while (i < CMOE_CUDA_PRODUCTS && (types[i].x != x.dtype || types[i].w != as))
        i++;
    return (enum cmoe_cuda_product)i;
}
