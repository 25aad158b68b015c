/* SPDX-License-Identifier: MIT
 * The table of one instruction set. This file is compiled once for each, with that set's flags;
 * everything it includes is static, so the table is the only symbol that leaves the object. */
#include "backends/cpu/ops.h"

#include "backends/cpu/isa/activate.h"
#include "backends/cpu/isa/gemm_p32.h"
#include "backends/cpu/isa/gemm_rows.h"
#include "backends/cpu/isa/rows.h"

#if defined CMOE_ISA_AVX512
const struct cmoe_cpu_ops cmoe__cpu_ops_avx512 = {
#elif defined CMOE_ISA_AVX2
const struct cmoe_cpu_ops cmoe__cpu_ops_avx2 = {
#else
const struct cmoe_cpu_ops cmoe__cpu_ops_generic = {
#endif
    .tile_rows = TILE_ROWS,
    .widen_rows = WIDEN_ROWS,
    .dot_rows = DOT_ROWS,
    .dot_cols = DOT_COLS,
    .pack_rows = pack_rows,
    .gemm_p32 = gemm_p32,
    .widen = widen,
    .gemm_rows = gemm_rows,
    .act = act,
    .act_panel = act_panel,
    .store_panel = store_panel,
    .finish_far = finish_far,
    .load_row = load_row,
    .store_row = store_row,
    .axpy = axpy,
    .scale = scale,
};
