/* SPDX-License-Identifier: MIT
 * The families of the rows that sort. */
#ifndef CMOE_BACKENDS_CUDA_SORT_H
#define CMOE_BACKENDS_CUDA_SORT_H

#include "backends/cuda/params.h"
#include "plan/kernel.h"

extern const struct cmoe_family cmoe__cuda_sort_ballot, cmoe__cuda_sort_block,
    cmoe__cuda_sort_cluster, cmoe__cuda_sort_wide, cmoe__cuda_quant_sort;

cmoe_gpu_sort cmoe__cuda_sort_params(const struct cmoe_exec *x);

/* Conversions of sort formats. */
cmoe_status cmoe__cuda_sort_export(const struct cmoe_step *step, const struct cmoe_exec *x);
cmoe_status cmoe__cuda_sort_import(const struct cmoe_step *step, const struct cmoe_exec *x);

#endif
