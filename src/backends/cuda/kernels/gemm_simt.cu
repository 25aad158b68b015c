/* SPDX-License-Identifier: MIT
 * GEMM1 and GEMM2 for every combination of types, in f32: the kernel that is right first. A block
 * computes 32 rows of one expert by 64 outputs; both operands are decoded to f32, scales included. */
#include "backends/cuda/kernels/common/tile.cuh"

enum { BM = 32, BN = 64, BK = 16 };

extern "C" __global__ void __launch_bounds__(256)
    cmoe_gemm_simt(const __grid_constant__ cmoe_gpu_gemm g)
{
    __shared__ float a[BK][BM + 1], b[BK][BN + 1];
    __shared__ int where[3], rows[BM];
    const tile t = find_tile(g.call, (int)blockIdx.y, BM, where);
    if (t.count == 0)
        return;
    if (threadIdx.x < BM)
        rows[threadIdx.x] = (int)threadIdx.x < t.count ? g.call.rows[t.first + threadIdx.x] : -1;
    __syncthreads();
    const int n0 = (int)blockIdx.x * BN, tx = threadIdx.x % 16, ty = threadIdx.x / 16;
    float acc[2][4] = {};
    for (int k0 = 0; k0 < g.k; k0 += BK) {
        for (int i = threadIdx.x; i < BM * BK; i += 256) {
            const int m = i / BK, k = k0 + i % BK;
            float v = 0;
            if (rows[m] >= 0 && k < g.k) {
                const int64_t at = a_row(g, rows[m]);
                v = load(g.x.dtype, g.a + at * g.a_stride, k) * a_scale(g, at, k);
            }
            a[i % BK][m] = v;
        }
        for (int i = threadIdx.x; i < BN * BK; i += 256) {
            int n = n0 + i / BK;
            const int k = k0 + i % BK;
            float v = 0;
            if (n < g.n && k < g.k) {
                const cmoe_gpu_half &h = b_half(g, t.expert, &n);
                v = b_code(g, h, n, k) * b_scale(g, h, n, k);
            }
            b[i % BK][i / BK] = v;
        }
        __syncthreads();
#pragma unroll
        for (int k = 0; k < BK; k++)
#pragma unroll
            for (int i = 0; i < 2; i++)
#pragma unroll
                for (int j = 0; j < 4; j++)
                    acc[i][j] = fmaf(a[k][ty + 16 * i], b[k][tx + 16 * j], acc[i][j]);
        __syncthreads();
    }
    for (int i = 0; i < 2; i++)
        for (int j = 0; j < 4; j++) {
            const int m = ty + 16 * i, n = n0 + tx + 16 * j;
            if (m < t.count && n < g.n)
                store_output(g, t.expert, rows[m], n, acc[i][j]);
        }
}
