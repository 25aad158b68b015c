/* SPDX-License-Identifier: MIT
 * A small matrix of random codes under any kind of scale, and its packed panels, for the tests of what
 * reads them. All of it ends at an inaccessible page. */
#ifndef CMOE_TESTS_PANEL_RIG_H
#define CMOE_TESTS_PANEL_RIG_H

#include "harness.h"

#include "backends/cpu/cpuid.h"
#include "backends/cpu/gemm_item.h"
#include "backends/cpu/ops_quant.h"
#include "core/format.h"
#include "core/numeric.h"
#include "core/size.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { ROWS = 40, PANELS = 2, MOST_K = 300 };

static bool runs(int level)
{
    return level <= (int)cmoe__cpuid_isa() && cmoe__cpu_quant_ops((enum cmoe_isa)level);
}

static const cmoe_format formats[] = {
    {.dtype = CMOE_I8, .scaling = CMOE_SCALE_CHANNEL},
    {.dtype = CMOE_I8, .scaling = CMOE_SCALE_GROUP, .group = 64, .scale_dtype = CMOE_BF16},
    {.dtype = CMOE_U8, .scaling = CMOE_SCALE_CHANNEL},
    {.dtype = CMOE_U8, .scaling = CMOE_SCALE_GROUP, .group = 32, .zero = 1},
    {.dtype = CMOE_E4M3, .scaling = CMOE_SCALE_BLOCK},
    {.dtype = CMOE_E4M3, .scaling = CMOE_SCALE_MX},
    {.dtype = CMOE_E4M3FNUZ, .scaling = CMOE_SCALE_TENSOR},
    {.dtype = CMOE_E5M2, .scaling = CMOE_SCALE_CHANNEL},
    {.dtype = CMOE_I4, .scaling = CMOE_SCALE_GROUP, .group = 32, .scale_dtype = CMOE_F16},
    {.dtype = CMOE_I4, .scaling = CMOE_SCALE_NONE},
    {.dtype = CMOE_U4, .scaling = CMOE_SCALE_GROUP, .group = 128, .zero = 1},
    {.dtype = CMOE_U4, .scaling = CMOE_SCALE_CHANNEL},
    {.dtype = CMOE_E2M1, .scaling = CMOE_SCALE_MX},
    {.dtype = CMOE_E2M1, .scaling = CMOE_SCALE_NV},
    {.dtype = CMOE_E2M1, .scaling = CMOE_SCALE_GROUP, .group = 16},
};
enum { FORMATS = sizeof formats / sizeof *formats };

static const int64_t depths[] = {1, 5, 16, 37, 70, 128, 161, MOST_K};
enum { DEPTHS = sizeof depths / sizeof *depths };

/* --- a matrix and its panels ---------------------------------------------------------------- */

struct packed {
    struct guard guard;
    cmoe_weights w;
    cmoe_matrix down;
    struct cmoe_cpu_panel l;
    float global;
    char *panels;
};

static void *random_bytes(struct guard *g, struct rng *rng, size_t bytes, int below)
{
    uint8_t *const out = guard_alloc(g, bytes ? bytes : 1, 4, GUARD_INPUT);
    for (size_t i = 0; i < bytes; i++)
        out[i] = (uint8_t)rng_below(rng, below);
    return out;
}

/* Codes of a type; every second matrix of e4m3 is without NaN, as all are in practice. */
static void *random_codes(struct guard *g, struct rng *rng, cmoe_dtype dtype, int64_t n)
{
    const size_t bytes = cmoe_dtype_bytes(dtype, n);
    uint8_t *const codes = random_bytes(g, rng, bytes, 256);
    const bool finite = dtype == CMOE_E4M3 && rng_below(rng, 2) == 0;
    for (size_t i = 0; i < bytes && finite; i++)
        if ((codes[i] & 0x7f) == 0x7f) codes[i] ^= 1;
    return codes;
}

/* n scales of a type; e8m0 and e4m3 ones take every code. */
static void *random_scales(struct guard *g, struct rng *rng, cmoe_dtype dtype, int64_t n)
{
    if (dtype == CMOE_E8M0 || dtype == CMOE_E4M3) return random_bytes(g, rng, (size_t)n, 256);
    void *const out = guard_alloc(g, cmoe_dtype_bytes(dtype, n), 4, GUARD_INPUT);
    for (int64_t i = 0; i < n; i++)
        cmoe__store(dtype, out, i, (float)rng_normal(rng));
    return out;
}

static void make_packed(struct packed *m, struct rng *rng, cmoe_format f, int64_t k)
{
    const int64_t scales = cmoe__ceil_div(k, 16) * ROWS; /* as many as any scaling has, or more */
    const cmoe_dtype scale = cmoe__format_scale_dtype(f);
    guard_reset(&m->guard);
    m->global = 0.375f;
    m->w = (cmoe_weights){.experts = 1, .down = &m->down};
    cmoe_problem_init(&m->w.p);
    m->w.p.hidden = ROWS;
    m->w.p.inter = (int32_t)k;
    m->w.p.w = f;
    m->down = (cmoe_matrix){
        .data = random_codes(&m->guard, rng, (cmoe_dtype)f.dtype, ROWS * cmoe__round_up(k, 2)),
        .scale = f.scaling == CMOE_SCALE_NONE ? NULL : random_scales(&m->guard, rng, scale, scales),
        .zero = f.zero ? random_bytes(&m->guard, rng, (size_t)scales, f.dtype == CMOE_U4 ? 16 : 256)
                       : NULL,
        .global = &m->global,
    };
    const struct cmoe_packing_format *const format = cmoe__cpu_panel_format(f);
    assert_non_null(format);
    cmoe__cpu_panel_layout(&m->w.p, 2, &m->l);
    assert_int_equal(format->panel_bytes(&m->w.p, 2), m->l.bytes);
    assert_int_equal(format->panels(&m->w.p, 2), PANELS);
    m->panels = guard_alloc(&m->guard, (size_t)(PANELS * m->l.bytes), 4, GUARD_INPUT);
    format->pack(&m->w, 2, 0, 0, PANELS, m->panels);
    guard_freeze(&m->guard);
}

#endif
