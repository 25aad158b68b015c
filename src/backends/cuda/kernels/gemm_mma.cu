/* SPDX-License-Identifier: MIT
 * GEMM1 and GEMM2 on tensor cores of any architecture from Ampere on (mma.sync m16n8k16).
 *
 * Codes of 8 and 4 bits are exact in bf16 and f16, so they are multiplied as they are and scales
 * are applied to f32 sums: per row and column at the end, or, where a scale changes along k, to the
 * partial sum of each group. Nothing is rounded that the specification does not round. */
#include "backends/cuda/kernels/common/operand.cuh"
#include "backends/cuda/kernels/common/tile.cuh"

enum { BN = 64, BK = 64, THREADS = 128, PAD = 8, CHUNKS = BK / 16 };

struct tables {
    uint16_t one[256]; /* operand of a code (4 bits: of its low nibble) */
    uint32_t two[256]; /* 4 bits: operands of both nibbles of a byte */
};

/* 32 codes of a row from column k on, by 16-byte loads, as operands in shared memory. */
template <int BITS> DEV void copy_vectors(const uint8_t *row, int k, const tables &t, uint16_t *to)
{
    const uint4 *at = (const uint4 *)(row + (int64_t)k * BITS / 8);
    uint32_t *out = (uint32_t *)to;
#pragma unroll
    for (int i = 0; i < BITS / 4; i++) {
        const uint4 v = at[i];
        const uint32_t word[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const uint32_t w = word[j];
            const int n = 4 * i + j;
            if (BITS == 16)
                out[n] = w;
            if (BITS == 8) {
                out[2 * n] = t.one[w & 255] | (uint32_t)t.one[w >> 8 & 255] << 16;
                out[2 * n + 1] = t.one[w >> 16 & 255] | (uint32_t)t.one[w >> 24] << 16;
            }
            if (BITS == 4) {
                out[4 * n] = t.two[w & 255];
                out[4 * n + 1] = t.two[w >> 8 & 255];
                out[4 * n + 2] = t.two[w >> 16 & 255];
                out[4 * n + 3] = t.two[w >> 24];
            }
        }
    }
}

/* The same one by one: any alignment, zeros from column `limit` on (row NULL: all zeros). */
template <int BITS>
DEV void copy_codes(const uint8_t *row, int k, int limit, const tables &t, uint16_t *to)
{
#pragma unroll 1
    for (int i = 0; i < 32; i++) {
        uint16_t v = 0;
        if (row && k + i < limit) {
            if (BITS == 16)
                v = ((const uint16_t *)row)[k + i];
            else if (BITS == 8)
                v = t.one[row[k + i]];
            else
                v = t.one[row[(k + i) / 2] >> (4 * ((k + i) & 1)) & 15];
        }
        to[i] = v;
    }
}

template <int BITS>
DEV void copy(const uint8_t *row, int k, int limit, bool vectors, const tables &t, uint16_t *to)
{
    if (vectors && row && k + 32 <= limit)
        copy_vectors<BITS>(row, k, t, to);
    else
        copy_codes<BITS>(row, k, limit, t, to);
}

template <int BITS> DEV void fill_tables(tables &t, int type, int dtype, float zero)
{
    for (int c = threadIdx.x; c < 256 && BITS < 16; c += THREADS) {
        const float low = decode(dtype, BITS == 4 ? c & 15 : c) - zero;
        const float high = decode(dtype, c >> 4) - zero;
        t.one[c] = (uint16_t)encode(type, low, CMOE_ROUND_NEAREST_EVEN);
        if (BITS == 4)
            t.two[c] = t.one[c] | encode(type, high, CMOE_ROUND_NEAREST_EVEN) << 16;
    }
}

/* Zero points differ by group: subtract them from 32 operands. */
DEV void subtract_zeros(const cmoe_gpu_gemm &g, int type, const cmoe_gpu_half &h, int n, int k, uint16_t *v)
{
#pragma unroll 1
    for (int i = 0; i < 32 && k + i < g.k; i++)
        v[i] = (uint16_t)encode(type, decode(type, v[i]) - b_zero(g, h, n, k + i), CMOE_ROUND_NEAREST_EVEN);
}

template <int BM, int XBITS, int WBITS> struct shared_tile {
    uint16_t a[BM][BK + PAD], b[BN][BK + PAD];
    float a_scale[BM][CHUNKS], b_scale[BN][CHUNKS];
    tables a_table, b_table;
    int where[3], rows[BM];
};

/* Loads BK columns of the block's rows and outputs into shared memory, decoded. */
template <int BM, int XBITS, int WBITS>
DEV void load_tile(const cmoe_gpu_gemm &g, int type, const tile &t, int n0, int k0, bool a_vectors,
                   bool b_vectors, shared_tile<BM, XBITS, WBITS> &s)
{
    for (int i = threadIdx.x; i < BM * 2; i += THREADS) {
        const int m = i / 2, k = k0 + i % 2 * 32;
        const uint8_t *row = m < t.count ? g.a + a_row(g, s.rows[m]) * g.a_stride : NULL;
        copy<XBITS>(row, k, g.k, a_vectors, s.a_table, &s.a[m][i % 2 * 32]);
    }
    for (int i = threadIdx.x; i < BN * 2; i += THREADS) {
        int n = n0 + i / 2;
        const int k = k0 + i % 2 * 32;
        uint16_t *to = &s.b[i / 2][i % 2 * 32];
        const bool inside = n < g.n;
        const cmoe_gpu_half &h = b_half(g, t.expert, &n);
        copy<WBITS>(inside ? h.data + (int64_t)n * h.row_stride : NULL, k, g.k, b_vectors, s.b_table, to);
        if (inside && h.zero)
            subtract_zeros(g, type, h, n, k, to);
    }
    if (g.group == 0)
        return;
    for (int i = threadIdx.x; i < BM * CHUNKS; i += THREADS) {
        const int m = i / CHUNKS, k = k0 + i % CHUNKS * 16;
        s.a_scale[m][i % CHUNKS] = m < t.count && k < g.k ? a_scale(g, a_row(g, s.rows[m]), k) : 0.0f;
    }
    for (int i = threadIdx.x; i < BN * CHUNKS; i += THREADS) {
        int n = n0 + i / CHUNKS;
        const int k = k0 + i % CHUNKS * 16;
        float v = 0;
        if (n < g.n && k < g.k) {
            const cmoe_gpu_half &h = b_half(g, t.expert, &n);
            v = b_scale(g, h, n, k);
        }
        s.b_scale[i / CHUNKS][i % CHUNKS] = v;
    }
}

/* What the epilogue multiplies and adds: [0] the scales that hold for all of k, [1] a row's routing
 * weight and a column's bias. */
template <int BM, int XBITS, int WBITS>
DEV void load_factors(const cmoe_gpu_gemm &g, const tile &t, int n0, shared_tile<BM, XBITS, WBITS> &s)
{
    for (int m = threadIdx.x; m < BM; m += THREADS) {
        const bool inside = m < t.count;
        s.a_scale[m][0] = inside && !g.group ? a_scale(g, a_row(g, s.rows[m]), 0) : 0.0f;
        s.a_scale[m][1] = inside && g.weigh ? row_weight(g.call, s.rows[m]) : 1.0f;
    }
    for (int i = threadIdx.x; i < BN; i += THREADS) {
        int n = n0 + i;
        const bool inside = n < g.n;
        const cmoe_gpu_half &h = b_half(g, t.expert, &n);
        s.b_scale[i][0] = inside && !g.group ? b_scale(g, h, n, 0) : 0.0f;
        s.b_scale[i][1] = inside && g.bias ? h.bias[(int64_t)n * h.step + h.first] : 0.0f;
    }
}

DEV uint32_t pair(const uint16_t *at)
{
    return *(const uint32_t *)at;
}

/* Warps cover the block's outputs: WM x WN warps of MI x NI mma tiles each. */
template <int TYPE, int BM, int XBITS, int WBITS>
DEV void gemm(const cmoe_gpu_gemm &g, bool a_vectors, bool b_vectors)
{
    constexpr int WM = BM >= 64 ? 2 : 1, WN = 4 / WM, MI = BM / WM / 16, NI = BN / WN / 8;
    extern __shared__ uint4 memory[];
    auto &s = *(shared_tile<BM, XBITS, WBITS> *)memory;
    const tile t = find_tile(g.call, (int)blockIdx.y, BM, s.where);
    if (t.count == 0)
        return;
    for (int m = threadIdx.x; m < BM; m += THREADS)
        s.rows[m] = m < t.count ? g.call.rows[t.first + m] : 0;
    fill_tables<XBITS>(s.a_table, TYPE, g.x.dtype, 0.0f);
    const bool unsigned_codes = g.w.dtype == CMOE_U4 || g.w.dtype == CMOE_U8;
    const bool has_zero = g.experts[t.expert].half[g.half].zero != NULL;
    fill_tables<WBITS>(s.b_table, TYPE, g.w.dtype,
                       unsigned_codes && !has_zero ? (g.w.dtype == CMOE_U4 ? 8.0f : 128.0f) : 0.0f);
    __syncthreads();

    const int n0 = (int)blockIdx.x * BN, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int wm = warp / WN * MI * 16, wn = warp % WN * NI * 8;
    float acc[MI][NI][4] = {}, part[MI][NI][4] = {};
    for (int k0 = 0; k0 < g.k; k0 += BK) {
        load_tile<BM, XBITS, WBITS>(g, TYPE, t, n0, k0, a_vectors, b_vectors, s);
        __syncthreads();
#pragma unroll
        for (int c = 0; c < CHUNKS; c++) {
            const int k = c * 16 + lane % 4 * 2;
            uint32_t b[NI][2];
#pragma unroll
            for (int j = 0; j < NI; j++) {
                const uint16_t *row = s.b[wn + j * 8 + lane / 4];
                b[j][0] = pair(row + k);
                b[j][1] = pair(row + k + 8);
            }
#pragma unroll
            for (int i = 0; i < MI; i++) {
                const uint16_t *row = s.a[wm + i * 16 + lane / 4];
                const uint32_t a[4] = {pair(row + k), pair(row + 8 * (BK + PAD) + k), pair(row + k + 8),
                                       pair(row + 8 * (BK + PAD) + k + 8)};
#pragma unroll
                for (int j = 0; j < NI; j++)
                    mma<TYPE>(part[i][j], a, b[j]);
            }
            if (g.group && ((k0 + (c + 1) * 16) % g.group == 0 || (c == CHUNKS - 1 && k0 + BK >= g.k))) {
#pragma unroll
                for (int i = 0; i < MI; i++)
#pragma unroll
                    for (int j = 0; j < NI; j++)
#pragma unroll
                        for (int r = 0; r < 4; r++) {
                            const int m = wm + i * 16 + lane / 4 + (r / 2) * 8;
                            const int n = wn + j * 8 + lane % 4 * 2 + r % 2;
                            const int first = g.group >= BK ? 0 : c / (g.group / 16) * (g.group / 16);
                            acc[i][j][r] += part[i][j][r] * s.a_scale[m][first] * s.b_scale[n][first];
                            part[i][j][r] = 0;
                        }
            }
        }
        __syncthreads();
    }
    load_factors(g, t, n0, s);
    __syncthreads();
#pragma unroll
    for (int i = 0; i < MI; i++)
#pragma unroll
        for (int j = 0; j < NI; j++)
#pragma unroll
            for (int r = 0; r < 4; r++) {
                const int m = wm + i * 16 + lane / 4 + (r / 2) * 8;
                const int n = wn + j * 8 + lane % 4 * 2 + r % 2;
                const float scaled = part[i][j][r] * s.a_scale[m][0] * s.b_scale[n][0];
                const float v = g.group ? acc[i][j][r] : scaled;
                if (m < t.count && n0 + n < g.n)
                    g.out[(int64_t)s.rows[m] * g.out_stride + n0 + n] = v * s.a_scale[m][1] + s.b_scale[n][1];
            }
}

/* Named by operand type, rows a block, bits of A and of B. vectors: 16-byte loads reach every row. */
#define ENTRY(name, type, bm, x, w)                                                                \
    extern "C" __global__ void __launch_bounds__(THREADS)                                          \
        name(const __grid_constant__ cmoe_gpu_gemm g, int a_vectors, int b_vectors)                \
    {                                                                                              \
        gemm<type, bm, x, w>(g, a_vectors != 0, b_vectors != 0);                                   \
    }

ENTRY(cmoe_gemm_bf16_m16_x16_w16, CMOE_BF16, 16, 16, 16)
ENTRY(cmoe_gemm_bf16_m16_x16_w8, CMOE_BF16, 16, 16, 8)
ENTRY(cmoe_gemm_bf16_m16_x16_w4, CMOE_BF16, 16, 16, 4)
ENTRY(cmoe_gemm_bf16_m16_x8_w8, CMOE_BF16, 16, 8, 8)
ENTRY(cmoe_gemm_bf16_m16_x8_w4, CMOE_BF16, 16, 8, 4)
ENTRY(cmoe_gemm_bf16_m16_x4_w4, CMOE_BF16, 16, 4, 4)
ENTRY(cmoe_gemm_f16_m16_x16_w16, CMOE_F16, 16, 16, 16)
ENTRY(cmoe_gemm_f16_m16_x16_w8, CMOE_F16, 16, 16, 8)
ENTRY(cmoe_gemm_f16_m16_x16_w4, CMOE_F16, 16, 16, 4)
