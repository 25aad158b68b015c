/* SPDX-License-Identifier: MIT
 * ACT: gate and up to the intermediate. */
#include "backends/ref/ref.h"

#include "core/numeric.h"
#include <math.h>

static double sigmoid(double v)
{
    return 1 / (1 + exp(-v));
}

static double parameter(float given, double otherwise)
{
    return given != 0 ? (double)given : otherwise;
}

/* f(gate), and for the activations that change it, up. */
static double gate_value(const cmoe_problem *p, double gate)
{
    switch ((cmoe_activation)p->act) {
    case CMOE_ACT_SILU:
        return gate * sigmoid(gate);
    case CMOE_ACT_GELU:
        return 0.5 * gate * (1 + erf(gate * 0.70710678118654752440));
    case CMOE_ACT_GELU_TANH:
        return 0.5 * gate *
               (1 + tanh(0.79788456080286535588 * (gate + 0.044715 * gate * gate * gate)));
    case CMOE_ACT_RELU:
        return gate < 0 ? 0 : gate;
    case CMOE_ACT_RELU2:
        return gate < 0 ? 0 : gate * gate;
    case CMOE_ACT_SWIGLU_OAI:
        return gate * sigmoid(parameter(p->act_alpha, 1.702) * gate);
    case CMOE_ACT_SITUV2: {
        const double beta = parameter(p->act_beta, 4);
        return beta * tanh(gate / beta) * sigmoid(gate);
    }
    case CMOE_ACT_IDENTITY:
    case CMOE_ACTIVATION_COUNT:
        break;
    }
    return gate;
}

static double up_value(const cmoe_problem *p, double up)
{
    if (p->act == CMOE_ACT_SWIGLU_OAI) return up + parameter(p->act_beta, 1);
    if (p->act == CMOE_ACT_SITUV2) {
        const double lbeta = parameter(p->act_lbeta, 25);
        return lbeta > 0 ? lbeta * tanh(up / lbeta) : up;
    }
    return up;
}

double cmoe__ref_activation(const cmoe_problem *p, double gate, double up)
{
    const double limit = parameter(p->act_limit, p->act == CMOE_ACT_SWIGLU_OAI ? 7 : 0);
    if (limit > 0) {
        gate = gate > limit ? limit : gate;
        up = up > limit ? limit : (up < -limit ? -limit : up);
    }
    const double f = gate_value(p, gate);
    return p->gate == CMOE_GATE_NONE ? f : f * up_value(p, up);
}

cmoe_status cmoe__ref_act(const struct cmoe_step *step, const struct cmoe_exec *x)
{
    (void)step;
    const cmoe_problem *p = x->p;
    const struct cmoe_shape *s = x->shape;
    const cmoe_dtype dtype = cmoe__shape_h_dtype(p);
    const size_t h_bytes = cmoe_dtype_bytes(dtype, s->I);
    for (int32_t i = x->offsets[0]; i < x->offsets[s->local]; i++) {
        const int64_t row = x->rows[i];
        const float *gu = x->gu + row * s->rows1;
        void *h = (char *)x->h + (size_t)row * h_bytes;
        const double r = p->weight_on == CMOE_WEIGHT_ON_ACT ? (double)cmoe__exec_weight(x, row) : 1;
        for (int64_t c = 0; c < s->I; c++) {
            const double up = s->gated ? (double)gu[s->I + c] : 0;
            const double v = c < s->i_used ? cmoe__ref_activation(p, gu[c], up) * r : 0;
            cmoe__store(dtype, h, c, (float)v);
        }
    }
    return CMOE_OK;
}
