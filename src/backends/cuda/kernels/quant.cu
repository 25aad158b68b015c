/* SPDX-License-Identifier: MIT
 * QUANT and REQUANT of every format: one block a row, a thread takes eight columns at a time. They are
 * weighted, rounded and smoothed as the problem says, then coded under their scale. */
#include "backends/cuda/kernels/common/code.cuh"
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

/* Kept out of the way of rows that need none of it. */
static __device__ __noinline__ float round_slowly(int dtype, float v)
{
    return decode(dtype, encode(dtype, v, CMOE_ROUND_NEAREST_EVEN));
}

/* Eight columns as QUANT or REQUANT codes them. */
DEV void prepare(const cmoe_gpu_quant &q, const row_of &r, int column, float (&v)[EACH])
{
    load_columns(q, (const char *)q.in + r.in * q.in_stride, column, v);
    if (q.weigh) {
        const float weight = row_weight(q.call, r.out);
#pragma unroll
        for (int i = 0; i < EACH; i++)
            v[i] = column + i < q.n_used ? weight * v[i] : 0.0f;
    }
    if (q.round_dtype == CMOE_BF16)
#pragma unroll
        for (int i = 0; i < EACH; i++)
            v[i] = decode(CMOE_BF16, encode(CMOE_BF16, v[i], CMOE_ROUND_NEAREST_EVEN));
    else if (q.round_dtype != CMOE_NONE)
#pragma unroll
        for (int i = 0; i < EACH; i++)
            v[i] = round_slowly(q.round_dtype, v[i]);
    if (q.smooth) {
        const float *by = q.experts[r.expert].smooth[q.smooth - 1];
#pragma unroll
        for (int i = 0; i < EACH; i++)
            v[i] = column + i < q.n_used ? v[i] * by[column + i] : 0.0f;
    }
}

/* Largest magnitude of a row, as bits; all threads. */
DEV uint32_t row_amax(const cmoe_gpu_quant &q, const row_of &r, uint32_t *shared)
{
    uint32_t top = 0;
    for (int column = (int)threadIdx.x * EACH; column < q.n_used; column += (int)blockDim.x * EACH) {
        float v[EACH];
        prepare(q, r, column, v);
        top = max(top, largest(v));
    }
    return block_max(top, shared);
}

extern "C" __global__ void __launch_bounds__(256)
    cmoe_quant_amax(const __grid_constant__ cmoe_gpu_quant q)
{
    __shared__ uint32_t shared[8];
    row_of r;
    depend();
    if (!find_row(q, &r) || !r.counts)
        return;
    const uint32_t top = row_amax(q, r, shared);
    if (threadIdx.x == 0)
        atomicMax(q.amax, top); /* a maximum has one value in any order */
}

extern "C" __global__ void cmoe_quant_tensor_scale(const __grid_constant__ cmoe_gpu_quant q)
{
    depend();
    *(float *)q.scales = scale_f32(q.f.dtype, bits_f32(*q.amax));
}

/* Scale of a span from its largest magnitude: what its values are multiplied (MX) or divided by. The
 * span's first thread writes it. */
DEV float span_scale(const cmoe_gpu_quant &q, float amax, float global, uint8_t *scales, int span, bool writes)
{
    if (q.f.scaling == CMOE_SCALE_GROUP) {
        const float s = scale_f32(q.f.dtype, amax);
        if (writes)
            ((float *)scales)[span] = s;
        return s;
    }
    if (q.f.scaling == CMOE_SCALE_MX) {
        const uint32_t c = scale_e8m0(q.f.dtype, amax, q.f.mx_rounding);
        if (writes)
            scales[span] = (uint8_t)c;
        return bits_f32(c < 254 ? (254 - c) << 23 : (c == 254 ? 0x00400000 : 0x00200000));
    }
    const bool finite = amax < bits_f32(0x7f800000);
    const uint32_t c = finite ? encode(CMOE_E4M3, __fdiv_rn(amax, 6.0f * global), 0) : 0x7f;
    const float divisor = decode(CMOE_E4M3, c) * global;
    if (writes)
        scales[span] = (uint8_t)c;
    return finite && !(divisor < bits_f32(0x7f800000)) ? 0.0f : divisor;
}

/* log2 of the columns of a scale that is a span's own; 0: there are none. */
DEV int shift_of(const cmoe_format &f)
{
    return f.scaling == CMOE_SCALE_MX      ? 5
           : f.scaling == CMOE_SCALE_NV    ? 4
           : f.scaling == CMOE_SCALE_GROUP ? 31 - __clz(f.group)
                                           : 0;
}

/* The scale of a whole row, or NV's global, which its first thread writes if it is the row's own. */
DEV float row_scale(const cmoe_gpu_quant &q, const row_of &r, uint8_t *scales, uint32_t *shared)
{
    const bool nv = q.f.scaling == CMOE_SCALE_NV;
    if (q.fixed)
        return *q.fixed;
    if (q.f.scaling == CMOE_SCALE_TENSOR)
        return *(const float *)q.scales;
    if (shift_of(q.f) > 0 && !nv)
        return 1.0f;
    const float amax = bits_f32(row_amax(q, r, shared));
    const float s = nv ? guard_scale(amax, __fdiv_rn(amax, 2688.0f)) : scale_f32(q.f.dtype, amax);
    if (threadIdx.x == 0)
        *(nv ? &q.globals[r.out] : (float *)scales) = s;
    return s;
}

DEV void store_plainly(const cmoe_gpu_quant &q, const row_of &r, uint8_t *codes)
{
    for (int column = (int)threadIdx.x * EACH; column < q.n; column += (int)blockDim.x * EACH) {
        uint8_t *to = codes + column * 2;
        const bool whole = column + EACH <= q.n && (uintptr_t)to % 16 == 0;
        float v[EACH];
        prepare(q, r, column, v);
        if (whole && q.f.dtype == CMOE_BF16)
            store_eight<CMOE_BF16>(to, v);
        else if (whole && q.f.dtype == CMOE_F16)
            store_eight<CMOE_F16>(to, v);
        else
#pragma unroll
            for (int i = 0; i < EACH; i++)
                if (column + i < q.n)
                    store(q.f.dtype, codes, column + i, v[i]);
    }
}

extern "C" __global__ void __launch_bounds__(256)
    cmoe_quant_rows(const __grid_constant__ cmoe_gpu_quant q)
{
    __shared__ uint32_t shared[8];
    row_of r;
    depend();
    if (!find_row(q, &r))
        return;
    uint8_t *codes = (uint8_t *)q.codes + r.out * q.out_stride;
    uint8_t *scales = (uint8_t *)q.scales + r.out * q.scale_stride;
    if (q.f.scaling == CMOE_SCALE_NONE) {
        store_plainly(q, r, codes);
        return;
    }
    const int shift = shift_of(q.f);
    const float whole = row_scale(q, r, scales, shared);
    for (int first = 0; first < q.n; first += (int)blockDim.x * EACH) {
        const int column = first + (int)threadIdx.x * EACH;
        float v[EACH] = {}, scale = whole;
        if (column < q.n)
            prepare(q, r, column, v);
        if (shift > 0) {
            uint32_t top = largest(v);
            for (int lanes = 1; lanes << 3 < 1 << shift; lanes <<= 1)
                top = max(top, __shfl_xor_sync(0xffffffff, top, lanes));
            const bool writes = column < q.n && (column & ((1 << shift) - 1)) == 0;
            scale = span_scale(q, bits_f32(top), whole, scales, column >> shift, writes);
        }
        if (column < q.n)
            store_codes(q.f, codes, column, q.n, v, scale);
    }
}
