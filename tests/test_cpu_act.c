/* SPDX-License-Identifier: MIT
 * ctest: labels=kernels,portable
 * Activations of the cpu backend, every instruction set that runs here, against fp64 formulas that do
 * not cancel: 16 u of the result's magnitude, NaN to NaN, no dependence on the place in a row. */
#include "harness.h"

#include "backends/cpu/cpuid.h"
#include "backends/cpu/ops.h"
#include <math.h>
#include <string.h>

enum { VALUES = 3000 };

static const struct cmoe_cpu_ops *table(int level)
{
    return level <= (int)cmoe__cpuid_isa() ? cmoe__cpu_ops((enum cmoe_isa)level) : NULL;
}

/* 1/(1+exp(-z)) with full relative precision on both sides. */
static double sigmoid(double z)
{
    return z > 0 ? 1 / (1 + exp(-z)) : exp(z) / (1 + exp(z));
}

static double gate_value(const struct cmoe_cpu_act *p, double g)
{
    switch (p->act) {
    case CMOE_ACT_SILU:
        return g * sigmoid(g);
    case CMOE_ACT_GELU:
        return 0.5 * g * erfc(-g * 0.70710678118654752440);
    case CMOE_ACT_GELU_TANH:
        return g * sigmoid(2 * 0.79788456080286535588 * (g + 0.044715 * g * g * g));
    case CMOE_ACT_RELU:
        return g < 0 ? 0 : g;
    case CMOE_ACT_RELU2:
        return g < 0 ? 0 : g * g;
    case CMOE_ACT_SWIGLU_OAI:
        return g * sigmoid((double)p->alpha * g);
    case CMOE_ACT_SITUV2:
        return (double)p->beta * tanh(g / (double)p->beta) * sigmoid(g);
    case CMOE_ACT_IDENTITY:
    case CMOE_ACTIVATION_COUNT:
        break;
    }
    return g;
}

static double expected(const struct cmoe_cpu_act *p, double g, double u)
{
    const double limit = (double)p->limit;
    g = g > limit ? limit : g;
    u = u > limit ? limit : (u < -limit ? -limit : u);
    const double f = gate_value(p, g);
    if (!p->gated) return f;
    if (p->act == CMOE_ACT_SWIGLU_OAI) return f * (u + (double)p->beta);
    if (p->act == CMOE_ACT_SITUV2 && p->lbeta > 0)
        return f * (double)p->lbeta * tanh(u / (double)p->lbeta);
    return f * u;
}

static struct cmoe_cpu_act parameters(int act, bool gated, float limit)
{
    return (struct cmoe_cpu_act){.act = (cmoe_activation)act,
                                 .gated = gated,
                                 .limit = limit,
                                 .alpha = 1.702f,
                                 .beta = act == CMOE_ACT_SITUV2 ? 4.0f : 1.0f,
                                 .lbeta = 25.0f};
}

/* Values of all sizes, most of them where the functions bend. */
static float draw(struct rng *rng)
{
    const double v = rng_normal(rng);
    switch (rng_below(rng, 4)) {
    case 0:
        return (float)(v * 30);
    case 1:
        return (float)ldexp(v, -(int)rng_below(rng, 60));
    case 2:
        return (float)(v * 6);
    default:
        return (float)v;
    }
}

static void check_values(const struct cmoe_cpu_ops *ops, const struct cmoe_cpu_act *p,
                         struct rng *rng)
{
    static float gate[VALUES], up[VALUES], h[VALUES];
    for (int i = 0; i < VALUES; i++) {
        gate[i] = draw(rng);
        up[i] = draw(rng);
    }
    ops->act(p, VALUES, gate, p->gated ? up : NULL, h);
    for (int i = 0; i < VALUES; i++) {
        const double want = expected(p, (double)gate[i], (double)up[i]);
        /* The smallest normal times 2^16: below, exp itself has left the normal range. */
        const double bound = 16 * 0x1p-24 * fabs(want) + 0x1p-126 * 0x1p-8;
        if (!(fabs((double)h[i] - want) <= bound))
            fail_with("activation %d gated=%d: f(%a, %a) is %.9g, not %.9g +- %.2g", (int)p->act,
                      p->gated, (double)gate[i], (double)up[i], (double)h[i], want, bound);
    }
}

static void values_are_close(void **state)
{
    struct rng rng = {test_seed()};
    (void)state;
    for (int level = 0; level < CMOE_ISA_LEVELS; level++)
        for (int act = 0; act < CMOE_ACTIVATION_COUNT && table(level); act++)
            for (int mode = 0; mode < 4; mode++) {
                const struct cmoe_cpu_act p = parameters(act, mode & 1, mode & 2 ? 1.5f : INFINITY);
                check_values(table(level), &p, &rng);
            }
}

static void tails_do_not_matter(void **state)
{
    struct rng rng = {test_seed()};
    struct guard g;
    (void)state;
    guard_init(&g);
    for (int level = 0; level < CMOE_ISA_LEVELS; level++)
        for (int64_t n = 1; n <= 40 && table(level); n++) {
            const struct cmoe_cpu_act p = parameters((int)(n % CMOE_ACTIVATION_COUNT), true, 3);
            float *const gate = guard_alloc(&g, (size_t)n * 4, 4, GUARD_INPUT);
            float *const up = guard_alloc(&g, (size_t)n * 4, 4, GUARD_INPUT);
            float *const h = guard_alloc(&g, (size_t)n * 4, 4, GUARD_OUTPUT);
            for (int64_t i = 0; i < n; i++) {
                gate[i] = draw(&rng);
                up[i] = draw(&rng);
            }
            guard_freeze(&g);
            table(level)->act(&p, n, gate, up, h);
            for (int64_t i = 0; i < n; i++) {
                float alone;
                table(level)->act(&p, 1, gate + i, up + i, &alone);
                assert_same_bytes(&alone, &h[i], sizeof alone);
            }
            assert_true(guard_check(&g));
            guard_reset(&g);
        }
    guard_end(&g);
}

static void nan_and_infinity(void **state)
{
    (void)state;
    for (int level = 0; level < CMOE_ISA_LEVELS; level++)
        for (int act = 0; act < CMOE_ACTIVATION_COUNT && table(level); act++) {
            const struct cmoe_cpu_act p = parameters(act, true, INFINITY);
            const struct cmoe_cpu_act clamped = parameters(act, true, 2);
            const float gate[] = {NAN, 1, INFINITY, 88, 3e38f, INFINITY};
            const float up[] = {1, NAN, 1, 1, 1, INFINITY};
            float h[6];
            table(level)->act(&p, 5, gate, up, h);
            assert_true(isnan(h[0]) && isnan(h[1]));
            for (int i = 2; i < 5; i++) {
                const double want = expected(&p, (double)gate[i], 1);
                const float got = h[i];
                assert_true(got == (float)want || fabs((double)got / want - 1) < 1e-6);
            }
            table(level)->act(&clamped, 6, gate, up, h);
            assert_true(isnan(h[0]) && isnan(h[1]));
            assert_true(fabs((double)h[5] - expected(&clamped, 2, 2)) < 1e-5);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(values_are_close),
        cmocka_unit_test(tails_do_not_matter),
        cmocka_unit_test(nan_and_infinity),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
