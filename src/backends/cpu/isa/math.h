/* SPDX-License-Identifier: MIT
 * exp, sigmoid, tanh and erfc for vectors, to about one unit in the last place, NaN to NaN.
 *
 * exp takes its argument in two parts, so that a caller that computed it with a rounding (a square,
 * a product with a constant) can hand over that rounding: exp turns an absolute error of its
 * argument into a relative one of its result, 50 units for an argument of 50. */
#ifndef CMOE_BACKENDS_CPU_ISA_MATH_H
#define CMOE_BACKENDS_CPU_ISA_MATH_H

#include "backends/cpu/isa/vec.h"

/* At most, at least this; NaN stays. */
CMOE_INLINE vf v_at_most(vf v, float most)
{
#if defined CMOE_ISA_AVX512
    return (vf)_mm512_min_ps((__m512)v_set(most), (__m512)v);
#else
    return v_select(v > most, v_set(most), v);
#endif
}

CMOE_INLINE vf v_at_least(vf v, float least)
{
#if defined CMOE_ISA_AVX512
    return (vf)_mm512_max_ps((__m512)v_set(least), (__m512)v);
#else
    return v_select(v < least, v_set(least), v);
#endif
}

/* p * 2^n: n as an integer between -151 and 128, and as what m_exp found it in. */
CMOE_INLINE vf m_scale(vf p, vf n, vi whole)
{
#if defined CMOE_ISA_AVX512
    (void)whole;
    return (vf)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
    (void)n;
    /* Two factors, each a normal number. */
    const vi half = whole >> 1;
    return p * v_float((half + 127) << 23) * v_float((whole - half + 127) << 23);
#endif
}

/* exp(x + low), |low| tiny where |x| < 104 and ignored elsewhere. Overflows to infinity; results
 * below the normal range may be rounded once more. */
CMOE_INLINE vf m_exp(vf x, vf low)
{
    low = v_select(v_abs(x) < 104.0f, low, v_set(0));
    x = v_at_most(v_at_least(x, -104), 89);
    /* n = nearest integer to x/ln 2: adding 1.5*2^23 leaves it in the low bits. */
    const vf shift = v_set(12582912.0f);
    const vf shifted = v_fma(x, v_set(1.44269504f), shift);
    const vf n = shifted - shift;
    /* ln 2 in two parts; the first has 9 bits, so n times it is exact. */
    vf r = v_fma(n, v_set(-0.693359375f), x);
    r = v_fma(n, v_set(2.12194440e-4f), r) + low;
    vf p = v_set(1.98910173e-4f);
    p = v_fma(p, r, v_set(1.39336742e-3f));
    p = v_fma(p, r, v_set(8.33331048e-3f));
    p = v_fma(p, r, v_set(4.16664630e-2f));
    p = v_fma(p, r, v_set(1.66666672e-1f));
    p = v_fma(p, r, v_set(0.5f));
    p = v_fma(p * r, r, r) + 1.0f;
    return m_scale(p, n, v_bits(shifted) - v_bits(shift));
}

/* 1/(1+exp(-(x+low))), without cancellation on either side. */
CMOE_INLINE vf m_sigmoid(vf x, vf low)
{
    const vi positive = x > 0.0f;
    const vf minus = v_float(v_bits(x) | (int32_t)0x80000000); /* -|x| */
    const vf e = m_exp(minus, v_select(positive, -low, low));
#if defined CMOE_ISA_AVX512
    const __mmask16 over = _mm512_cmp_ps_mask((__m512)x, (__m512)v_set(0), _CMP_GT_OQ);
    const vf top = (vf)_mm512_mask_blend_ps(over, (__m512)e, (__m512)v_set(1));
#else
    const vf top = v_select(positive, v_set(1), e);
#endif
    return top / (e + 1.0f);
}

CMOE_INLINE vf m_tanh(vf x)
{
    const vf a = v_abs(x);
    const vf s = x * x;
    vf p = v_set(-6.61022775e-3f);
    p = v_fma(p, s, v_set(2.13093888e-2f));
    p = v_fma(p, s, v_set(-5.39094284e-2f));
    p = v_fma(p, s, v_set(1.33331135e-1f));
    p = v_fma(p, s, v_set(-3.33333313e-1f));
    const vf small = v_fma(p * s, x, x);
    const vf large = 1.0f - 2.0f / (m_exp(a + a, v_set(0)) + 1.0f);
    const vi sign = v_bits(x) & (int32_t)0x80000000;
    return v_select(a < 0.55f, small, v_float(v_bits(large) | sign));
}

/* erfc(|g|/sqrt 2)/2 = exp(-g^2/2) q(t)/2, t = 3/(3+|g|/sqrt 2): the tail of the normal
 * distribution. q is a polynomial fitted to exp(x^2) erfc(x) for x in [0, 10.3]; beyond, exp is 0. */
CMOE_INLINE vf m_normal_tail(vf g)
{
    const vf square = g * g;
    const vf low = v_product_error(g, g, square);
    const vf t = 3.0f / v_fma(v_abs(g), v_set(0.707106781f), v_set(3));
    vf q = v_set(5.53641804e-2f);
    q = v_fma(q, t, v_set(-2.89779514e-1f));
    q = v_fma(q, t, v_set(5.28868318e-1f));
    q = v_fma(q, t, v_set(-4.29867953e-1f));
    q = v_fma(q, t, v_set(3.91748309e-1f));
    q = v_fma(q, t, v_set(6.14190241e-3f));
    q = v_fma(q, t, v_set(1.88456357e-1f));
    q = v_fma(q, t, v_set(1.72535777e-1f));
    q = v_fma(q, t, v_set(1.88475117e-1f));
    q = v_fma(q, t, v_set(1.88058630e-1f));
    q = v_fma(q, t, v_set(-1.07654046e-6f));
    return m_exp(square * -0.5f, low * -0.5f) * q * 0.5f;
}

#endif
