/* SPDX-License-Identifier: MIT
 * The activations of docs/numerics.md, section 4. */
#ifndef CMOE_KERNELS_ACTIVATION_CUH
#define CMOE_KERNELS_ACTIVATION_CUH

#include "backends/cuda/kernels/common/numeric.cuh"

DEV float sigmoidf(float v)
{
    return 1.0f / (1.0f + expf(-v));
}

DEV float or_default(float given, float otherwise)
{
    return given != 0.0f ? given : otherwise;
}

DEV float gate_value(const cmoe_problem &p, float g)
{
    switch (p.act) {
    case CMOE_ACT_SILU:
        return g * sigmoidf(g);
    case CMOE_ACT_GELU:
        return 0.5f * g * (1.0f + erff(g * 0.707106781186547524f));
    case CMOE_ACT_GELU_TANH:
        return 0.5f * g * (1.0f + tanhf(0.797884560802865356f * (g + 0.044715f * g * g * g)));
    case CMOE_ACT_RELU:
        return g < 0.0f ? 0.0f : g;
    case CMOE_ACT_RELU2:
        return g < 0.0f ? 0.0f : g * g;
    case CMOE_ACT_SWIGLU_OAI:
        return g * sigmoidf(or_default(p.act_alpha, 1.702f) * g);
    case CMOE_ACT_SITUV2: {
        const float beta = or_default(p.act_beta, 4.0f);
        return beta * tanhf(g / beta) * sigmoidf(g);
    }
    default:
        return g;
    }
}

DEV float up_value(const cmoe_problem &p, float u)
{
    if (p.act == CMOE_ACT_SWIGLU_OAI)
        return u + or_default(p.act_beta, 1.0f);
    if (p.act == CMOE_ACT_SITUV2) {
        const float lbeta = or_default(p.act_lbeta, 25.0f);
        return lbeta > 0.0f ? lbeta * tanhf(u / lbeta) : u;
    }
    return u;
}

DEV float activation(const cmoe_problem &p, float g, float u)
{
    const float limit = or_default(p.act_limit, p.act == CMOE_ACT_SWIGLU_OAI ? 7.0f : 0.0f);
    if (limit > 0.0f) {
        g = g > limit ? limit : g;
        u = u > limit ? limit : (u < -limit ? -limit : u);
    }
    const float f = gate_value(p, g);
    return p.gate == CMOE_GATE_NONE ? f : f * up_value(p, u);
}

#endif
