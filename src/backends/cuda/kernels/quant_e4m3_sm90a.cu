/* SPDX-License-Identifier: MIT
 * QUANT and REQUANT to e4m3 with one scale a row or 128 columns, by the conversion instruction. The
 * codes are those of quant.cu: same scales, true division, nearest even. */
#include "backends/cuda/kernels/common/depend.cuh"
#include "backends/cuda/kernels/common/e4m3.cuh"

enum { THREADS = 256, WARPS = THREADS / 32, SPAN = 128, EACH = 4 };

struct row {
    const char *from;
    uint8_t *codes;
    float *scales;
};

DEV bool find_row(const cmoe_gpu_quant &q, row *r)
{
    int64_t at = blockIdx.x;
    if (q.sorted) {
        if (at >= q.call.offsets[q.call.local])
            return false;
        at = q.call.rows[at];
    } else if (at >= token_count(q.call)) {
        return false;
    }
    *r = {(const char *)q.in + at * q.in_stride, (uint8_t *)q.codes + at * q.out_stride,
          (float *)((char *)q.scales + at * q.scale_stride)};
    return true;
}

/* Four columns, zero from n_used on. */
DEV void load_columns(const cmoe_gpu_quant &q, const row &r, int column, float (&v)[EACH])
{
    const char *at = r.from + (int64_t)column * (q.in_dtype == CMOE_F32 ? 4 : 2);
    if (column + EACH <= q.n_used && q.in_dtype == CMOE_F32 && (uintptr_t)at % 16 == 0) {
        const float4 f = *(const float4 *)at;
        v[0] = f.x, v[1] = f.y, v[2] = f.z, v[3] = f.w;
        return;
    }
    if (column + EACH <= q.n_used && q.in_dtype == CMOE_BF16 && (uintptr_t)at % 8 == 0) {
        const uint2 w = *(const uint2 *)at;
        v[0] = bits_f32(w.x << 16), v[1] = bits_f32(w.x & 0xffff0000);
        v[2] = bits_f32(w.y << 16), v[3] = bits_f32(w.y & 0xffff0000);
        return;
    }
#pragma unroll
    for (int i = 0; i < EACH; i++)
        v[i] = column + i < q.n_used ? load(q.in_dtype, r.from, column + i) : 0.0f;
}

DEV uint32_t largest(const float (&v)[EACH])
{
    uint32_t top = 0;
#pragma unroll
    for (int i = 0; i < EACH; i++)
        top = max(top, __float_as_uint(v[i]) & 0x7fffffff);
    return top;
}

DEV void store_codes(const cmoe_gpu_quant &q, const row &r, int column, const float (&v)[EACH], float scale)
{
    const float inverse = __frcp_rn(scale);
    const uint32_t word = e4m3_pair(v[0], v[1], scale, inverse) | e4m3_pair(v[2], v[3], scale, inverse) << 16;
    uint8_t *to = r.codes + column;
    if (column + EACH <= q.n && (uintptr_t)to % 4 == 0) {
        *(uint32_t *)to = word;
        return;
    }
    for (int i = 0; i < EACH && column + i < q.n; i++)
        to[i] = (uint8_t)(word >> (8 * i));
}

/* A warp a span of 128 columns. */
extern "C" __global__ void __launch_bounds__(THREADS)
    cmoe_quant_e4m3_spans(const __grid_constant__ cmoe_gpu_quant q)
{
    const int span = (int)blockIdx.y * WARPS + (int)threadIdx.x / 32, lane = threadIdx.x % 32;
    row r;
    depend();
    if (span * SPAN >= q.n || !find_row(q, &r))
        return;
    float v[EACH];
    load_columns(q, r, span * SPAN + lane * EACH, v);
    const float scale = scale_f32(CMOE_E4M3, bits_f32(__reduce_max_sync(0xffffffff, largest(v))));
    if (lane == 0)
        r.scales[span] = scale;
    store_codes(q, r, span * SPAN + lane * EACH, v, scale);
}

/* A block a row. */
extern "C" __global__ void __launch_bounds__(THREADS)
    cmoe_quant_e4m3_rows(const __grid_constant__ cmoe_gpu_quant q)
{
    __shared__ uint32_t shared[WARPS];
    row r;
    depend();
    if (!find_row(q, &r))
        return;
    float v[EACH];
    uint32_t top = 0;
    for (int column = threadIdx.x * EACH; column < q.n; column += THREADS * EACH) {
        load_columns(q, r, column, v);
        top = max(top, largest(v));
    }
    const float scale = scale_f32(CMOE_E4M3, bits_f32(block_max(top, shared)));
    if (threadIdx.x == 0)
        *r.scales = scale;
    for (int column = threadIdx.x * EACH; column < q.n; column += THREADS * EACH) {
        load_columns(q, r, column, v);
        store_codes(q, r, column, v, scale);
    }
}
