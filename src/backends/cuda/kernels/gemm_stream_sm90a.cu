/* SPDX-License-Identifier: MIT
 * GEMM1 (with ACT) and GEMM2 for few rows an expert, where time is the weights' way through memory:
 * the weights are the 16 rows of mma.sync and the tokens its 8 columns, so nothing is read for rows
 * that do not exist. Blocks take equal ranges of (tile of an expert's rows, strips of 16 weight
 * rows); up to 8 warps share a strip's columns and are added up in one order. */
#include "backends/cuda/kernels/common/activation.cuh"
#include "backends/cuda/kernels/common/depend.cuh"
#include "backends/cuda/kernels/common/stream.cuh"

enum { THREADS = WARPS * 32 };

/* Bits of a type of the kernels' names. */
template <int D> struct type_of {
    static constexpr int BITS = D == CMOE_BF16 || D == CMOE_F16 ? 16 : (D == CMOE_E4M3 || D == CMOE_I8 ? 8 : 4);
};

/* Operands of a lane's 8 columns of 32: pairs 0 and 1 for the first mma, 2 and 3 for the second. The
 * order of columns is free as long as x and w agree: 4-bit weights pair columns j and j + 4, or in
 * groups of 16 j and j + 2 of either half. */
template <int TYPE, int W>
DEV void weight_operands(const uint8_t *at, int lane, uint32_t flip, bool halves, uint32_t zero0, uint32_t zero1,
                         uint32_t *out)
{
    if (type_of<W>::BITS == 16) {
        const uint4 v = *(const uint4 *)(at + 16 * lane);
        out[0] = v.x;
        out[1] = v.y;
        out[2] = v.z;
        out[3] = v.w;
    }
    if (type_of<W>::BITS == 8) {
        const uint2 v = *(const uint2 *)(at + 8 * lane);
        operands8<W>(v.x, flip, zero0, out);
        operands8<W>(v.y, flip, zero0, out + 2);
        if (TYPE == CMOE_BF16)
#pragma unroll
            for (int i = 0; i < 4; i++)
                out[i] = bf16x2_of_f16x2(out[i]);
    }
    if (type_of<W>::BITS == 4 && !halves)
        operands4<TYPE, W>(*(const uint32_t *)(at + 4 * lane), flip, zero0, out);
    if (type_of<W>::BITS == 4 && halves) {
        const uint32_t v =
            __byte_perm(*(const uint16_t *)(at + 2 * lane), *(const uint16_t *)(at + 8 + 2 * lane), 0x5140);
        uint32_t second[4];
        operands4<TYPE, W>(v, flip, zero0, out);
        operands4<TYPE, W>(v, flip, zero1, second);
        out[2] = second[2];
        out[3] = second[3];
    }
}

/* A lane's codes of x for 32 columns: a row's 8 from column 8t on, or where weights are grouped by 16
 * (halves), the 4 from column 4t on of either half. */
template <int XBITS> struct x_codes {
    static constexpr int N = XBITS / 4;
    uint32_t v[N];

    MEMBER void clear()
    {
#pragma unroll
        for (int i = 0; i < N; i++)
            v[i] = 0;
    }

    MEMBER void load_halves(const uint8_t *at)
    {
        if (N == 4) {
            const uint2 a = *(const uint2 *)at, b = *(const uint2 *)(at + 32);
            v[0] = a.x;
            v[1 % N] = a.y;
            v[2 % N] = b.x;
            v[3 % N] = b.y;
        } else if (N == 2) {
            v[0] = *(const uint32_t *)at;
            v[1 % N] = *(const uint32_t *)(at + 16);
        } else {
            v[0] = *(const uint16_t *)at | (uint32_t) * (const uint16_t *)(at + 8) << 16;
        }
    }

    MEMBER void load_whole(const uint8_t *at)
    {
        if (N == 4) {
            const uint4 a = *(const uint4 *)at;
            v[0] = a.x;
            v[1 % N] = a.y;
            v[2 % N] = a.z;
            v[3 % N] = a.w;
        } else if (N == 2) {
            const uint2 a = *(const uint2 *)at;
            v[0] = a.x;
            v[1 % N] = a.y;
        } else {
            v[0] = *(const uint32_t *)at;
        }
    }

    /* One by one: any alignment, zeros from `limit` on. */
    MEMBER void load_slowly(const uint8_t *row, int k, int limit, bool halves)
    {
        const int t = threadIdx.x % 4;
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const int at = k + (halves ? 4 * t + i + (i < 4 ? 0 : 12) : 8 * t + i);
            uint32_t code = 0;
            if (at < limit)
                code = XBITS == 16  ? ((const uint16_t *)row)[at]
                       : XBITS == 8 ? row[at]
                                    : row[at / 2] >> (4 * (at & 1)) & 15;
            uint32_t &word = v[i * XBITS / 32];
            word = (i * XBITS % 32 ? word : 0) | code << (i * XBITS % 32);
        }
    }

    MEMBER void load(const uint8_t *row, int k, int limit, bool vectors, bool halves)
    {
        const int t = threadIdx.x % 4;
        if (!vectors || k + 32 > limit)
            load_slowly(row, k, limit, halves);
        else if (halves)
            load_halves(row + (int64_t)(k + 4 * t) * XBITS / 8);
        else
            load_whole(row + (int64_t)(k + 8 * t) * XBITS / 8);
    }

    /* The operands that go with weight_operands. */
    template <int TYPE, int X, int W> MEMBER void operands(bool halves, uint32_t *out) const
    {
        constexpr bool four = type_of<W>::BITS == 4;
        constexpr uint32_t FLIP = 0x80808080, ZERO = 0x64806480;
        if (N == 4 && four) {
            const uint32_t a = halves ? v[1 % N] : v[2 % N], b = halves ? v[2 % N] : v[1 % N];
            out[0] = __byte_perm(v[0], a, 0x5410);
            out[1] = __byte_perm(v[0], a, 0x7632);
            out[2] = __byte_perm(b, v[3 % N], 0x5410);
            out[3] = __byte_perm(b, v[3 % N], 0x7632);
        } else if (N == 4) {
#pragma unroll
            for (int i = 0; i < 4; i++)
                out[i] = v[i % N];
        } else if (N == 2) {
            const uint32_t a = !four ? v[0] : (halves ? __byte_perm(v[0], 0, 0x3120) : __byte_perm(v[0], v[1 % N], 0x5140));
            const uint32_t b = !four ? v[1 % N] : (halves ? __byte_perm(v[1 % N], 0, 0x3120) : __byte_perm(v[0], v[1 % N], 0x7362));
            operands8<X>(a, FLIP, ZERO, out);
            operands8<X>(b, FLIP, ZERO, out + 2);
        } else {
            operands4<TYPE, X>(halves ? __byte_perm(v[0], 0, 0x3120) : v[0], 0, 0, out);
        }
    }
};

/* The tile of rows that a warp works on: their rows of the sort (its copy in shared memory), and the
 * lane's rows of x. */
struct tile_rows {
    int *row;
    int count;
    const uint8_t *x[TILES]; /* NULL: past the last row */

    MEMBER void enter(const cmoe_gpu_stream &s, const cursor &at)
    {
        const int first = __ldcg(&s.g.call.offsets[at.expert]) + at.tile * 8 * s.tiles, lane = threadIdx.x % 32;
        count = min(8 * s.tiles, __ldcg(&s.g.call.offsets[at.expert + 1]) - first);
        __syncwarp();
        if (lane < count)
            row[lane] = __ldcg(&s.g.call.rows[first + lane]);
        __syncwarp();
#pragma unroll
        for (int j = 0; j < TILES; j++) {
            const int n = 8 * j + lane / 4;
            x[j] = n < count ? s.g.a + a_row(s.g, row[n]) * s.g.a_stride : NULL;
        }
    }
};

/* What a warp's sums are of. */
struct place {
    int expert, strip;
};

/* Scale of row `at` of x around column k, of the kinds that change along k. */
DEV float x_scale(const cmoe_gpu_gemm &g, int64_t at, int k)
{
    const uint8_t *s = g.a_scale + at * g.a_scale_stride;
    if (g.x.scaling == CMOE_SCALE_GROUP)
        return ((const float *)s)[k >> (31 - __clz(g.x.group))];
    if (g.x.scaling == CMOE_SCALE_MX)
        return decode(CMOE_E8M0, s[k / 32]);
    return decode(CMOE_E4M3, s[k / 16]) * (g.a_global ? g.a_global[at] : *g.a_fixed);
}

/* A lane's sums: acc is scaled, part is what the running group of columns has added up to. next: the
 * codes of x that the next 32 columns need, loaded one step ahead. */
template <int TYPE, int X, int W> struct strip_sum {
    static constexpr int WBITS = type_of<W>::BITS, XBITS = type_of<X>::BITS;
    using ring_of = warp_ring<WBITS>;
    float acc[TILES][4], part[TILES][4];
    x_codes<XBITS> next[TILES];

    MEMBER void clear()
    {
#pragma unroll
        for (int j = 0; j < TILES; j++) {
            next[j].clear();
#pragma unroll
            for (int i = 0; i < 4; i++)
                acc[j][i] = part[j][i] = 0;
        }
    }

    /* Starts to load the codes of columns k .. k + 31. */
    MEMBER void fetch(const cmoe_gpu_stream &s, const tile_rows &rows, int k, bool halves)
    {
#pragma unroll
        for (int j = 0; j < TILES; j++)
            if (rows.x[j])
                next[j].load(rows.x[j], k, s.g.k, s.x_vectors, halves);
    }

    /* acc += part * scales of group `group` of the stage, around column k. */
    MEMBER void promote(const cmoe_gpu_stream &s, const tile_rows &rows, const float *scale, int group, int k)
    {
        const int lane = threadIdx.x % 32, t = lane % 4;
        const float low = s.w_varies ? scale[group * 16 + lane / 4] : 1.0f;
        const float high = s.w_varies ? scale[group * 16 + lane / 4 + 8] : 1.0f;
#pragma unroll
        for (int j = 0; j < TILES; j++) {
            if (8 * j >= rows.count)
                break;
            float x[2] = {1.0f, 1.0f};
            if (s.x_varies) {
                const int n = 8 * j + lane % 8;
                const float mine = n < rows.count ? x_scale(s.g, a_row(s.g, rows.row[n]), k) : 1.0f;
                x[0] = __shfl_sync(0xffffffff, mine, 2 * t);
                x[1] = __shfl_sync(0xffffffff, mine, 2 * t + 1);
            }
#pragma unroll
            for (int i = 0; i < 2; i++) {
                acc[j][i] += part[j][i] * x[i] * low;
                acc[j][2 + i] += part[j][2 + i] * x[i] * high;
                part[j][i] = part[j][2 + i] = 0;
            }
        }
    }

    /* 32 columns from k on, the c-th of the stage; more: there are further ones. */
    MEMBER void multiply(const cmoe_gpu_stream &s, const tile_rows &rows, const ring_of &ring, int slot, int c,
                         int k, bool more, bool halves, int group)
    {
        using shape = stage_of<WBITS>;
        const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
        const bool is_signed = s.g.w.dtype == CMOE_I8 || s.g.w.dtype == CMOE_I4;
        const uint32_t flip = is_signed ? (WBITS == 4 ? 0x88888888 : 0x80808080) : 0;
        uint32_t b[TILES][4];
#pragma unroll
        for (int j = 0; j < TILES; j++)
            next[j].template operands<TYPE, X, W>(halves, b[j]);
        if (more)
            fetch(s, rows, k + 32, halves);
        uint32_t zero[4];
#pragma unroll
        for (int i = 0; i < 4; i++)
            zero[i] = zero_operand<TYPE, WBITS>(
                WBITS < 16 && s.g.w.zero ? ring.zeros(slot)[(group + (halves ? i / 2 : 0)) * 16 + g + 8 * (i & 1)]
                                         : (WBITS == 4 ? 8 : 128));
        uint32_t low[4], high[4];
        const uint8_t *codes = ring.codes(slot) + g * shape::STRIDE + c * 4 * WBITS;
        weight_operands<TYPE, W>(codes, t, flip, halves, zero[0], zero[2], low);
        weight_operands<TYPE, W>(codes + 8 * shape::STRIDE, t, flip, halves, zero[1], zero[3], high);
        const uint32_t a0[4] = {low[0], high[0], low[1], high[1]}, a1[4] = {low[2], high[2], low[3], high[3]};
#pragma unroll
        for (int j = 0; j < TILES; j++) {
            if (8 * j >= rows.count)
                break;
            mma<TYPE>(part[j], a0, b[j]);
            if (!halves)
                mma<TYPE>(part[j], a1, b[j] + 2);
        }
        if (!halves)
            return;
        promote(s, rows, ring.scales(slot), group, k);
#pragma unroll
        for (int j = 0; j < TILES; j++) {
            if (8 * j >= rows.count)
                break;
            mma<TYPE>(part[j], a1, b[j] + 2);
        }
        promote(s, rows, ring.scales(slot), group + 1, k + 16);
    }

    /* One stage: columns from k0 on, of those before `past`. */
    MEMBER void add(const cmoe_gpu_stream &s, const tile_rows &rows, const ring_of &ring, int slot, int k0, int past)
    {
        constexpr int STEPS = stage_of<WBITS>::CODES / 32;
        const bool grouped = WBITS < 16 && (s.w_varies || s.x_varies), halves = WBITS == 4 && s.g.group == 16;
        const int per_group = s.g.group == 0 ? STEPS : max(1, s.g.group / 32); /* in steps of 32 columns */
#pragma unroll 1
        for (int c = 0; c < STEPS && k0 + 32 * c < past; c++) {
            const int k = k0 + 32 * c, group = halves ? 2 * c : c / per_group;
            multiply(s, rows, ring, slot, c, k, k + 32 < past, halves, group);
            const bool ends = c == STEPS - 1 || k + 32 >= past || (c + 1) % per_group == 0;
            if (grouped && !halves && ends)
                promote(s, rows, ring.scales(slot), group, k);
        }
    }

    /* What was not scaled on the way. */
    MEMBER void settle()
    {
#pragma unroll
        for (int j = 0; j < TILES; j++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                acc[j][i] += part[j][i];
    }

    /* Adds up the warps of a strip in the order of their columns; true for the one that has the sum. */
    MEMBER bool reduce(const cmoe_gpu_stream &s, float *shared, int count)
    {
        const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, part = warp % s.k_parts;
        float *mine = shared + warp * s.tiles * 128 + lane;
        if (s.k_parts == 1)
            return true;
        if (part > 0)
#pragma unroll
            for (int j = 0; j < TILES; j++) {
                if (8 * j >= count)
                    break;
#pragma unroll
                for (int i = 0; i < 4; i++)
                    mine[(4 * j + i) * 32] = acc[j][i];
            }
        __syncthreads();
        if (part > 0)
            return false;
        for (int w = 1; w < s.k_parts; w++)
#pragma unroll
            for (int j = 0; j < TILES; j++) {
                if (8 * j >= count)
                    break;
#pragma unroll
                for (int i = 0; i < 4; i++)
                    acc[j][i] += mine[(w * s.tiles * 4 + 4 * j + i) * 32];
            }
        return true;
    }
};

/* Sum of output n (of a half, as scales and biases count) to its value. */
DEV float finish(const cmoe_gpu_stream &s, const cmoe_gpu_half &h, int n, int row, float v)
{
    if (!s.x_varies)
        v *= a_scale(s.g, a_row(s.g, row), 0);
    if (!s.w_varies)
        v *= b_scale(s.g, h, n, 0);
    if (s.g.weigh)
        v *= row_weight(s.g.call, row);
    return s.g.bias ? v + h.bias[(int64_t)n * h.step + h.first] : v;
}

/* Outputs of one lane's column n of a tile: weight rows `lane / 4` and `lane / 4 + 8` of the strip. */
DEV void write(const cmoe_gpu_stream &s, const place &p, int row, float low, float high)
{
    const cmoe_gpu_half *half = s.g.experts[p.expert].half + s.g.half;
    const int r = threadIdx.x % 32 / 4, n = s.gated ? p.strip * 8 + r : p.strip * 16 + r;
    if (n >= s.outputs)
        return;
    const float first = finish(s, half[0], n, row, low);
    const bool both = s.gated || n + 8 < s.outputs;
    const float second = !both ? 0.0f : s.gated ? finish(s, half[1], n, row, high) : finish(s, half[0], n + 8, row, high);
    if (!s.h) {
        float *out = s.g.out + (int64_t)row * s.g.out_stride;
        if (n < s.g.n)
            out[n] = first;
        if (n + 8 < s.g.n && both)
            out[n + 8] = second;
        return;
    }
    char *h = (char *)s.h + (int64_t)row * s.i * (s.h_dtype == CMOE_F32 ? 4 : 2);
    const float weight = s.p.weight_on == CMOE_WEIGHT_ON_ACT ? row_weight(s.g.call, row) : 1.0f;
    store(s.h_dtype, h, n, n < s.i_used ? activation(s.p, first, s.gated ? second : 0.0f) * weight : 0.0f);
    if (!s.gated && both)
        store(s.h_dtype, h, n + 8, n + 8 < s.i_used ? activation(s.p, second, 0.0f) * weight : 0.0f);
}

/* The sums of a unit's tile, if this warp has them, to where they go. */
template <int TYPE, int X, int W>
DEV void write_tile(const cmoe_gpu_stream &s, const place &p, const tile_rows &rows, const strip_sum<TYPE, X, W> &sum)
{
#pragma unroll
    for (int j = 0; j < TILES; j++) {
        if (8 * j >= rows.count)
            break;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const int n = 8 * j + threadIdx.x % 4 * 2 + i;
            if (n < rows.count)
                write(s, p, rows.row[n], sum.acc[j][i], sum.acc[j][2 + i]);
        }
    }
}

template <int TYPE, int X, int W> DEV void stream(const cmoe_gpu_stream &s)
{
    constexpr int BITS = type_of<W>::BITS, CODES = stage_of<BITS>::CODES;
    extern __shared__ uint4 memory[];
    __shared__ int rows_of[WARPS][8 * TILES];
    const int warp = threadIdx.x / 32;
    const warp_ring<BITS> ring = {(uint8_t *)memory + warp * stage_of<BITS>::BYTES};
    float *sums = (float *)((uint8_t *)memory + WARPS * stage_of<BITS>::BYTES);
    int *before = (int *)(sums + 2 * WARPS * s.tiles * 128);
    weight_stream<TYPE, BITS> load;
    if (!s.ahead)
        depend();
    const int units = count_tiles(s, before) * strip_groups(s);
    const int first = (int)((int64_t)units * blockIdx.x / gridDim.x);
    const int past = (int)((int64_t)units * (blockIdx.x + 1) / gridDim.x);
    load.start(s, before, first, past - first);
#pragma unroll 1
    for (int i = 0; i < STAGES - 1; i++)
        load.advance(s, before, ring);
    if (s.ahead)
        depend();
    if (first >= past)
        return;
    cursor at;
    at.seek(s, before, first);
    tile_rows rows = {rows_of[warp]};
    int slot = 0;
    bool fresh = true;
    const bool halves = BITS == 4 && s.g.group == 16;
    const int k_first = load.first_step * CODES, k_past = min(s.g.k, load.last_step * CODES);
#pragma unroll 1
    for (int unit = first; unit < past; unit++) {
        if (fresh || at.tiles > 1)
            rows.enter(s, at);
        strip_sum<TYPE, X, W> sum;
        sum.clear();
        if (k_first < k_past)
            sum.fetch(s, rows, k_first, halves);
#pragma unroll 1
        for (int k = k_first; k < k_past; k += CODES) {
            asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 2) : "memory");
            __syncwarp();
            load.advance(s, before, ring);
            sum.add(s, rows, ring, slot, k, k_past);
            slot = slot == STAGES - 1 ? 0 : slot + 1;
        }
        sum.settle();
        const place p = {at.expert, at.strips * (WARPS / s.k_parts) + warp / s.k_parts};
        if (sum.reduce(s, sums + (unit & 1) * WARPS * s.tiles * 128, rows.count))
            write_tile(s, p, rows, sum);
        fresh = unit + 1 < past && at.advance(before);
    }
}

/* Named by operand type, types of x and of w; i8 and i4 stand for unsigned codes too. */
#define ENTRY(name, type, x, w)                                                                    \
    extern "C" __global__ void __launch_bounds__(THREADS, type_of<x>::BITS == 4 ? 1 : 2)              \
        name(const __grid_constant__ cmoe_gpu_stream s)                                            \
    {                                                                                              \
        stream<type, x, w>(s);                                                                     \
    }

ENTRY(cmoe_stream_bf16_bf16, CMOE_BF16, CMOE_BF16, CMOE_BF16)
ENTRY(cmoe_stream_bf16_e4m3, CMOE_BF16, CMOE_BF16, CMOE_E4M3)
ENTRY(cmoe_stream_bf16_i8, CMOE_BF16, CMOE_BF16, CMOE_I8)
ENTRY(cmoe_stream_bf16_i4, CMOE_BF16, CMOE_BF16, CMOE_I4)
ENTRY(cmoe_stream_bf16_e2m1, CMOE_BF16, CMOE_BF16, CMOE_E2M1)
ENTRY(cmoe_stream_f16_f16, CMOE_F16, CMOE_F16, CMOE_F16)
ENTRY(cmoe_stream_f16_i4, CMOE_F16, CMOE_F16, CMOE_I4)
ENTRY(cmoe_stream_e4m3_e4m3, CMOE_F16, CMOE_E4M3, CMOE_E4M3)
ENTRY(cmoe_stream_i8_i8, CMOE_F16, CMOE_I8, CMOE_I8)
ENTRY(cmoe_stream_i8_i4, CMOE_F16, CMOE_I8, CMOE_I4)
ENTRY(cmoe_stream_e4m3_i4, CMOE_F16, CMOE_E4M3, CMOE_I4)
ENTRY(cmoe_stream_e4m3_e2m1, CMOE_F16, CMOE_E4M3, CMOE_E2M1)
ENTRY(cmoe_stream_e2m1_e2m1, CMOE_F16, CMOE_E2M1, CMOE_E2M1)
