/* SPDX-License-Identifier: MIT
 * Products of element types, one list for the families that have a kernel for each. */
#ifndef CMOE_BACKENDS_CUDA_PRODUCTS_H
#define CMOE_BACKENDS_CUDA_PRODUCTS_H

#include "plan/kernel.h"

enum cmoe_cuda_product {
#define PRODUCT(name, x, w) CMOE_CUDA_PRODUCT_##name,
#include "backends/cuda/products.def"
    CMOE_CUDA_PRODUCTS, /* none of them */
};

enum cmoe_cuda_product cmoe__cuda_product(cmoe_format x, cmoe_format w);

/* What GEMM1 or GEMM2 multiplies the weights by. */
static inline cmoe_format cmoe__cuda_input_of(const cmoe_problem *p, int stage)
{
    return stage == CMOE_STAGE_GEMM1 ? p->x : p->mid;
}

static inline int cmoe__cuda_bits_of(cmoe_format f)
{
    return cmoe_dtype_bits((cmoe_dtype)f.dtype);
}

#endif
