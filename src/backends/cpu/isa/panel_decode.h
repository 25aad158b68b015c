/* SPDX-License-Identifier: MIT
 * Packed panels of quantised weights to f32: into a scratch that the f32 tile reads, or straight
 * into the multiply-adds of a few rows.
 *
 * Both walk one piece of a group at a time with its scales in registers and give code * scale
 * rounded once. */
#ifndef CMOE_BACKENDS_CPU_ISA_PANEL_DECODE_H
#define CMOE_BACKENDS_CPU_ISA_PANEL_DECODE_H

#include "backends/cpu/isa/codes.h"

/* Columns that stream's accumulators cover at a time, in vectors: 1 row, more rows. */
#if defined CMOE_ISA_AVX512
enum { STREAM_VECS1 = 2, STREAM_VECS = 2 };
#else
enum { STREAM_VECS1 = 4, STREAM_VECS = 2 };
#endif
enum { STREAM_ROWS = 4, MOST_VECS = 4, PIECE_K = 128 };

/* What a panel holds: one body of each loop. E4M3_SLOW: a piece of E4M3 with a code that is NaN or
 * scales close to overflow. */
#define KINDS(KIND)                                                                                \
    KIND(I8)                                                                                       \
    KIND(I8_ZERO)                                                                                  \
    KIND(E4M3)                                                                                     \
    KIND(E4M3_SLOW)                                                                                \
    KIND(E4M3FNUZ)                                                                                 \
    KIND(E5M2)                                                                                     \
    KIND(U4)                                                                                       \
    KIND(U4_ZERO)                                                                                  \
    KIND(E2M1)                                                                                     \
    KIND(E2M1_GLOBAL)
#define KIND(name) KIND_##name,
enum kind { KINDS(KIND) };
#undef KIND

static enum kind kind_of(const struct cmoe_cpu_panel *l)
{
    switch (l->code) {
    case CMOE_CPU_CODE_I8:
        return l->zero ? KIND_I8_ZERO : KIND_I8;
    case CMOE_CPU_CODE_E4M3:
        return KIND_E4M3;
    case CMOE_CPU_CODE_E4M3FNUZ:
        return KIND_E4M3FNUZ;
    case CMOE_CPU_CODE_E5M2:
        return KIND_E5M2;
    case CMOE_CPU_CODE_U4:
        return l->zero ? KIND_U4_ZERO : KIND_U4;
    case CMOE_CPU_CODE_E2M1:
        break;
    }
    return l->global ? KIND_E2M1_GLOBAL : KIND_E2M1;
}

CMOE_INLINE int step_of(enum kind kind)
{
    if (kind >= KIND_U4) return 8;
    return kind <= KIND_I8_ZERO ? 4 : 1;
}

/* A piece of a panel that lies in one group, at its k = `in`. */
struct piece {
    const char *group, *unit;
    int64_t in, k;
};

/* Whether e4m3 scales may be multiplied by 2^8. */
CMOE_INLINE bool all_small(const struct cmoe_cpu_panel *l, const char *group)
{
    const vi bound = v_bits(v_set(0x1p119f));
    uint32_t word[VEC], large = 0;
    vi any = {0};
    for (int at = 0; at < CMOE_CPU_PANEL; at += VEC)
        any |= (vi)(v_bits(v_abs(load_scale(l->scale, group, at))) >= bound);
    memcpy(word, &any, sizeof word);
    for (int i = 0; i < VEC; i++)
        large |= word[i];
    return large == 0;
}

/* Whether a piece of e4m3 is E4M3, not E4M3_SLOW. */
CMOE_INLINE bool is_plain(const struct cmoe_cpu_panel *l, const struct piece *p)
{
    return all_finite((const uint8_t *)p->unit, p->k * CMOE_CPU_PANEL) && all_small(l, p->group);
}

/* How much of `left` k's the piece holds: one group's, at most PIECE_K. */
CMOE_INLINE void measure_piece(const struct cmoe_cpu_panel *l, int64_t left, struct piece *p)
{
    p->unit = p->group + l->scales + (p->in >> (l->step == 8 ? 3 : l->step == 4 ? 2 : 0)) * l->unit;
    p->k = l->span - p->in;
    if (p->k > left) p->k = left;
    if (p->k > PIECE_K) p->k = PIECE_K;
}

CMOE_INLINE struct piece first_piece(const struct cmoe_cpu_panel *l, const char *panel,
                                     int64_t first, int64_t k)
{
    struct piece p = {.group = panel + l->head + first / l->span * l->group, .in = first % l->span};
    measure_piece(l, k, &p);
    return p;
}

CMOE_INLINE void next_piece(const struct cmoe_cpu_panel *l, int64_t left, struct piece *p)
{
    p->in += p->k;
    if (p->in == l->span) {
        p->in = 0;
        p->group += l->group;
    }
    measure_piece(l, left, p);
}

/* What all codes of a piece share, for `vecs` vectors of columns from `col` on. */
struct terms {
    vf scale[MOST_VECS], zero[MOST_VECS], global[MOST_VECS];
};

CMOE_INLINE void load_terms(enum kind kind, const struct cmoe_cpu_panel *l, const char *panel,
                            const char *group, int col, int vecs, struct terms *t)
{
#pragma GCC unroll 4
    for (int v = 0; v < vecs; v++) {
        const int at = col + v * VEC;
        const char *const zeros = group + l->scales - CMOE_CPU_PANEL;
        t->scale[v] = load_scale(l->scale, group, at);
        if (kind == KIND_E4M3) t->scale[v] *= 256.0f;
        if (kind == KIND_I8_ZERO || kind == KIND_U4_ZERO)
            t->zero[v] = load_s8((const uint8_t *)zeros + at);
        if (kind == KIND_E2M1_GLOBAL)
            t->global[v] = v_load((const float *)(const void *)panel + at);
    }
}

/* Weight i of a unit of words, one vector of columns. */
CMOE_INLINE vf word_weight(enum kind kind, vi word, int i, const struct terms *t, int v)
{
    const int nibble = i % 4 * 8 + i / 4 * 4;
    if (kind == KIND_E2M1) return e2m1(word, nibble) * t->scale[v];
    if (kind == KIND_E2M1_GLOBAL) return e2m1(word, nibble) * t->scale[v] * t->global[v];
    if (kind == KIND_U4) return u4(word, nibble, true) * t->scale[v];
    if (kind == KIND_U4_ZERO) return (u4(word, nibble, false) - t->zero[v]) * t->scale[v];
    const vf q = vi_to_float((vi)((vu)word << (24 - 8 * i)) >> 24);
    return (kind == KIND_I8_ZERO ? q - t->zero[v] : q) * t->scale[v];
}

/* Weight i of a unit for `vecs` vectors of columns, an even number. */
CMOE_INLINE void load_weights(enum kind kind, const char *unit, int i, int col, int vecs,
                              const struct terms *t, vf w[MOST_VECS])
{
#pragma GCC unroll 2
    for (int v = 0; v < vecs; v += 2) {
        const char *const at = unit + (step_of(kind) == 1 ? 1 : 4) * (col + v * VEC);
        const uint8_t *const bytes = (const uint8_t *)at;
        if (kind == KIND_E4M3 || kind == KIND_E5M2) {
            load_f8_pair(kind == KIND_E4M3 ? CMOE_CPU_CODE_E4M3 : CMOE_CPU_CODE_E5M2, bytes, w + v);
        } else if (kind == KIND_E4M3_SLOW || kind == KIND_E4M3FNUZ) {
            const enum cmoe_cpu_code code =
                kind == KIND_E4M3FNUZ ? CMOE_CPU_CODE_E4M3FNUZ : CMOE_CPU_CODE_E4M3;
            w[v] = load_f8(code, bytes);
            w[v + 1] = load_f8(code, bytes + VEC);
        } else {
            w[v] = word_weight(kind, vi_load(at), i, t, v);
            w[v + 1] = word_weight(kind, vi_load(at + 4 * VEC), i, t, v + 1);
            continue;
        }
        w[v] *= t->scale[v];
        w[v + 1] *= t->scale[v + 1];
    }
}

/* --- into scratch --------------------------------------------------------------------------- */

CMOE_INLINE void decode_unit(enum kind kind, const char *unit, int n, int col,
                             const struct terms *t, float *out)
{
#pragma GCC unroll 8
    for (int i = 0; i < n; i++) {
        vf w[MOST_VECS];
        load_weights(kind, unit, i, col, STREAM_VECS, t, w);
        for (int v = 0; v < STREAM_VECS; v++)
            v_store(out + i * CMOE_CPU_PANEL + col + v * VEC, w[v]);
    }
}

CMOE_INLINE void decode_piece(enum kind kind, const struct cmoe_cpu_panel *l, const char *panel,
                              const struct piece *p, float *out)
{
    const int step = step_of(kind);
    for (int col = 0; col < CMOE_CPU_PANEL; col += STREAM_VECS * VEC) {
        struct terms t;
        const char *unit = p->unit;
        float *to = out;
        int64_t left = p->k;
        load_terms(kind, l, panel, p->group, col, STREAM_VECS, &t);
        for (; left >= step; left -= step, unit += l->unit, to += step * CMOE_CPU_PANEL)
            decode_unit(kind, unit, step, col, &t, to);
        if (left > 0) decode_unit(kind, unit, (int)left, col, &t, to);
    }
}

static void decode(const struct cmoe_cpu_panel *l, const void *panel, int64_t first, int64_t k,
                   float *out)
{
    struct piece p = first_piece(l, panel, first, k);
    for (; p.k > 0; k -= p.k, next_piece(l, k, &p)) {
        enum kind kind = kind_of(l);
        if (kind == KIND_E4M3 && !is_plain(l, &p)) kind = KIND_E4M3_SLOW;
        switch (kind) {
#define KIND(name)                                                                                 \
case KIND_##name:                                                                                  \
    decode_piece(KIND_##name, l, panel, &p, out);                                                  \
    break;
            KINDS(KIND)
#undef KIND
        }
        out += p.k * CMOE_CPU_PANEL;
    }
}

/* --- straight into rows --------------------------------------------------------------------- */

/* a: the first row's value of the unit's first k; rows are a chunk apart. */
CMOE_INLINE void stream_unit(enum kind kind, const char *unit, int n, int col, int vecs,
                             const struct terms *t, int m, const float *a,
                             vf acc[STREAM_ROWS][MOST_VECS])
{
#pragma GCC unroll 8
    for (int i = 0; i < n; i++) {
        vf w[MOST_VECS];
        load_weights(kind, unit, i, col, vecs, t, w);
#pragma GCC unroll 4
        for (int v = 0; v < vecs; v++)
#pragma GCC unroll 4
            for (int r = 0; r < m; r++)
                acc[r][v] = v_fma(v_set(a[r * CMOE_CPU_CHUNK + i]), w[v], acc[r][v]);
    }
}

/* Where k lies in packed rows. */
CMOE_INLINE const float *a_at(const float *a, int m, int64_t k)
{
    return a + k / CMOE_CPU_CHUNK * CMOE_CPU_CHUNK * m + k % CMOE_CPU_CHUNK;
}

CMOE_INLINE void stream_piece(enum kind kind, const struct cmoe_cpu_panel *l, const char *panel,
                              const struct piece *p, int col, int vecs, int m, int64_t at,
                              const float *a, vf acc[STREAM_ROWS][MOST_VECS])
{
    const int step = step_of(kind);
    struct terms t;
    const char *unit = p->unit;
    int64_t left = p->k;
    load_terms(kind, l, panel, p->group, col, vecs, &t);
    for (; left >= step; left -= step, at += step, unit += l->unit) {
        for (int line = 0; line < (step == 1 ? 1 : 2) && col == 0; line++)
            fetch_line((uintptr_t)unit + CMOE_CPU_STREAM_AHEAD + 64U * (unsigned)line, true);
        stream_unit(kind, unit, step, col, vecs, &t, m, a_at(a, m, at), acc);
    }
    if (left > 0) stream_unit(kind, unit, (int)left, col, vecs, &t, m, a_at(a, m, at), acc);
}

CMOE_INLINE void stream_tile(enum kind kind, const struct cmoe_cpu_panel *l, const char *panel,
                             int col, int vecs, int m, int64_t first, int64_t k, const float *a,
                             float *c, int64_t ldc, bool more)
{
    vf acc[STREAM_ROWS][MOST_VECS];
#pragma GCC unroll 4
    for (int r = 0; r < m; r++)
#pragma GCC unroll 4
        for (int v = 0; v < vecs; v++)
            acc[r][v] = more ? v_load(c + r * ldc + col + v * VEC) : v_set(0);
    struct piece p = first_piece(l, panel, first, k);
    for (int64_t done = 0; p.k > 0; done += p.k, next_piece(l, k - done, &p)) {
        if (kind == KIND_E4M3 && !is_plain(l, &p))
            stream_piece(KIND_E4M3_SLOW, l, panel, &p, col, vecs, m, done, a, acc);
        else
            stream_piece(kind, l, panel, &p, col, vecs, m, done, a, acc);
    }
#pragma GCC unroll 4
    for (int r = 0; r < m; r++)
#pragma GCC unroll 4
        for (int v = 0; v < vecs; v++)
            v_store(c + r * ldc + col + v * VEC, acc[r][v]);
}

CMOE_INLINE void stream_rows(enum kind kind, const struct cmoe_cpu_panel *l, const char *panel,
                             int m, int64_t first, int64_t k, const float *a, float *c, int64_t ldc,
                             bool more)
{
    const int vecs = m == 1 ? STREAM_VECS1 : STREAM_VECS;
    for (int col = 0; col < CMOE_CPU_PANEL; col += vecs * VEC)
        stream_tile(kind, l, panel, col, vecs, m, first, k, a, c, ldc, more);
}

CMOE_INLINE void stream_as(enum kind kind, const struct cmoe_cpu_panel *l, const char *panel, int m,
                           int64_t first, int64_t k, const float *a, float *c, int64_t ldc,
                           bool more)
{
    switch (m) {
    case 1:
        stream_rows(kind, l, panel, 1, first, k, a, c, ldc, more);
        break;
    case 2:
        stream_rows(kind, l, panel, 2, first, k, a, c, ldc, more);
        break;
    case 3:
        stream_rows(kind, l, panel, 3, first, k, a, c, ldc, more);
        break;
    case 4:
        stream_rows(kind, l, panel, 4, first, k, a, c, ldc, more);
        break;
    }
}

static void stream(const struct cmoe_cpu_panel *l, const void *panel, int m, int64_t first,
                   int64_t k, const float *a, float *c, int64_t ldc, bool more)
{
    switch (kind_of(l)) {
#define KIND(name)                                                                                 \
case KIND_##name:                                                                                  \
    stream_as(KIND_##name, l, panel, m, first, k, a, c, ldc, more);                                \
    break;
        KINDS(KIND)
#undef KIND
    }
}

#undef KINDS

#endif
