/* SPDX-License-Identifier: MIT
 * Expert matrices of random codes. Values matter little to tests of layouts: every code has one. */
#include "harness_weights.h"

#include "core/numeric.h"
#include <math.h>
#include <stdlib.h>

const cmoe_format weight_formats[WEIGHT_FORMATS] = {
    {.dtype = CMOE_F32, .scaling = CMOE_SCALE_NONE},
    {.dtype = CMOE_F16, .scaling = CMOE_SCALE_NONE},
    {.dtype = CMOE_BF16, .scaling = CMOE_SCALE_NONE},
    {.dtype = CMOE_E4M3, .scaling = CMOE_SCALE_TENSOR},
    {.dtype = CMOE_E4M3, .scaling = CMOE_SCALE_CHANNEL},
    {.dtype = CMOE_E5M2, .scaling = CMOE_SCALE_CHANNEL},
    {.dtype = CMOE_E4M3FNUZ, .scaling = CMOE_SCALE_GROUP, .group = 128},
    {.dtype = CMOE_E4M3, .scaling = CMOE_SCALE_BLOCK},
    {.dtype = CMOE_I8, .scaling = CMOE_SCALE_CHANNEL},
    {.dtype = CMOE_U8, .scaling = CMOE_SCALE_CHANNEL, .zero = 1},
    {.dtype = CMOE_U8, .scaling = CMOE_SCALE_TENSOR},
    {.dtype = CMOE_I8, .scaling = CMOE_SCALE_GROUP, .group = 64, .scale_dtype = CMOE_F16},
    {.dtype = CMOE_I4, .scaling = CMOE_SCALE_GROUP, .group = 32, .scale_dtype = CMOE_BF16},
    {.dtype = CMOE_I4, .scaling = CMOE_SCALE_CHANNEL},
    {.dtype = CMOE_U4, .scaling = CMOE_SCALE_GROUP, .group = 32, .zero = 1},
    {.dtype = CMOE_U4, .scaling = CMOE_SCALE_GROUP, .group = 16},
    {.dtype = CMOE_E2M1, .scaling = CMOE_SCALE_MX},
    {.dtype = CMOE_E4M3, .scaling = CMOE_SCALE_MX},
    {.dtype = CMOE_E2M1, .scaling = CMOE_SCALE_NV},
};
cmoe_dtype store_scale_type(cmoe_format f)
{
    if (f.scaling == CMOE_SCALE_MX) return CMOE_E8M0;
    if (f.scaling == CMOE_SCALE_NV) return CMOE_E4M3;
    return f.scale_dtype == CMOE_NONE ? CMOE_F32 : (cmoe_dtype)f.scale_dtype;
}

void store_fill(struct rng *rng, cmoe_format f, int64_t rows, int64_t cols, struct store *s)
{
    s->rows = rows;
    s->cols = cols;
    for (size_t i = 0; i < sizeof s->codes; i++)
        s->codes[i] = (uint8_t)rng_u64(rng);
    if (f.scaling == CMOE_SCALE_NONE) /* no NaN, whose bits nobody promises */
        for (int64_t i = 0; i < rows * cols; i++)
            cmoe__store((cmoe_dtype)f.dtype, s->codes, i, (float)rng_normal(rng));
    for (int64_t i = 0; i < 2 * I * H / 4; i++)
        cmoe__store(store_scale_type(f), s->scale, i,
                    (float)ldexp(1 + rng_unit(rng), (int)rng_between(rng, -6, 6)));
    for (size_t i = 0; i < sizeof s->zero; i++)
        s->zero[i] = (uint8_t)rng_below(rng, f.dtype == CMOE_U4 ? 16 : 256);
    s->global = (float)rng_unit(rng) + 0.5F;
    for (int i = 0; i < 2 * I; i++)
        s->bias[i] = (float)rng_normal(rng);
    for (int i = 0; i < H; i++)
        s->smooth[i] = (float)rng_unit(rng);
}

cmoe_matrix store_view(struct store *s)
{
    return (cmoe_matrix){.data = s->codes,
                         .scale = s->scale,
                         .zero = s->zero,
                         .global = &s->global,
                         .bias = s->bias,
                         .smooth = s->smooth};
}

struct store *weights_store(const struct weights_made *m, int expert, int which)
{
    return &m->stores[3 * expert + which];
}

void weights_made_end(struct weights_made *m)
{
    free(m->stores);
    m->stores = NULL;
}

void weights_make(struct rng *rng, cmoe_format f, enum layout layout, struct weights_made *m)
{
    struct store *const stores = m->stores ? m->stores : calloc(3 * (size_t)E, sizeof *stores);
    assert_non_null(stores);
    *m = (struct weights_made){.stores = stores};
    cmoe_problem_init(&m->p);
    m->p.experts = E;
    m->p.hidden = H;
    m->p.inter = I;
    m->p.w = f;
    m->p.gate = CMOE_GATE_SPLIT;
    m->p.flags = CMOE_BIAS1 | CMOE_BIAS2;
    if (layout == INTERLEAVED) m->p.gate = CMOE_GATE_INTERLEAVED;
    if (layout == UNGATED) m->p.gate = CMOE_GATE_NONE;
    if (layout == JOINT) m->p.flags |= CMOE_BLOCK_JOINT;
    for (int e = 0; e < E; e++) {
        const int64_t rows1 = layout == UNGATED || layout == SEPARATE ? I : 2 * I;
        store_fill(rng, f, rows1, H, weights_store(m, e, 0));
        store_fill(rng, f, I, H, weights_store(m, e, 1));
        store_fill(rng, f, H, I, weights_store(m, e, 2));
        m->gate_up[e] = store_view(weights_store(m, e, 0));
        m->up[e] = store_view(weights_store(m, e, 1));
        m->down[e] = store_view(weights_store(m, e, 2));
    }
    m->desc = (cmoe_weights_desc){
        .gate_up = m->gate_up, .up = layout == SEPARATE ? m->up : NULL, .down = m->down};
}
