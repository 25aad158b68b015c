/* SPDX-License-Identifier: MIT
 * wgmma: D[64, N] += A[64, 32 bytes of k] * B[N, 32 bytes of k]^T, both operands in shared memory, k
 * contiguous, 128-byte swizzle. N is part of the instruction, so there is one per N. */
#ifndef CMOE_KERNELS_WGMMA_CUH
#define CMOE_KERNELS_WGMMA_CUH

#include "backends/cuda/kernels/common/hopper.cuh"

/* Descriptor of rows in 8-row groups of 1024 bytes (SBO), swizzle mode 128 bytes. */
DEV uint64_t wgmma_operand(uint32_t address)
{
    return (uint64_t)((address & 0x3ffff) >> 4) | (uint64_t)1 << 16 | (uint64_t)(1024 >> 4) << 32 |
           (uint64_t)1 << 62;
}

/* Registers may now be read by wgmma. */
DEV void wgmma_begin(void)
{
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

DEV void wgmma_commit(void)
{
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

template <int PENDING> DEV void wgmma_wait(void)
{
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

/* The compiler may not move uses of d to before the wait. */
template <int COUNT> DEV void wgmma_done(float (&d)[COUNT])
{
#pragma unroll
    for (int i = 0; i < COUNT; i++)
        asm volatile("" : "+f"(d[i])::"memory");
}

/* clang-format off */
#define D4  "%0,%1,%2,%3"
#define D8  D4  ",%4,%5,%6,%7"
#define D16 D8  ",%8,%9,%10,%11,%12,%13,%14,%15"
#define D32 D16 ",%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define D48 D32 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47"
#define D56 D48 ",%48,%49,%50,%51,%52,%53,%54,%55"
#define D64 D56 ",%56,%57,%58,%59,%60,%61,%62,%63"
#define R4(i)  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define R8(i)  R4(i), R4(i + 4)
#define R16(i) R8(i), R8(i + 8)
#define R32(i) R16(i), R16(i + 16)
#define R48(i) R32(i), R16(i + 32)
#define R56(i) R48(i), R8(i + 48)
#define R64(i) R32(i), R32(i + 32)
/* COUNT accumulators a thread; A, B, P: the operands' places after them. */
#define WGMMA(KIND, N, COUNT, A, B, P, TRANSPOSE)                                                  \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #P ", 0;\n"                                  \
                 "wgmma.mma_async.sync.aligned.m64n" #N KIND " {" D##COUNT "}, %" #A ", %" #B      \
                 ", p, 1, 1" TRANSPOSE ";\n}"                                                      \
                 : R##COUNT(0) : "l"(a), "l"(b), "r"(accumulate))
#define WGMMA_N(KIND, TRANSPOSE)                                                                   \
    if constexpr (N == 8)                                                                          \
        WGMMA(KIND, 8, 4, 4, 5, 6, TRANSPOSE);                                                     \
    else if constexpr (N == 16)                                                                    \
        WGMMA(KIND, 16, 8, 8, 9, 10, TRANSPOSE);                                                   \
    else if constexpr (N == 32)                                                                    \
        WGMMA(KIND, 32, 16, 16, 17, 18, TRANSPOSE);                                                \
    else if constexpr (N == 64)                                                                    \
        WGMMA(KIND, 64, 32, 32, 33, 34, TRANSPOSE);                                                \
    else if constexpr (N == 96)                                                                    \
        WGMMA(KIND, 96, 48, 48, 49, 50, TRANSPOSE);                                                \
    else if constexpr (N == 112)                                                                   \
        WGMMA(KIND, 112, 56, 56, 57, 58, TRANSPOSE);                                               \
    else                                                                                           \
        WGMMA(KIND, 128, 64, 64, 65, 66, TRANSPOSE)
/* clang-format on */

/* accumulate 0: D = A * B^T */
template <int TYPE, int N> DEV void wgmma(float (&d)[N / 2], uint64_t a, uint64_t b, int accumulate)
{
    if constexpr (TYPE == CMOE_BF16) {
        WGMMA_N("k16.f32.bf16.bf16", ", 0, 0");
    } else if constexpr (TYPE == CMOE_F16) {
        WGMMA_N("k16.f32.f16.f16", ", 0, 0");
    } else {
        WGMMA_N("k32.f32.e4m3.e4m3", "");
    }
}

#endif
