/* SPDX-License-Identifier: MIT
 * The reference backend: docs/numerics.md as plain scalar C with fp64 arithmetic, every scheme.
 * One file a stage; each function is the `run` of its row. */
#ifndef CMOE_BACKENDS_REF_REF_H
#define CMOE_BACKENDS_REF_REF_H

#include "plan/kernel.h"

cmoe_status cmoe__ref_route(const struct cmoe_step *step, const struct cmoe_exec *x);
cmoe_status cmoe__ref_quant(const struct cmoe_step *step, const struct cmoe_exec *x);
cmoe_status cmoe__ref_sort(const struct cmoe_step *step, const struct cmoe_exec *x);
cmoe_status cmoe__ref_gemm1(const struct cmoe_step *step, const struct cmoe_exec *x);
cmoe_status cmoe__ref_act(const struct cmoe_step *step, const struct cmoe_exec *x);
cmoe_status cmoe__ref_requant(const struct cmoe_step *step, const struct cmoe_exec *x);
cmoe_status cmoe__ref_gemm2(const struct cmoe_step *step, const struct cmoe_exec *x);
cmoe_status cmoe__ref_combine(const struct cmoe_step *step, const struct cmoe_exec *x);

/* Conversions between the index format and the published ones. */
cmoe_status cmoe__ref_sort_export(const struct cmoe_step *step, const struct cmoe_exec *x);
cmoe_status cmoe__ref_sort_import(const struct cmoe_step *step, const struct cmoe_exec *x);

/* One row of logits (f32, already biased by the router) to ids and weights, docs/numerics.md 3.
 * hash_ids: [topk] given ids, or NULL. scratch: 3*E doubles. */
void cmoe__ref_route_row(const cmoe_problem *p, const float *logits, const float *bias,
                         const int32_t *hash_ids, int32_t *ids, float *weights, double *scratch);

/* Activation of one pair, fp64; up is ignored when ungated. */
double cmoe__ref_activation(const cmoe_problem *p, double gate, double up);

/* Bytes of scratch a GEMM thread takes: decoded rows of x and one decoded weight row. */
enum { CMOE_REF_TILE = 8, CMOE_REF_CHUNK = 64 };
size_t cmoe__ref_gemm_scratch(int64_t k);

#endif
