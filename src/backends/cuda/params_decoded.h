/* SPDX-License-Identifier: MIT
 * Parameters of the kernels that multiply by weights decoded into registers. */
#ifndef CMOE_BACKENDS_CUDA_PARAMS_DECODED_H
#define CMOE_BACKENDS_CUDA_PARAMS_DECODED_H

#include "backends/cuda/params.h"

/* A GEMM in tiles, whose rows of x are arranged first. */
typedef struct cmoe_gpu_decoded {
    cmoe_gpu_tiles t;
    uint8_t *arranged;       /* rows of x as operands, at a multiple of 16 */
    int64_t arranged_stride; /* bytes: whole stages of 128 columns */
    int32_t short_z;         /* z in bf16 */
} cmoe_gpu_decoded;

#endif
