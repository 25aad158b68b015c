/* SPDX-License-Identifier: MIT
 * The wgmma rows of Hopper. */
#ifndef CMOE_BACKENDS_CUDA_WGMMA_H
#define CMOE_BACKENDS_CUDA_WGMMA_H

#include "backends/cuda/cuda.h"
#include "backends/cuda/params_sm90a.h"

enum { CMOE_WGMMA_START_US = 4 };

bool cmoe__cuda_wgmma_supports(const struct cmoe_kernel *k, const struct cmoe_query *q,
                               struct cmoe_edge in, struct cmoe_edge *out, struct cmoe_why *why);
double cmoe__cuda_wgmma_cost_us(const struct cmoe_kernel *k, const struct cmoe_query *q);
/* Of a stage, less what the activation's result takes the place of. */
double cmoe__cuda_wgmma_bytes(const struct cmoe_kernel *k, const struct cmoe_query *q);
/* COMBINE of z in 16 bits, which only the wgmma rows write. */
bool cmoe__cuda_combine_pairs_supports(const struct cmoe_kernel *k, const struct cmoe_query *q,
                                       struct cmoe_edge in, struct cmoe_edge *out,
                                       struct cmoe_why *why);
double cmoe__cuda_combine_pairs_cost_us(const struct cmoe_kernel *k, const struct cmoe_query *q);
cmoe_status cmoe__cuda_wgmma_gemm1(const struct cmoe_step *step, const struct cmoe_exec *x);
cmoe_status cmoe__cuda_wgmma_gemm2(const struct cmoe_step *step, const struct cmoe_exec *x);

/* For other rows: parameters of GEMM1 or GEMM2 with what follows up to stage `last`; the cut, for which it gives the
 * bytes of shared memory; the launch, of a kernel that takes params; whether z is written in 16 bits for
 * combine_pairs; whether GEMM2 may write y: tokens have one slot, so nothing is added up. */
cmoe_gpu_wgmma cmoe__cuda_wgmma_first(const struct cmoe_exec *x, int last);
cmoe_gpu_wgmma cmoe__cuda_wgmma_second(const struct cmoe_exec *x, int last);
size_t cmoe__cuda_wgmma_settle(const struct cmoe_exec *x, cmoe_gpu_wgmma *w, int tile_n,
                               int cluster);
cmoe_status cmoe__cuda_wgmma_launch(const struct cmoe_exec *x, const cmoe_gpu_wgmma *w,
                                    enum cmoe_cuda_function f, size_t shared, void *params);
bool cmoe__cuda_wgmma_short_z(const cmoe_problem *p, const struct cmoe_shape *s);
bool cmoe__cuda_wgmma_straight(const cmoe_problem *p, const struct cmoe_shape *s);
/* Whether sums of e4m3 have one scale a row: of h it needs all of GEMM1's tiles of an expert, which wait for it in
 * a wider type. */
bool cmoe__cuda_wgmma_one_scale(const cmoe_problem *p);

/* GEMM1 .. ACT or REQUANT, and GEMM2 alone or with COMBINE, with rows of x as the M operand. Under one scale a row h
 * waits for its scale in bf16. */
bool cmoe__cuda_rows_supports(const struct cmoe_kernel *k, const struct cmoe_query *q,
                              struct cmoe_edge in, struct cmoe_edge *out, struct cmoe_why *why);
double cmoe__cuda_rows_cost_us(const struct cmoe_kernel *k, const struct cmoe_query *q);
size_t cmoe__cuda_rows_scratch(const struct cmoe_kernel *k, const struct cmoe_query *q);
cmoe_status cmoe__cuda_rows(const struct cmoe_step *step, const struct cmoe_exec *x);

/* GEMM1 .. GEMM2 in one kernel. */
bool cmoe__cuda_pair_supports(const struct cmoe_kernel *k, const struct cmoe_query *q,
                              struct cmoe_edge in, struct cmoe_edge *out, struct cmoe_why *why);
double cmoe__cuda_pair_cost_us(const struct cmoe_kernel *k, const struct cmoe_query *q);
size_t cmoe__cuda_pair_scratch(const struct cmoe_kernel *k, const struct cmoe_query *q);
cmoe_status cmoe__cuda_pair(const struct cmoe_step *step, const struct cmoe_exec *x);

#endif
