/* SPDX-License-Identifier: MIT
 * The probes of one instruction set: reading memory, and chains of dot-product instructions, as many at
 * once as cover the latency. VNNI and BF16 are asked for by function, and only called where the CPU has them.
 *
 * VNNI has ten, two for each of the five clocks that a sum takes: twelve reach 83 % of that on a Cascade Lake, 24
 * 90 %, by how they meet at its two ports. BF16 has sixteen: on a Zen 5, where a sum takes six clocks, twelve
 * reach 92 % of it, 24 no more. */
#include "backends/cpu/probe.h"

#include "backends/cpu/isa/vec.h"
#include <string.h>

/* Compilers copy registers at a loop's edge: several steps share one. */
enum { CHAINS = 12, CHAINS_I8 = 10, CHAINS_BF16 = 16, STEPS = 64, UNROLLED = 8 };

static float probe_read(const void *memory, size_t size)
{
    const float *p = memory;
    vf sum[8];
    float out[VEC], total = 0;
    for (int i = 0; i < 8; i++)
        sum[i] = v_set(0);
    for (size_t at = 0; at < size / sizeof *p; at += 8 * VEC)
        for (int i = 0; i < 8; i++)
            sum[i] = (vf)((vi)sum[i] ^ (vi)v_load(p + at + (size_t)i * VEC));
    for (int i = 0; i < 8; i++) {
        memcpy(out, &sum[i], sizeof out);
        for (int j = 0; j < VEC; j++)
            total += out[j];
    }
    return total;
}

static void probe_f32(int64_t rounds, const void *memory, float *sink)
{
    vf sum[CHAINS];
    float out[VEC];
    const vf a = v_load(memory), b = v_load((const float *)memory + VEC);
    for (int i = 0; i < CHAINS; i++)
        sum[i] = v_set(0);
    for (int64_t r = 0; r < rounds * STEPS; r += UNROLLED)
#pragma GCC unroll 8
        for (int s = 0; s < UNROLLED; s++)
#pragma GCC unroll 12
            for (int i = 0; i < CHAINS; i++)
                sum[i] = v_fma(a, b, sum[i]);
    for (int i = 1; i < CHAINS; i++)
        sum[0] += sum[i];
    memcpy(out, &sum[0], sizeof out);
    *sink += out[0];
}

#if defined CMOE_ISA_AVX512
#    include <immintrin.h>

__attribute__((target("avx512vnni"))) static void probe_i8(int64_t rounds, const void *memory,
                                                           float *sink)
{
    __m512i sum[CHAINS_I8];
    int32_t out[VEC];
    const __m512i a = _mm512_loadu_si512(memory);
    const __m512i b = _mm512_loadu_si512((const char *)memory + 64);
    for (int i = 0; i < CHAINS_I8; i++)
        sum[i] = _mm512_setzero_si512();
    for (int64_t r = 0; r < rounds * STEPS; r += UNROLLED)
#    pragma GCC unroll 8
        for (int s = 0; s < UNROLLED; s++)
#    pragma GCC unroll 10
            for (int i = 0; i < CHAINS_I8; i++)
                sum[i] = _mm512_dpbusd_epi32(sum[i], a, b);
    for (int i = 1; i < CHAINS_I8; i++)
        sum[0] = _mm512_add_epi32(sum[0], sum[i]);
    memcpy(out, &sum[0], sizeof out);
    *sink += (float)out[0];
}

__attribute__((target("avx512bf16"))) static void probe_bf16(int64_t rounds, const void *memory,
                                                             float *sink)
{
    __m512 sum[CHAINS_BF16];
    __m512bh a, b;
    memcpy(&a, memory, sizeof a);
    memcpy(&b, (const char *)memory + sizeof a, sizeof b);
    for (int i = 0; i < CHAINS_BF16; i++)
        sum[i] = _mm512_setzero_ps();
    for (int64_t r = 0; r < rounds * STEPS; r += UNROLLED)
#    pragma GCC unroll 8
        for (int s = 0; s < UNROLLED; s++)
#    pragma GCC unroll 16
            for (int i = 0; i < CHAINS_BF16; i++)
                sum[i] = _mm512_dpbf16_ps(sum[i], a, b);
    for (int i = 1; i < CHAINS_BF16; i++)
        sum[0] = _mm512_add_ps(sum[0], sum[i]);
    *sink += _mm512_reduce_add_ps(sum[0]);
}

const struct cmoe_cpu_probe cmoe__cpu_probe_avx512 = {
    .dot = {probe_f32, probe_bf16, probe_i8},
    .operations = {2.0 * CHAINS * STEPS * VEC, 4.0 * CHAINS_BF16 *STEPS *VEC,
                   8.0 * CHAINS_I8 *STEPS *VEC},
#elif defined CMOE_ISA_AVX2
/* Sums of pairs of 16-bit products, which is how the rows multiply. */
static void probe_i8(int64_t rounds, const void *memory, float *sink)
{
    __m256i sum[CHAINS];
    __m256i a = _mm256_loadu_si256(memory);
    const __m256i b = _mm256_loadu_si256((const __m256i *)memory + 1);
    int32_t out[8];
    for (int i = 0; i < CHAINS; i++)
        sum[i] = _mm256_setzero_si256();
    for (int64_t r = 0; r < rounds * STEPS; r += UNROLLED)
#    pragma GCC unroll 8
        for (int s = 0; s < UNROLLED; s++)
#    pragma GCC unroll 12
            for (int i = 0; i < CHAINS; i++) {
                __asm__ volatile(""
                                 : "+x"(a), "+x"(sum[i])); /* a product each, when it is needed */
                sum[i] = _mm256_add_epi32(sum[i], _mm256_madd_epi16(a, b));
            }
    for (int i = 1; i < CHAINS; i++)
        sum[0] = _mm256_add_epi32(sum[0], sum[i]);
    memcpy(out, &sum[0], sizeof out);
    *sink += (float)out[0];
}

const struct cmoe_cpu_probe cmoe__cpu_probe_avx2 = {
    .dot = {probe_f32, NULL, probe_i8},
    .operations = {2.0 * CHAINS * STEPS * VEC, 0, 4.0 * CHAINS *STEPS *VEC},
#else
const struct cmoe_cpu_probe cmoe__cpu_probe_generic = {
    .dot = {probe_f32},
    .operations = {2.0 * CHAINS * STEPS * VEC},
#endif
    .read = probe_read,
};
