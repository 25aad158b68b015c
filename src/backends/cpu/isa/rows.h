/* SPDX-License-Identifier: MIT
 * Rows of f32, f16 and bf16: conversion, packing for the tiles, scaled sums. */
#ifndef CMOE_BACKENDS_CPU_ISA_ROWS_H
#define CMOE_BACKENDS_CPU_ISA_ROWS_H

#include "backends/cpu/isa/vec.h"
#include "backends/cpu/ops.h"

/* dtype is a constant after inlining. */
CMOE_INLINE void load_row_as(cmoe_dtype dtype, const void *src, int64_t n, float *dst)
{
    const int size = dtype == CMOE_F32 ? 4 : 2;
    const char *s = src;
    int64_t i = 0;
    for (; i + VEC <= n; i += VEC)
        v_store(dst + i, v_load_as(dtype, s + i * size));
    if (i < n) {
        float tail[VEC] = {0}, out[VEC];
        memcpy(tail, s + i * size, (size_t)(n - i) * (size_t)size);
        v_store(out, v_load_as(dtype, tail));
        memcpy(dst + i, out, (size_t)(n - i) * sizeof *out);
    }
}

static void load_row(cmoe_dtype dtype, const void *src, int64_t n, float *dst)
{
    if (dtype == CMOE_BF16)
        load_row_as(CMOE_BF16, src, n, dst);
    else if (dtype == CMOE_F16)
        load_row_as(CMOE_F16, src, n, dst);
    else
        load_row_as(CMOE_F32, src, n, dst);
}

CMOE_INLINE void store_row_as(cmoe_dtype dtype, void *dst, int64_t n, const float *src)
{
    const int size = dtype == CMOE_F32 ? 4 : 2;
    char *d = dst;
    int64_t i = 0;
    for (; i + VEC <= n; i += VEC)
        v_store_as(dtype, d + i * size, v_load(src + i));
    if (i < n) {
        float tail[VEC] = {0}, out[VEC];
        memcpy(tail, src + i, (size_t)(n - i) * sizeof *tail);
        v_store_as(dtype, out, v_load(tail));
        memcpy(d + i * size, out, (size_t)(n - i) * (size_t)size);
    }
}

static void store_row(cmoe_dtype dtype, void *dst, int64_t n, const float *src)
{
    if (dtype == CMOE_BF16)
        store_row_as(CMOE_BF16, dst, n, src);
    else if (dtype == CMOE_F16)
        store_row_as(CMOE_F16, dst, n, src);
    else
        store_row_as(CMOE_F32, dst, n, src);
}

/* One row's chunks, `stride` floats apart. */
CMOE_INLINE void pack_row_as(cmoe_dtype dtype, const char *src, int64_t k, float *a, int64_t stride)
{
    const int64_t size = dtype == CMOE_F32 ? 4 : 2;
    for (; k >= CMOE_CPU_CHUNK; k -= CMOE_CPU_CHUNK, src += CMOE_CPU_CHUNK * size, a += stride)
#pragma GCC unroll 4
        for (int i = 0; i < CMOE_CPU_CHUNK; i += VEC)
            v_store(a + i, v_load_as(dtype, src + i * size));
    if (k == 0) return;
    memset(a, 0, CMOE_CPU_CHUNK * sizeof *a);
    load_row_as(dtype, src, k, a);
}

static void pack_rows(cmoe_dtype dtype, const void *const *rows, int m, int64_t k, float *a)
{
    const int64_t stride = (int64_t)m * CMOE_CPU_CHUNK;
    for (int r = 0; r < m; r++, a += CMOE_CPU_CHUNK) {
        if (dtype == CMOE_BF16)
            pack_row_as(CMOE_BF16, rows[r], k, a, stride);
        else if (dtype == CMOE_F16)
            pack_row_as(CMOE_F16, rows[r], k, a, stride);
        else
            pack_row_as(CMOE_F32, rows[r], k, a, stride);
    }
}

/* Whole lines past the caches, which are not read before they are written; p: a multiple of a vector. */
CMOE_INLINE void store_far(float *p, vf v)
{
#if defined CMOE_ISA_AVX512
    _mm512_stream_ps(p, (__m512)v);
#elif defined CMOE_ISA_AVX2
    _mm256_stream_ps(p, (__m256)v);
#else
    v_store(p, v);
#endif
}

static void finish_far(void)
{
#if defined CMOE_ISA_AVX512 || defined CMOE_ISA_AVX2
    _mm_sfence();
#endif
}

/* `biased` is a constant after inlining. */
CMOE_INLINE void store_panel_as(bool biased, int m, const float *c, int64_t ldc, const float *bias,
                                bool far, float *const *to)
{
    for (int r = 0; r < m; r++) {
        float *const row = to[r];
        const bool lines = far && (uintptr_t)row % 64 == 0;
#pragma GCC unroll 8
        for (int j = 0; j < CMOE_CPU_PANEL; j += VEC) {
            vf v = v_load(c + r * ldc + j);
            if (biased) v += v_load(bias + j);
            if (lines)
                store_far(row + j, v);
            else
                v_store(row + j, v);
        }
    }
}

static void store_panel(int m, const float *c, int64_t ldc, const float *bias, bool far,
                        float *const *to)
{
    if (bias)
        store_panel_as(true, m, c, ldc, bias, far, to);
    else
        store_panel_as(false, m, c, ldc, bias, far, to);
}

static void axpy(int64_t n, int m, const float *r, const float *const *z, float *sum)
{
    int64_t i = 0;
    for (; i + VEC <= n; i += VEC) {
        vf v = v_load(sum + i);
        for (int s = 0; s < m; s++)
            v = v_fma(v_set(r[s]), v_load(z[s] + i), v);
        v_store(sum + i, v);
    }
    if (i == n) return;
    float a[VEC] = {0}, b[VEC] = {0};
    memcpy(b, sum + i, (size_t)(n - i) * sizeof *b);
    for (int s = 0; s < m; s++) {
        memcpy(a, z[s] + i, (size_t)(n - i) * sizeof *a);
        v_store(b, v_fma(v_set(r[s]), v_load(a), v_load(b)));
    }
    memcpy(sum + i, b, (size_t)(n - i) * sizeof *b);
}

static void scale(int64_t n, float r, float *v)
{
    for (int64_t i = 0; i < n; i++)
        v[i] *= r;
}

#endif
