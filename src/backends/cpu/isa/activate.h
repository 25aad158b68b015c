/* SPDX-License-Identifier: MIT
 * The activations of docs/numerics.md section 4 for vectors of gate and up. */
#ifndef CMOE_BACKENDS_CPU_ISA_ACTIVATE_H
#define CMOE_BACKENDS_CPU_ISA_ACTIVATE_H

#include "backends/cpu/isa/math.h"
#include "backends/cpu/ops.h"

CMOE_INLINE vf gelu(vf g)
{
    const vf tail = m_normal_tail(g);
    return g * v_select(g < 0.0f, tail, 1.0f - tail);
}

/* g * sigmoid(2u), which is g*(1+tanh(u))/2; 2u is carried with its rounding errors. */
CMOE_INLINE vf gelu_tanh(vf g)
{
    const float cube = 0.044715f, cube_low = 1.5461445e-9f;
    const float outer = 1.59576917f, outer_low = -4.5340680e-8f; /* 2 sqrt(2/pi) */
    const vf s = g * g;
    const vf s_low = v_product_error(g, g, s);
    const vf p = s * cube;
    const vf p_low = v_product_error(s, v_set(cube), p) + s_low * cube + s * cube_low;
    const vf w = p + 1.0f;
    const vf one = w - p; /* two-sum: w - p - 1 is exact in these parts */
    const vf w_low = ((p - (w - one)) + (1.0f - one)) + p_low;
    const vf v = g * w;
    const vf v_low = v_product_error(g, w, v) + g * w_low;
    const vf t = v * outer;
    const vf t_low = v_product_error(v, v_set(outer), t) + v_low * outer + v * outer_low;
    return g * m_sigmoid(t, t_low);
}

CMOE_INLINE vf relu(vf g)
{
    return v_select(g <= 0.0f, v_set(0), g);
}

/* f(gate) alone; `which` is a constant after inlining. */
CMOE_INLINE vf act_gate(cmoe_activation which, const struct cmoe_cpu_act *p, vf g)
{
    switch (which) {
    case CMOE_ACT_SILU:
        return g * m_sigmoid(g, v_set(0));
    case CMOE_ACT_GELU:
        return gelu(g);
    case CMOE_ACT_GELU_TANH:
        return gelu_tanh(g);
    case CMOE_ACT_RELU:
        return relu(g);
    case CMOE_ACT_RELU2:
        return relu(g) * relu(g);
    case CMOE_ACT_SWIGLU_OAI: {
        const vf z = g * p->alpha;
        return g * m_sigmoid(z, v_product_error(g, v_set(p->alpha), z));
    }
    case CMOE_ACT_SITUV2:
        return m_tanh(g / p->beta) * p->beta * m_sigmoid(g, v_set(0));
    case CMOE_ACT_IDENTITY:
    case CMOE_ACTIVATION_COUNT:
        break;
    }
    return g;
}

CMOE_INLINE vf act_up(cmoe_activation which, const struct cmoe_cpu_act *p, vf u)
{
    if (which == CMOE_ACT_SWIGLU_OAI) return u + p->beta;
    if (which == CMOE_ACT_SITUV2 && p->lbeta > 0) return m_tanh(u / p->lbeta) * p->lbeta;
    return u;
}

CMOE_INLINE vf act_pair(cmoe_activation which, const struct cmoe_cpu_act *p, vf g, vf u)
{
    g = v_at_most(g, p->limit);
    if (!p->gated) return act_gate(which, p, g);
    u = v_at_least(v_at_most(u, p->limit), -p->limit);
    return act_gate(which, p, g) * act_up(which, p, u);
}

CMOE_INLINE void act_loop(cmoe_activation which, const struct cmoe_cpu_act *p, int64_t n,
                          const float *gate, const float *up, float *h)
{
    int64_t i = 0;
    for (; i + VEC <= n; i += VEC) {
        const vf u = p->gated ? v_load(up + i) : v_set(0);
        v_store(h + i, act_pair(which, p, v_load(gate + i), u));
    }
    if (i < n) {
        float g[VEC] = {0}, u[VEC] = {0};
        memcpy(g, gate + i, (size_t)(n - i) * sizeof *g);
        if (p->gated) memcpy(u, up + i, (size_t)(n - i) * sizeof *u);
        v_store(g, act_pair(which, p, v_load(g), v_load(u)));
        memcpy(h + i, g, (size_t)(n - i) * sizeof *g);
    }
}

/* `biased` is a constant after inlining. */
CMOE_INLINE void act_panel_loop(cmoe_activation which, const struct cmoe_cpu_act *p,
                                cmoe_dtype dtype, bool biased, int m, const float *c, int64_t ldc,
                                const float *bias, void *const *h)
{
    enum { HALF = CMOE_CPU_PANEL / 2 };
    const int64_t size = dtype == CMOE_F32 ? 4 : 2;
    for (int r = 0; r < m; r++, c += ldc)
#pragma GCC unroll 4
        for (int i = 0; i < HALF; i += VEC) {
            vf g = v_load(c + i), u = v_load(c + HALF + i);
            if (biased) {
                g += v_load(bias + i);
                u += v_load(bias + HALF + i);
            }
            v_store_as(dtype, (char *)h[r] + i * size, act_pair(which, p, g, u));
        }
}

/* Bodies of their own for the common ones. */
static void act_panel(const struct cmoe_cpu_act *p, cmoe_dtype dtype, int m, const float *c,
                      int64_t ldc, const float *bias, void *const *h)
{
    if (p->act == CMOE_ACT_SILU && !bias)
        act_panel_loop(CMOE_ACT_SILU, p, dtype, false, m, c, ldc, bias, h);
    else if (p->act == CMOE_ACT_SWIGLU_OAI && bias)
        act_panel_loop(CMOE_ACT_SWIGLU_OAI, p, dtype, true, m, c, ldc, bias, h);
    else
        act_panel_loop(p->act, p, dtype, bias != NULL, m, c, ldc, bias, h);
}

static void act(const struct cmoe_cpu_act *p, int64_t n, const float *gate, const float *up,
                float *h)
{
    switch (p->act) {
    case CMOE_ACT_SILU:
        act_loop(CMOE_ACT_SILU, p, n, gate, up, h);
        break;
    case CMOE_ACT_GELU:
        act_loop(CMOE_ACT_GELU, p, n, gate, up, h);
        break;
    case CMOE_ACT_GELU_TANH:
        act_loop(CMOE_ACT_GELU_TANH, p, n, gate, up, h);
        break;
    case CMOE_ACT_RELU:
        act_loop(CMOE_ACT_RELU, p, n, gate, up, h);
        break;
    case CMOE_ACT_RELU2:
        act_loop(CMOE_ACT_RELU2, p, n, gate, up, h);
        break;
    case CMOE_ACT_SWIGLU_OAI:
        act_loop(CMOE_ACT_SWIGLU_OAI, p, n, gate, up, h);
        break;
    case CMOE_ACT_SITUV2:
        act_loop(CMOE_ACT_SITUV2, p, n, gate, up, h);
        break;
    case CMOE_ACT_IDENTITY:
    case CMOE_ACTIVATION_COUNT:
        act_loop(CMOE_ACT_IDENTITY, p, n, gate, up, h);
        break;
    }
}

#endif
