/* SPDX-License-Identifier: MIT
 * A handful of tokens from logits to y: the kernels of common/gemv_block.cuh with routing before them. Every
 * block of both routes all tokens by itself, so that none waits for another: GEMM2's while GEMM1 runs. */
#include "backends/cuda/kernels/common/gemv_block.cuh"
#include "backends/cuda/kernels/common/route.cuh"

/* A warp a token, in memory where weights come later. The first block says what was chosen. */
template <bool FIRST>
DEV void route_slots(const cmoe_gpu_gemv &s, const cmoe_gpu_route &r, uint8_t *memory, int32_t *ids, float *weights)
{
    const int warp = threadIdx.x / 32, slots = s.g.call.slots, tokens = token_count(s.g.call);
    if (warp < tokens)
        route(r, warp, (float *)memory + warp * s.route_floats, ids + warp * slots, weights + warp * slots);
    __syncthreads();
    for (int i = threadIdx.x; FIRST && blockIdx.x == 0 && i < tokens * slots; i += THREADS) {
        r.ids[i] = ids[i];
        r.weights[i] = weights[i];
    }
}

template <int W, int OP, bool FIRST> DEV void routed_gemv(const cmoe_gpu_gemv &s, const cmoe_gpu_route &r)
{
    extern __shared__ __align__(128) uint8_t memory[];
    __shared__ int32_t ids[CMOE_GEMV_ROWS];
    __shared__ slots_of known;
    if (FIRST) /* nothing says that the logits are there before; GEMM2's are, since GEMM1 waited */
        depend_wait();
    route_slots<FIRST>(s, r, memory, ids, known.weights);
    gemv<W, OP, FIRST, true>(s, memory, ids, known);
}

/* Named by the types of w and of the operands; i4 stands for unsigned codes too. */
#define ENTRY(name, w, operand, first)                                                             \
    extern "C" __global__ void __launch_bounds__(THREADS, 2)                                       \
        name(const __grid_constant__ cmoe_gpu_gemv s, const __grid_constant__ cmoe_gpu_route r)    \
    {                                                                                              \
        routed_gemv<w, operand, first>(s, r);                                                      \
    }

ENTRY(cmoe_route_gemv1_bf16, CMOE_BF16, CMOE_BF16, true)
ENTRY(cmoe_route_gemv1_e4m3_f16, CMOE_E4M3, CMOE_F16, true)
ENTRY(cmoe_route_gemv1_i4_bf16, CMOE_I4, CMOE_BF16, true)
ENTRY(cmoe_route_gemv1_e2m1_bf16, CMOE_E2M1, CMOE_BF16, true)
ENTRY(cmoe_route_gemv2_bf16, CMOE_BF16, CMOE_BF16, false)
ENTRY(cmoe_route_gemv2_e4m3_f16, CMOE_E4M3, CMOE_F16, false)
ENTRY(cmoe_route_gemv2_i4_bf16, CMOE_I4, CMOE_BF16, false)
ENTRY(cmoe_route_gemv2_e2m1_bf16, CMOE_E2M1, CMOE_BF16, false)
