/* SPDX-License-Identifier: MIT
 * QUANT and REQUANT: one block a row. The row is staged in shared memory as f32, weighted, rounded
 * and smoothed as the problem says, then coded under its scales. */
#include "backends/cuda/kernels/common/depend.cuh"

/* Which row this block takes: where it comes from, where it goes, whose smooth vector. */
struct row_of {
    int64_t in, out;
    int expert;
    bool counts; /* for a dynamic tensor scale */
};

/* Expert of sorted position i. */
DEV int expert_at(const cmoe_gpu_call &c, int i)
{
    int low = 0, high = c.local - 1;
    while (low < high) {
        const int middle = (low + high) / 2;
        if (c.offsets[middle + 1] <= i)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

DEV bool find_row(const cmoe_gpu_quant &q, row_of *r)
{
    const cmoe_gpu_call &c = q.call;
    const int b = (int)blockIdx.x;
    if (q.sorted) {
        if (b >= c.offsets[c.local])
            return false;
        *r = {c.rows[b], c.rows[b], q.smooth ? expert_at(c, (int)b) : 0, true};
        return true;
    }
    if (c.batched) {
        const int e = b / c.capacity;
        *r = {b, b, e, true};
        return b % c.capacity < c.counts[e];
    }
    const int64_t t = c.x_slots ? b / c.slots : b;
    if (t >= token_count(c))
        return false;
    bool any = false;
    for (int s = 0; s < c.slots && c.ids && q.amax; s++) {
        const int32_t id = c.ids[t * c.slots + s];
        any = any || (id >= 0 && id < (c.local_ids ? c.local : c.n_ids));
    }
    const int e = c.x_slots ? local_expert(c, c.ids[b]) : 0;
    *r = {t, b, e, any};
    return e >= 0;
}

DEV float prepared(const cmoe_gpu_quant &q, const row_of &r, int i)
{
    if (i >= q.n_used)
        return 0.0f;
    float v = load(q.in_dtype, (const char *)q.in + r.in * q.in_stride, i);
    if (q.weigh)
        v = row_weight(q.call, r.out) * v;
    if (q.round_dtype != CMOE_NONE)
        v = decode(q.round_dtype, encode(q.round_dtype, v, CMOE_ROUND_NEAREST_EVEN));
    if (q.smooth)
        v *= q.experts[r.expert].smooth[q.smooth - 1][i];
    return v;
}

extern "C" __global__ void __launch_bounds__(256)
    cmoe_quant_amax(const __grid_constant__ cmoe_gpu_quant q)
{
    __shared__ uint32_t shared[8];
    row_of r;
    depend();
    if (!find_row(q, &r) || !r.counts)
        return;
    uint32_t top = 0;
    for (int i = threadIdx.x; i < q.n_used; i += blockDim.x)
        top = max(top, __float_as_uint(prepared(q, r, i)) & 0x7fffffff);
    top = block_max(top, shared);
    if (threadIdx.x == 0)
        atomicMax(q.amax, top); /* a maximum has one value in any order */
}

extern "C" __global__ void cmoe_quant_tensor_scale(const __grid_constant__ cmoe_gpu_quant q)
{
    depend();
    *(float *)q.scales = scale_f32(q.f.dtype, bits_f32(*q.amax));
}

/* Scale of span b of a staged row and how to apply it; lane 0 of the span's threads writes it. */
DEV void code_span(const cmoe_gpu_quant &q, const float *v, int begin, int end, float divisor,
                   int exponent, uint8_t *codes, int lane, int lanes)
{
    const bool packed = q.f.dtype == CMOE_E2M1;
    for (int i = begin + (packed ? 2 * lane : lane); i < end; i += packed ? 2 * lanes : lanes) {
        uint32_t pair = 0;
        for (int j = 0; j < (packed ? 2 : 1) && i + j < end; j++) {
            float scaled = q.f.scaling == CMOE_SCALE_MX ? scalbnf(v[i + j], exponent) : __fdiv_rn(v[i + j], divisor);
            if (q.f.scaling == CMOE_SCALE_NV && divisor == 0.0f)
                scaled = 0;
            pair |= encode(q.f.dtype, scaled, q.f.rounding) << (4 * j);
        }
        if (packed)
            codes[i / 2] = (uint8_t)pair;
        else
            codes[i] = (uint8_t)pair;
    }
}

DEV float span_amax(const float *v, int begin, int end, int lane)
{
    uint32_t top = 0;
    for (int i = begin + lane; i < end; i += 32)
        top = max(top, __float_as_uint(v[i]) & 0x7fffffff);
    for (int offset = 16; offset > 0; offset >>= 1)
        top = max(top, __shfl_xor_sync(0xffffffff, top, offset));
    return bits_f32(top);
}

/* Spans of 16, 32, 64 or 128 columns, one warp a span. */
DEV void code_spans(const cmoe_gpu_quant &q, const float *v, int span, float global, uint8_t *codes,
                    uint8_t *scales)
{
    const int lane = threadIdx.x % 32;
    for (int b = threadIdx.x / 32; b * span < q.n; b += blockDim.x / 32) {
        const int begin = b * span, end = min(q.n, begin + span);
        const float amax = span_amax(v, begin, end, lane);
        float divisor = 1;
        int exponent = 0;
        if (q.f.scaling == CMOE_SCALE_GROUP) {
            divisor = scale_f32(q.f.dtype, amax);
            if (lane == 0)
                ((float *)scales)[b] = divisor;
        } else if (q.f.scaling == CMOE_SCALE_MX) {
            const uint32_t c = scale_e8m0(q.f.dtype, amax, q.f.mx_rounding);
            exponent = 127 - (int)c;
            if (lane == 0)
                scales[b] = (uint8_t)c;
        } else {
            const bool finite = amax < bits_f32(0x7f800000);
            const uint32_t c = finite ? encode(CMOE_E4M3, __fdiv_rn(amax, 6.0f * global), 0) : 0x7f;
            divisor = decode(CMOE_E4M3, c) * global;
            if (finite && !(divisor < bits_f32(0x7f800000)))
                divisor = 0;
            if (lane == 0)
                scales[b] = (uint8_t)c;
        }
        code_span(q, v, begin, end, divisor, exponent, codes, lane, 32);
    }
}

extern "C" __global__ void __launch_bounds__(256)
    cmoe_quant_rows(const __grid_constant__ cmoe_gpu_quant q)
{
    extern __shared__ float v[];
    __shared__ uint32_t shared[8];
    row_of r;
    depend();
    if (!find_row(q, &r))
        return;
    for (int i = threadIdx.x; i < q.n; i += blockDim.x)
        v[i] = prepared(q, r, i);
    __syncthreads();
    uint8_t *codes = (uint8_t *)q.codes + r.out * q.out_stride;
    uint8_t *scales = (uint8_t *)q.scales + r.out * q.scale_stride;
    if (q.f.scaling == CMOE_SCALE_NONE) {
        for (int i = threadIdx.x; i < q.n; i += blockDim.x)
            store(q.f.dtype, codes, i, v[i]);
        return;
    }
    if (q.f.scaling == CMOE_SCALE_GROUP || q.f.scaling == CMOE_SCALE_MX) {
        code_spans(q, v, q.f.scaling == CMOE_SCALE_MX ? 32 : q.f.group, 0, codes, scales);
        return;
    }
    if (q.f.scaling == CMOE_SCALE_TENSOR) {
        const float s = q.fixed ? *q.fixed : *(const float *)q.scales;
        code_span(q, v, 0, q.n, s, 0, codes, threadIdx.x, blockDim.x);
        return;
    }
    uint32_t top = 0; /* one scale, or one global, a row */
    for (int i = threadIdx.x; i < q.n; i += blockDim.x)
        top = max(top, __float_as_uint(v[i]) & 0x7fffffff);
    const float amax = bits_f32(block_max(top, shared));
    if (q.f.scaling == CMOE_SCALE_NV) {
        const float global = q.fixed ? *q.fixed : guard_scale(amax, __fdiv_rn(amax, 2688.0f));
        if (!q.fixed && threadIdx.x == 0)
            q.globals[r.out] = global;
        code_spans(q, v, 16, global, codes, scales);
        return;
    }
    const float s = scale_f32(q.f.dtype, amax);
    if (threadIdx.x == 0)
        *(float *)scales = s;
    code_span(q, v, 0, q.n, s, 0, codes, threadIdx.x, blockDim.x);
}
