/* SPDX-License-Identifier: MIT
 * The family of the GEMM rows in tiles of 128 outputs by 64 rows. */
#ifndef CMOE_BACKENDS_CUDA_TILES_H
#define CMOE_BACKENDS_CUDA_TILES_H

#include "backends/cuda/cuda.h"
#include "plan/kernel.h"

bool cmoe__cuda_tiles_supports(const struct cmoe_kernel *k, const struct cmoe_query *q,
                               struct cmoe_edge in, struct cmoe_edge *out, struct cmoe_why *why);
double cmoe__cuda_tiles_cost(const struct cmoe_kernel *k, const struct cmoe_query *q);
cmoe_status cmoe__cuda_tiles(const struct cmoe_step *step, const struct cmoe_exec *x);

/* GEMM1, with ACT if the row has it, or GEMM2 as the kernels of such tiles take it. */
cmoe_gpu_tiles cmoe__cuda_tiles_params(const struct cmoe_step *step, const struct cmoe_exec *x);

#endif
