/* SPDX-License-Identifier: MIT
 * For which problems exact inputs exist, and the few numbers they are made of. gen_state.h has the
 * construction. */
#include "cli/gen_state.h"

#include <math.h>

bool gen_is_quantized(cmoe_format f)
{
    return f.scaling != CMOE_SCALE_NONE;
}

bool gen_needs_plant(cmoe_format f)
{
    if (f.fixed) return false;
    return gen_is_quantized(f) && f.scaling != CMOE_SCALE_MX;
}

/* Largest finite value of an element type; nv16 counts its two levels. */
static float largest(cmoe_format f)
{
    switch (f.dtype) {
    case CMOE_E4M3:
        return 448;
    case CMOE_E4M3FNUZ:
        return 240;
    case CMOE_E5M2:
        return 57344;
    case CMOE_I8:
        return 127;
    case CMOE_I4:
        return 7;
    case CMOE_E2M1:
        return f.scaling == CMOE_SCALE_NV ? 2688 : 6;
    }
    return 0;
}

float gen_plant(cmoe_format f)
{
    const float most = largest(f);
    if (most < 32) return most;
    int exponent = 0;
    return 128 * frexpf(most, &exponent);
}

int64_t gen_scope(cmoe_format f, int64_t n)
{
    return f.scaling == CMOE_SCALE_GROUP ? f.group : (n > 0 ? n : 1);
}

/* Eight significant bits or fewer: products with small integers stay exact. */
static bool is_short(float v)
{
    int exponent = 0;
    const float mantissa = frexpf(v, &exponent) * 256;
    return mantissa == floorf(mantissa);
}

static bool act_is_exact(const cmoe_problem *p)
{
    switch ((cmoe_activation)p->act) {
    case CMOE_ACT_RELU:
    case CMOE_ACT_RELU2:
    case CMOE_ACT_IDENTITY:
        return true;
    case CMOE_ACT_SILU:
    case CMOE_ACT_GELU:
    case CMOE_ACT_GELU_TANH:
        return p->act_limit <= 0;
    case CMOE_ACT_SWIGLU_OAI:
    case CMOE_ACT_SITUV2:
    case CMOE_ACTIVATION_COUNT:
        return false;
    }
    return false;
}

static bool unscaled_weights_fit(cmoe_format w)
{
    return w.scaling != CMOE_SCALE_NONE || w.dtype == CMOE_F32 || w.dtype == CMOE_F16 ||
           w.dtype == CMOE_BF16;
}

static bool is_power_of_two(float v)
{
    int exponent = 0;
    return frexpf(v, &exponent) == 0.5f;
}

/* Whether rows that are weighted before they are quantised keep scales that are powers of two. */
static bool weights_keep_scales(const cmoe_problem *p)
{
    const bool x = p->weight_on == CMOE_WEIGHT_ON_INPUT && gen_needs_plant(p->x);
    const bool mid = p->weight_on != CMOE_WEIGHT_ON_OUTPUT && gen_needs_plant(p->mid);
    const bool shared = p->shared == 0 || is_power_of_two(p->shared_weight);
    return (!x && !mid) || (is_power_of_two(p->route_scale) && shared);
}

static const char *mid_obstacle(const cmoe_problem *p)
{
    const bool weighted_early =
        p->weight_on == CMOE_WEIGHT_ON_INPUT || p->weight_on == CMOE_WEIGHT_ON_GEMM1;
    if (p->act == CMOE_ACT_RELU2 && weighted_early)
        return "squares of weighted values would need more than 24 bits";
    if (p->mid.dtype == CMOE_F16 && (p->act == CMOE_ACT_RELU2 || weighted_early))
        return "the intermediate would overflow f16";
    if (!gen_needs_plant(p->mid)) return NULL;
    if (p->act_limit > 0) return "the clamp would cut the largest value of mid";
    if (largest(p->mid) < 32) return "the dynamic scale of mid would not be a power of two";
    if (p->gate == CMOE_GATE_NONE && p->act == CMOE_ACT_RELU2)
        return "squares have no largest value that divides to a power of two";
    if (gen_is_quantized(p->x) && p->x.dtype != p->mid.dtype)
        return "the dynamic scales of x and mid would need different largest values";
    return NULL;
}

bool gen_exact_possible(const cmoe_problem *p, const char **why)
{
    const char *obstacle = NULL;
    if (!act_is_exact(p))
        obstacle = "the activation is not exact on integers";
    else if (!is_short(p->route_scale) || !is_short(p->shared_weight) || !is_short(p->accumulate))
        obstacle = "a factor is not a short binary number";
    else if (!weights_keep_scales(p))
        obstacle = "the dynamic scale of weighted rows would not be a power of two";
    else if (p->renorm_eps > 1e-9f)
        obstacle = "renorm_eps is large enough to round weights";
    else if ((p->flags & CMOE_REDUCED) != 0)
        obstacle = "16-bit GEMM2 results are allowed";
    else if ((p->flags & CMOE_FAST_SUMS) != 0)
        obstacle = "sums of few bits are allowed";
    else if (p->hidden - p->hidden_pad < 4)
        obstacle = "fewer than 4 columns";
    else if (p->x.scaling == CMOE_SCALE_NV && p->hidden - p->hidden_pad <= 32)
        obstacle = "nv16 needs more than two blocks of columns";
    else if (!unscaled_weights_fit(p->w))
        obstacle = "8- and 4-bit weights without scales";
    else if ((p->flags & CMOE_SHARED_SIGMOID) != 0 && (p->flags & CMOE_ROUTE_FROM_X) != 0)
        obstacle = "shared experts are weighted from x";
    else if ((p->flags & CMOE_HASH) != 0 && (p->flags & CMOE_ROUTE_FROM_X) != 0)
        obstacle = "logits from x do not know what the table selects";
    else if ((p->flags & CMOE_SHARED_SIGMOID) != 0 && p->router == CMOE_ROUTE_RAW)
        obstacle = "raw logits are too small for a sigmoid of 1";
    else
        obstacle = mid_obstacle(p);
    *why = obstacle;
    return obstacle == NULL;
}

/* The power of two that the plant is the type's largest value times. */
static float scale_of(cmoe_format f)
{
    const float most = largest(f);
    return most > 0 ? gen_plant(f) / most : 1;
}

struct gen_exact gen_exact_values(const cmoe_problem *p)
{
    const bool weighted_early =
        p->weight_on == CMOE_WEIGHT_ON_INPUT || p->weight_on == CMOE_WEIGHT_ON_GEMM1;
    struct gen_exact e = {
        .plant = 8,
        .one = p->x.scaling == CMOE_SCALE_NV ? 17 : 1,
        .scale1 = weighted_early ? 32 : 8, /* gate stays >= 32 when a weight of 1/4 shrinks it */
        .scale2 = p->w.scaling == CMOE_SCALE_NONE ? 0x1p-8f : 0x1p-10f,
        .x_scale = scale_of(p->x),
        .mid_scale = 1,
        .plant_mid = gen_needs_plant(p->mid),
    };
    if (gen_is_quantized(p->x) && p->x.scaling != CMOE_SCALE_MX)
        e.plant = gen_plant(p->x);
    else if (e.plant_mid)
        e.plant = gen_plant(p->mid);
    /* The intermediate reaches about 2^15: a static scale that makes it fit. */
    if (p->mid.fixed)
        for (e.mid_scale = 1; e.mid_scale * largest(p->mid) < 0x1p16f;)
            e.mid_scale *= 2;
    return e;
}
