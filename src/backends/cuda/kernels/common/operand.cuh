/* SPDX-License-Identifier: MIT
 * Operands of mma.sync out of codes, in registers: two codes become one register of bf16 or f16
 * pairs, exactly, by moving bits and one operation on the pair. */
#ifndef CMOE_KERNELS_OPERAND_CUH
#define CMOE_KERNELS_OPERAND_CUH

#include "backends/cuda/kernels/common/numeric.cuh"

template <int TYPE> DEV void mma(float *d, const uint32_t *a, const uint32_t *b)
{
    if (TYPE == CMOE_BF16)
        asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    else
        asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

DEV void mma_i8(int *d, const uint32_t *a, const uint32_t *b)
{
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

DEV uint32_t mul_f16x2(uint32_t a, uint32_t b)
{
    uint32_t d;
    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
    return d;
}

DEV uint32_t sub_f16x2(uint32_t a, uint32_t b)
{
    uint32_t d;
    asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
    return d;
}

DEV uint32_t fma_bf16x2(uint32_t a, uint32_t b, uint32_t c)
{
    uint32_t d;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}

/* f16 pair to bf16 pair; exact for values of 8-bit codes. */
DEV uint32_t bf16x2_of_f16x2(uint32_t v)
{
    const float low = __half2float(__ushort_as_half((unsigned short)v));
    const float high = __half2float(__ushort_as_half((unsigned short)(v >> 16)));
    uint32_t d;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(high), "f"(low));
    return d;
}

/* Four 8-bit codes (DTYPE e4m3, or i8 for all integers) to f16 pairs (0, 1), (2, 3). Integers: `flip`
 * makes them unsigned, `zero` is 1024 + what is then subtracted, twice. */
template <int DTYPE> DEV void operands8(uint32_t w, uint32_t flip, uint32_t zero, uint32_t *out)
{
    if (DTYPE == CMOE_I8) {
        w ^= flip;
        out[0] = sub_f16x2(__byte_perm(w, 0x64646464, 0x4140), zero);
        out[1] = sub_f16x2(__byte_perm(w, 0x64646464, 0x4342), zero);
        return;
    }
#if __CUDA_ARCH__ < 890
    const float none = bits_f32(0x7fc00000);
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const uint32_t top = __byte_perm(w, 0, i ? 0x3424 : 0x1404); /* in the high bytes */
        out[i] = mul_f16x2((top & 0x80008000) | ((top >> 1) & 0x3f803f80), 0x5c005c00);
    }
    if (((w & 0x7f7f7f7f) + 0x01010101) & 0x80808080) /* a NaN among them */
        for (int i = 0; i < 4; i++)
            if ((w >> (8 * i) & 0x7f) == 0x7f)
                out[i / 2] |= (uint32_t)__half_as_ushort(__float2half_rn(none)) << (16 * (i & 1));
#else
    asm("{.reg .b16 l, h; mov.b32 {l, h}, %2; cvt.rn.f16x2.e4m3x2 %0, l; cvt.rn.f16x2.e4m3x2 %1, h;}"
        : "=r"(out[0]), "=r"(out[1])
        : "r"(w));
#endif
}

/* Eight 4-bit codes (DTYPE e2m1, or i4 for all integers) to pairs (j, j + 4), j = 0..3, of TYPE.
 * Integers: as above, but bf16 has room for 128 + zero only. */
template <int TYPE, int DTYPE> DEV void operands4(uint32_t w, uint32_t flip, uint32_t zero, uint32_t *out)
{
    if (DTYPE == CMOE_E2M1) {
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const uint32_t top = w << (12 - 4 * j); /* code j in bits 15..12 and j + 4 in 31..28 */
            if (TYPE == CMOE_F16)
                out[j] = mul_f16x2((top & 0x80008000) | ((top >> 3) & 0x0e000e00), 0x74007400);
            else
                out[j] = fma_bf16x2((top & 0x80008000) | ((top >> 6) & 0x01c001c0), 0x7e807e80, 0x80008000);
        }
        return;
    }
    w ^= flip;
#pragma unroll
    for (int j = 0; j < 4; j++) {
        const uint32_t code = (w >> (4 * j)) & 0x000f000f;
        if (TYPE == CMOE_F16)
            out[j] = sub_f16x2(code | 0x64006400, zero);
        else
            out[j] = fma_bf16x2(code | 0x43004300, 0x3f803f80, zero ^ 0x80008000);
    }
}

/* The same as pairs (2j, 2j + 1). */
template <int TYPE, int DTYPE> DEV void pairs4(uint32_t w, uint32_t flip, uint32_t zero, uint32_t *out)
{
    w ^= flip;
    const uint32_t moved = DTYPE == CMOE_E2M1 ? w << 4 : w >> 4;
#pragma unroll
    for (int j = 0; j < 4; j++) {
        if (DTYPE == CMOE_E2M1) { /* codes in bits 15..12 and 31..28 */
            const uint32_t top = __byte_perm(moved, w, 0x4400 + 0x1111 * j);
            if (TYPE == CMOE_F16)
                out[j] = mul_f16x2((top & 0x80008000) | ((top >> 3) & 0x0e000e00), 0x74007400);
            else
                out[j] = fma_bf16x2((top & 0x80008000) | ((top >> 6) & 0x01c001c0), 0x7e807e80, 0x80008000);
        } else {
            const uint32_t code = __byte_perm(w, moved, 0x4400 + 0x1111 * j) & 0x000f000f;
            if (TYPE == CMOE_F16)
                out[j] = sub_f16x2(code | 0x64006400, zero);
            else
                out[j] = fma_bf16x2(code | 0x43004300, 0x3f803f80, zero ^ 0x80008000);
        }
    }
}

/* Eight 4-bit integers as bytes, less `zero` (four times a zero point). */
DEV void bytes4(uint32_t w, uint32_t flip, uint32_t zero, uint32_t *out)
{
    w ^= flip;
    const uint32_t even = (((w & 0x0f0f0f0f) | 0x80808080) - zero) ^ 0x80808080;
    const uint32_t odd = (((w >> 4 & 0x0f0f0f0f) | 0x80808080) - zero) ^ 0x80808080;
    out[0] = __byte_perm(even, odd, 0x5140);
    out[1] = __byte_perm(even, odd, 0x7362);
}

/* The operand `zero` of a zero point. */
template <int TYPE, int BITS> DEV uint32_t zero_operand(uint32_t zero)
{
    if (TYPE == CMOE_I8)
        return zero * 0x01010101;
    return ((BITS == 4 && TYPE == CMOE_BF16 ? 0x4300 : 0x6400) + zero) * 0x10001;
}

#endif
