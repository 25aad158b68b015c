/* SPDX-License-Identifier: MIT
 * wgmma: D[64, N] += A[64, 32 bytes of k] * B[N, 32 bytes of k]^T, both operands in shared memory, k
 * contiguous, 128-byte swizzle. N is part of the instruction, so there is one per N. */
#ifndef CMOE_KERNELS_WGMMA_CUH
#define CMOE_KERNELS_WGMMA_CUH

#include "backends/cuda/kernels/common/hopper.cuh"

/* The lower half of an operand's descriptor, which counts in units of 16 bytes, and the whole: rows in 8-row
 * groups of 1024 bytes (SBO), swizzle mode 128 bytes. */
DEV uint32_t wgmma_place(uint32_t address)
{
    return address >> 4 | 1u << 16;
}

DEV uint64_t wgmma_operand(uint32_t place)
{
    return (uint64_t)(1u << 30 | 1024 >> 4) << 32 | place;
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
/* Names of n / 8 * 4 accumulators a thread, and their constraints. */
#define D8 "%0,%1,%2,%3"
#define D16 D8 ",%4,%5,%6,%7"
#define D32 D16 ",%8,%9,%10,%11,%12,%13,%14,%15"
#define D48 D32 ",%16,%17,%18,%19,%20,%21,%22,%23"
#define D64 D48 ",%24,%25,%26,%27,%28,%29,%30,%31"
#define D80 D64 ",%32,%33,%34,%35,%36,%37,%38,%39"
#define D96 D80 ",%40,%41,%42,%43,%44,%45,%46,%47"
#define D112 D96 ",%48,%49,%50,%51,%52,%53,%54,%55"
#define D128 D112 ",%56,%57,%58,%59,%60,%61,%62,%63"
#define D144 D128 ",%64,%65,%66,%67,%68,%69,%70,%71"
#define D160 D144 ",%72,%73,%74,%75,%76,%77,%78,%79"
#define D176 D160 ",%80,%81,%82,%83,%84,%85,%86,%87"
#define D192 D176 ",%88,%89,%90,%91,%92,%93,%94,%95"
#define R4(i)  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define R8 R4(0)
#define R16 R8, R4(4)
#define R32 R16, R4(8), R4(12)
#define R48 R32, R4(16), R4(20)
#define R64 R48, R4(24), R4(28)
#define R80 R64, R4(32), R4(36)
#define R96 R80, R4(40), R4(44)
#define R112 R96, R4(48), R4(52)
#define R128 R112, R4(56), R4(60)
#define R144 R128, R4(64), R4(68)
#define R160 R144, R4(72), R4(76)
#define R176 R160, R4(80), R4(84)
#define R192 R176, R4(88), R4(92)
#define WGMMA(KIND, N, A, B, P, TRANSPOSE)                                                         \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #P ", 0;\n"                                  \
                 "wgmma.mma_async.sync.aligned.m64n" #N KIND " {" D##N "}, %" #A ", %" #B          \
                 ", p, 1, 1" TRANSPOSE ";\n}"                                                      \
                 : R##N : "l"(a), "l"(b), "r"(accumulate))
#define WGMMA_N(KIND, TRANSPOSE)                                                                   \
    if constexpr (N == 8)                                                                          \
        WGMMA(KIND, 8, 4, 5, 6, TRANSPOSE);                                                        \
    else if constexpr (N == 16)                                                                    \
        WGMMA(KIND, 16, 8, 9, 10, TRANSPOSE);                                                      \
    else if constexpr (N == 32)                                                                    \
        WGMMA(KIND, 32, 16, 17, 18, TRANSPOSE);                                                    \
    else if constexpr (N == 48)                                                                    \
        WGMMA(KIND, 48, 24, 25, 26, TRANSPOSE);                                                    \
    else if constexpr (N == 64)                                                                    \
        WGMMA(KIND, 64, 32, 33, 34, TRANSPOSE);                                                    \
    else if constexpr (N == 80)                                                                    \
        WGMMA(KIND, 80, 40, 41, 42, TRANSPOSE);                                                    \
    else if constexpr (N == 96)                                                                    \
        WGMMA(KIND, 96, 48, 49, 50, TRANSPOSE);                                                    \
    else if constexpr (N == 112)                                                                   \
        WGMMA(KIND, 112, 56, 57, 58, TRANSPOSE);                                                   \
    else if constexpr (N == 128)                                                                   \
        WGMMA(KIND, 128, 64, 65, 66, TRANSPOSE);                                                   \
    else if constexpr (N == 144)                                                                   \
        WGMMA(KIND, 144, 72, 73, 74, TRANSPOSE);                                                   \
    else if constexpr (N == 160)                                                                   \
        WGMMA(KIND, 160, 80, 81, 82, TRANSPOSE);                                                   \
    else if constexpr (N == 176)                                                                   \
        WGMMA(KIND, 176, 88, 89, 90, TRANSPOSE);                                                   \
    else                                                                                           \
        WGMMA(KIND, 192, 96, 97, 98, TRANSPOSE)
/* clang-format on */

/* Into the first N / 2 of d; accumulate 0: D = A * B^T */
template <int TYPE, int N, int COUNT> DEV void wgmma(float (&d)[COUNT], uint64_t a, uint64_t b, int accumulate)
{
    static_assert(N / 2 <= COUNT, "accumulators");
    if constexpr (TYPE == CMOE_BF16) {
        WGMMA_N("k16.f32.bf16.bf16", ", 0, 0");
    } else if constexpr (TYPE == CMOE_F16) {
        WGMMA_N("k16.f32.f16.f16", ", 0, 0");
    } else {
        WGMMA_N("k32.f32.e4m3.e4m3", "");
    }
}

#endif
