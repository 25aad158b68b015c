/* SPDX-License-Identifier: MIT
 * The quantised table of one instruction set; compiled once for each, like ops.c. */
#include "backends/cpu/ops_quant.h"

#include "backends/cpu/isa/decode_x.h"
#include "backends/cpu/isa/panel_decode.h"
#include "backends/cpu/isa/quantize.h"
#include "backends/cpu/isa/tile_i8.h"
#if defined CMOE_ISA_AVX512VNNI
#    include "backends/cpu/isa/tile_digits.h"
#else
#    include "backends/cpu/isa/tile_u4.h"
#endif

#if defined CMOE_ISA_AVX512VNNI
const struct cmoe_cpu_quant_ops cmoe__cpu_quant_ops_avx512vnni = {
#elif defined CMOE_ISA_AVX512
const struct cmoe_cpu_quant_ops cmoe__cpu_quant_ops_avx512 = {
#elif defined CMOE_ISA_AVX2
const struct cmoe_cpu_quant_ops cmoe__cpu_quant_ops_avx2 = {
#else
const struct cmoe_cpu_quant_ops cmoe__cpu_quant_ops_generic = {
#endif
    .dot_rows = DOT8_ROWS,
    .quad_bytes = QUAD_BYTES,
    .stream_rows = STREAM_ROWS,
    .pack_i8 = pack_i8,
    .dot_i8 = dot_i8,
#if defined CMOE_ISA_AVX512VNNI
    .pack_digits = pack_digits,
    .dot_digits = dot_digits,
#else
    .dot4_rows = DOT4_ROWS,
    .pack_u4 = pack_u4,
    .dot_u4 = dot_u4,
#endif
    .decode_x = decode_x,
    .decode = decode,
    .stream = stream,
    .amax = amax,
    .quantize = quantize,
};
