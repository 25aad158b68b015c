/* SPDX-License-Identifier: MIT
 * QUANT and REQUANT to e4m3 with one scale a row or 128 columns, by the conversion instruction. The
 * codes are those of quant.cu: same scales, true division, nearest even. */
#include "backends/cuda/kernels/common/depend.cuh"
#include "backends/cuda/kernels/common/e4m3.cuh"

enum { THREADS = 128, WARPS = THREADS / 32, SPAN = 128, EACH = 8 };

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

/* EACH columns, zero from n_used on. */
DEV void load_columns(const cmoe_gpu_quant &q, const row &r, int column, float (&v)[EACH])
{
    const char *at = r.from + (int64_t)column * (q.in_dtype == CMOE_F32 ? 4 : 2);
    const bool vectors = column + EACH <= q.n_used && (uintptr_t)at % 16 == 0;
    if (vectors && q.in_dtype == CMOE_F32) {
        const float4 a = ((const float4 *)at)[0], b = ((const float4 *)at)[1];
        v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w;
        v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
        return;
    }
    if (vectors && q.in_dtype == CMOE_BF16) {
        const uint4 w = *(const uint4 *)at;
        const uint32_t words[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
        for (int i = 0; i < EACH; i++)
            v[i] = bits_f32(i % 2 ? words[i / 2] & 0xffff0000 : words[i / 2] << 16);
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
    uint32_t words[2];
#pragma unroll
    for (int i = 0; i < 2; i++)
        words[i] = e4m3_pair(v[i * 4], v[i * 4 + 1], scale, inverse) |
                   e4m3_pair(v[i * 4 + 2], v[i * 4 + 3], scale, inverse) << 16;
    uint8_t *to = r.codes + column;
    if (column + EACH <= q.n && (uintptr_t)to % 8 == 0) {
        *(uint2 *)to = make_uint2(words[0], words[1]);
        return;
    }
#pragma unroll
    for (int i = 0; i < EACH; i++)
        if (column + i < q.n)
            to[i] = (uint8_t)(words[i / 4] >> (i % 4 * 8));
}

/* Half a warp a span of 128 columns. */
extern "C" __global__ void __launch_bounds__(THREADS)
    cmoe_quant_e4m3_spans(const __grid_constant__ cmoe_gpu_quant q)
{
    const int column = ((int)blockIdx.y * THREADS + (int)threadIdx.x) * EACH;
    row r;
    depend();
    if (!find_row(q, &r)) /* the same for the block */
        return;
    float v[EACH];
    load_columns(q, r, column, v);
    uint32_t top = largest(v);
#pragma unroll
    for (int offset = 8; offset > 0; offset /= 2)
        top = max(top, __shfl_xor_sync(0xffffffff, top, offset));
    const float scale = scale_f32(CMOE_E4M3, bits_f32(top));
    if (column >= q.n)
        return;
    if (column % SPAN == 0)
        r.scales[column / SPAN] = scale;
    store_codes(q, r, column, v, scale);
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
