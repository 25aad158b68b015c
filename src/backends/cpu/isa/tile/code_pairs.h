/* SPDX-License-Identifier: MIT
 * Packed panels of codes as pairs of bf16, in registers: 32 columns of two k's are two vectors.
 *
 * 8-bit floats are looked up, 128 entries of two bytes, which keeps subnormal codes and NaN exact; 4-bit
 * codes are an index into a table in one register. What scales belong to the weights goes into them: powers
 * of two as a difference of exponents, others as one multiplication in f32 and one rounding.
 *
 * Plain C under CMOE_EMULATE would test nothing of this: there the tables have no decoder. */
#ifndef CMOE_BACKENDS_CPU_ISA_TILE_CODE_PAIRS_H
#define CMOE_BACKENDS_CPU_ISA_TILE_CODE_PAIRS_H

#include "backends/cpu/isa/codes.h"
#include "backends/cpu/ops_tile.h"

#ifndef CMOE_EMULATE

/* Bits of the bf16 of e4m3 and e5m2 codes 0 to 127. */
#    define E4M3_SUB(m)                                                                            \
        ((m) == 0  ? 0                                                                             \
         : (m) < 2 ? 118 << 7                                                                      \
         : (m) < 4 ? 119 << 7 | ((m)&1) << 6                                                       \
                   : 120 << 7 | ((m)&3) << 5)
#    define E4M3_BITS(c)                                                                           \
        ((c) == 127 ? 0x7fc0 : (c) < 8 ? E4M3_SUB((c)&7) : (((c) >> 3) + 120) << 7 | ((c)&7) << 4)
#    define E5M2_SUB(m) ((m) == 0 ? 0 : (m) < 2 ? 111 << 7 : 112 << 7 | ((m)&1) << 6)
#    define E5M2_BITS(c)                                                                           \
        ((c) > 124    ? 0x7fc0                                                                     \
         : (c) == 124 ? 0x7f80                                                                     \
         : (c) < 4    ? E5M2_SUB((c)&3)                                                            \
                      : (((c) >> 2) + 112) << 7 | ((c)&3) << 5)

/* of(0), of(1), ... of(127) */
#    define CODES4(of, c) of(c), of((c) + 1), of((c) + 2), of((c) + 3)
#    define CODES16(of, c)                                                                         \
        CODES4(of, c), CODES4(of, (c) + 4), CODES4(of, (c) + 8), CODES4(of, (c) + 12)
#    define CODES64(of, c)                                                                         \
        CODES16(of, c), CODES16(of, (c) + 16), CODES16(of, (c) + 32), CODES16(of, (c) + 48)
#    define CODES128(of) CODES64(of, 0), CODES64(of, 64)
#    define E4M3_LOW(c)  E4M3_BITS(c) & 255
#    define E4M3_HIGH(c) E4M3_BITS(c) >> 8
#    define E5M2_LOW(c)  E5M2_BITS(c) & 255
#    define E5M2_HIGH(c) E5M2_BITS(c) >> 8

/* Low bytes, high bytes. */
static const uint8_t e4m3_parts[2][128] = {{CODES128(E4M3_LOW)}, {CODES128(E4M3_HIGH)}};
static const uint8_t e5m2_parts[2][128] = {{CODES128(E5M2_LOW)}, {CODES128(E5M2_HIGH)}};

/* bf16 of e2m1 times 2^120; -0 is 0, so that no difference of exponents goes below it. */
static const uint16_t e2m1_large[16] = {0x0000, 0x7b00, 0x7b80, 0x7bc0, 0x7c00, 0x7c40,
                                        0x7c80, 0x7cc0, 0x0000, 0xfb00, 0xfb80, 0xfbc0,
                                        0xfc00, 0xfc40, 0xfc80, 0xfcc0};
enum { E8M0_LEAST = 2, E8M0_MOST = 247 }; /* codes whose products with all of them are normal */

static const float u4_value[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

typedef uint16_t vhu __attribute__((vector_size(64)));

/* What panels hold: a body of each loop for every one. F8: either 8-bit type, no scales. MX4, NV4: e2m1 with
 * scales of a byte; U4: integers with f32, bf16 or f16 scales. */
enum pair_kind { PAIRS_F8, PAIRS_MX4, PAIRS_NV4, PAIRS_U4, PAIRS_NONE };

static enum pair_kind pair_kind_of(const struct cmoe_cpu_panel *l)
{
    const bool plain = !l->zero && !l->global;
    if (l->span < l->k && l->span % 16 != 0) return PAIRS_NONE;
    switch (l->code) {
    case CMOE_CPU_CODE_E4M3:
    case CMOE_CPU_CODE_E5M2:
        return l->scale == CMOE_NONE && plain ? PAIRS_F8 : PAIRS_NONE;
    case CMOE_CPU_CODE_E2M1:
        if (l->scale == CMOE_E8M0 && plain) return PAIRS_MX4;
        return l->scale == CMOE_E4M3 && plain ? PAIRS_NV4 : PAIRS_NONE;
    case CMOE_CPU_CODE_U4:
        return !l->global ? PAIRS_U4 : PAIRS_NONE;
    case CMOE_CPU_CODE_I8:
    case CMOE_CPU_CODE_E4M3FNUZ:
        break;
    }
    return PAIRS_NONE;
}

/* k's that are decoded together. */
CMOE_INLINE int pair_step(enum pair_kind kind)
{
    return kind == PAIRS_F8 ? 2 : 8;
}

/* What all codes of a group share: tables, and scales of 32 columns. */
struct pair_terms {
    __m512i table[4], order, mix, less[2];
    vf scale[2], zero[2];
};

CMOE_INLINE void begin_pairs(enum pair_kind kind, const struct cmoe_cpu_panel *l,
                             struct pair_terms *t)
{
    if (kind == PAIRS_F8) {
        const uint8_t(*const parts)[128] = l->code == CMOE_CPU_CODE_E4M3 ? e4m3_parts : e5m2_parts;
        CMOE_UNROLL
        for (int i = 0; i < 4; i++)
            t->table[i] = _mm512_loadu_si512(parts[i / 2] + i % 2 * 64);
        /* Columns 4 i to 4 i + 3 of both k's and the same of the upper half, for each quarter i. */
        uint8_t order[64];
        for (int i = 0; i < 64; i++)
            order[i] = (uint8_t)(i / 16 * 4 + i % 8 / 2 + i % 16 / 8 * 16 + i % 2 * 32);
        t->order = _mm512_loadu_si512(order);
        return;
    }
    /* Bytes of a word hold k, k + 4: in this order 16-bit halves hold k, k + 1 at one place. */
    t->order =
        _mm512_broadcast_i32x4(_mm_setr_epi8(0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15));
    if (kind == PAIRS_U4) {
        uint16_t mix[32];
        for (int i = 0; i < 32; i++)
            mix[i] = (uint16_t)(i / 2 + i % 2 * 16);
        t->mix = _mm512_loadu_si512(mix);
    }
    if (kind == PAIRS_MX4)
        t->table[0] = _mm512_broadcast_i64x4(_mm256_loadu_si256((const void *)e2m1_large));
    else
        t->table[0] = _mm512_loadu_si512(kind == PAIRS_NV4 ? e2m1_value : u4_value);
}

/* Whether columns whose power of two is too small have no codes but 0: `bytes` of units. */
static bool only_zeros(const char *units, int64_t bytes, __mmask32 small)
{
    __m512i any[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
    for (int64_t at = 0; at < bytes; at += 64)
        any[at / 64 % 2] = _mm512_or_si512(any[at / 64 % 2], _mm512_loadu_si512(units + at));
    const __m512i size = _mm512_set1_epi32(0x77777777);
    return !_mm512_mask_test_epi32_mask((__mmask16)small, any[0], size) &&
           !_mm512_mask_test_epi32_mask((__mmask16)(small >> 16), any[1], size);
}

/* Scales of a group, of which k codes at `unit` are wanted. false: they are not done here. */
CMOE_INLINE bool begin_group(enum pair_kind kind, const struct cmoe_cpu_panel *l, const char *group,
                             const char *unit, int64_t k, struct pair_terms *t)
{
    if (kind != PAIRS_F8) fetch_scales(group, CMOE_CPU_STREAM_AHEAD, l->scales, true);
    if (kind == PAIRS_MX4) {
        const __m256i code = _mm256_loadu_si256((const void *)group);
        const __mmask32 small = _mm256_cmplt_epu8_mask(code, _mm256_set1_epi8(E8M0_LEAST));
        if (_mm256_cmpgt_epu8_mask(code, _mm256_set1_epi8((char)E8M0_MOST))) return false;
        if (small && !only_zeros(unit, (k + 7) / 8 * l->unit, small)) return false;
        const __m512i half = _mm512_slli_epi16(
            _mm512_sub_epi16(_mm512_set1_epi16(E8M0_MOST), _mm512_cvtepu8_epi16(code)), 7);
        CMOE_UNROLL
        for (int v = 0; v < 2; v++) {
            const __m512i word = _mm512_cvtepu16_epi32(v ? _mm512_extracti64x4_epi64(half, 1)
                                                         : _mm512_castsi512_si256(half));
            t->less[v] = _mm512_or_si512(word, _mm512_slli_epi32(word, 16));
        }
        return true;
    }
    CMOE_UNROLL
    for (int v = 0; v < 2; v++) {
        const char *const zeros = group + l->scales - CMOE_CPU_PANEL;
        if (kind == PAIRS_NV4) t->scale[v] = load_scale(CMOE_E4M3, group, v * VEC);
        if (kind != PAIRS_U4) continue;
        t->scale[v] = load_scale(l->scale, group, v * VEC);
        t->zero[v] = l->zero ? load_s8((const uint8_t *)zeros + v * VEC) : v_set(8);
    }
    return true;
}

/* Two k's of 8-bit floats; `two`: the second counts. */
CMOE_INLINE void f8_pairs(const struct pair_terms *t, const char *unit, bool two, __m512i out[2])
{
    const __m512i raw = two ? _mm512_loadu_si512(unit)
                            : _mm512_castsi256_si512(_mm256_loadu_si256((const void *)unit));
    const __m512i kept = two ? raw : _mm512_maskz_mov_epi64(15, raw);
    const __m512i code = _mm512_permutexvar_epi8(t->order, kept);
    const __m512i low = _mm512_permutex2var_epi8(t->table[0], code, t->table[1]);
    const __m512i high = _mm512_permutex2var_epi8(t->table[2], code, t->table[3]);
    const __m512i whole =
        _mm512_ternarylogic_epi64(high, code, _mm512_set1_epi8((char)0x80), 0xf8); /* a | (b & c) */
    out[0] = _mm512_unpacklo_epi8(low, whole);
    out[1] = _mm512_unpackhi_epi8(low, whole);
}

/* Pair i of 8 k's of 4-bit codes, one vector of columns whose words are in t->order. */
CMOE_INLINE __m512i nibble_pair(enum pair_kind kind, const struct pair_terms *t, __m512i word,
                                int i, int v)
{
    const int at = i / 2 * 4 + i % 2 * 8; /* pairs 0 1 2 3 begin at bits 0 8 4 12 */
    if (kind == PAIRS_MX4)
        return _mm512_subs_epu16(
            _mm512_permutexvar_epi16((__m512i)((vhu)word >> (uint16_t)at), t->table[0]),
            t->less[v]);
    vf even = (vf)_mm512_permutexvar_ps((__m512i)((vu)word >> at), (__m512)t->table[0]);
    vf odd = (vf)_mm512_permutexvar_ps((__m512i)((vu)word >> (at + 16)), (__m512)t->table[0]);
    if (kind == PAIRS_U4) {
        even -= t->zero[v];
        odd -= t->zero[v];
    }
    even *= t->scale[v];
    odd *= t->scale[v];
    if (kind == PAIRS_U4) {
        /* Nearest, ties to even, with NaN kept: the upper halves are the odd k's. */
        const __m512i both = (__m512i)_mm512_cvtne2ps_pbh((__m512)odd, (__m512)even);
        return _mm512_permutexvar_epi16(t->mix, both);
    }
    return _mm512_mask_blend_epi16(0xaaaaaaaa, _mm512_srli_epi32((__m512i)even, 16), (__m512i)odd);
}

/* The pairs of a unit; k: that count, at most its own. */
CMOE_INLINE void unit_pairs(enum pair_kind kind, const struct pair_terms *t, const char *unit,
                            int64_t k, __m512i out[4][2])
{
    if (kind == PAIRS_F8) {
        f8_pairs(t, unit, k > 1, out[0]);
        return;
    }
    CMOE_UNROLL
    for (int v = 0; v < 2; v++) {
        const __m512i word = _mm512_shuffle_epi8(_mm512_loadu_si512(unit + 64 * v), t->order);
        CMOE_UNROLL
        for (int i = 0; i < 4; i++)
            out[i][v] = nibble_pair(kind, t, word, i, v);
    }
}

/* Where a panel's k lies. */
struct pair_place {
    const char *group;
    int64_t in; /* k's into the group */
};

CMOE_INLINE struct pair_place find_pairs(const struct cmoe_cpu_panel *l, const void *panel,
                                         int64_t first)
{
    return (struct pair_place){(const char *)panel + l->head + first / l->span * l->group,
                               first % l->span};
}

/* k's of the group from there on, at most `left`, which begin at *unit; moves to the next group. */
CMOE_INLINE int64_t group_pairs(enum pair_kind kind, const struct cmoe_cpu_panel *l, int64_t left,
                                struct pair_place *p, const char **unit)
{
    const int64_t n = l->span - p->in < left ? l->span - p->in : left;
    *unit = p->group + l->scales +
            (kind == PAIRS_F8 ? p->in * CMOE_CPU_PANEL : p->in / 8 * (4 * CMOE_CPU_PANEL));
    p->group += l->group;
    p->in = 0;
    return n;
}

/* Bytes of pair_step. */
CMOE_INLINE int pair_bytes(enum pair_kind kind)
{
    return kind == PAIRS_F8 ? 64 : 128;
}

CMOE_INLINE void ask_for(const char *unit, int bytes)
{
    for (int line = 0; line < bytes; line += 64)
        fetch_line((uintptr_t)unit + CMOE_CPU_STREAM_AHEAD + (unsigned)line, true);
}

/* --- into scratch --------------------------------------------------------------------------- */

CMOE_INLINE void store_pairs(enum pair_kind kind, const struct pair_terms *t, const char *unit,
                             int k, char *to)
{
    __m512i pairs[4][2];
    unit_pairs(kind, t, unit, k, pairs);
    CMOE_UNROLL
    for (int i = 0; i < pair_step(kind) / 2; i++) {
        if (2 * i >= k) return;
        _mm512_storeu_si512(to + 128 * i, pairs[i][0]);
        _mm512_storeu_si512(to + 128 * i + 64, pairs[i][1]);
    }
}

CMOE_INLINE bool decode_as(enum pair_kind kind, const struct cmoe_cpu_panel *l, const void *panel,
                           int64_t first, int64_t k, uint16_t *out)
{
    const int step = pair_step(kind), bytes = pair_bytes(kind);
    struct pair_place p = find_pairs(l, panel, first);
    struct pair_terms t;
    char *to = (char *)out;
    begin_pairs(kind, l, &t);
    while (k > 0) {
        const char *const group = p.group, *unit;
        int64_t n = group_pairs(kind, l, k, &p, &unit);
        if (!begin_group(kind, l, group, unit, n, &t)) return false;
        k -= n;
        for (; n >= step; n -= step, unit += bytes, to += step * CMOE_CPU_STEP) {
            ask_for(unit, bytes);
            store_pairs(kind, &t, unit, step, to);
        }
        if (n > 0) store_pairs(kind, &t, unit, (int)n, to);
    }
    return true;
}

static bool decode_pairs(const struct cmoe_cpu_panel *l, const void *panel, int64_t first,
                         int64_t k, uint16_t *out)
{
    switch (pair_kind_of(l)) {
    case PAIRS_F8:
        return decode_as(PAIRS_F8, l, panel, first, k, out);
    case PAIRS_MX4:
        return decode_as(PAIRS_MX4, l, panel, first, k, out);
    case PAIRS_NV4:
        return decode_as(PAIRS_NV4, l, panel, first, k, out);
    case PAIRS_U4:
        return decode_as(PAIRS_U4, l, panel, first, k, out);
    case PAIRS_NONE:
        break;
    }
    return false;
}

#endif
#endif
