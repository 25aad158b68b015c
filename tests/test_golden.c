/* SPDX-License-Identifier: MIT
 * What other people's arithmetic says (PyTorch, ml_dtypes, transformers) against the reference and
 * every backend. tools/gen_golden.py wrote the outputs and never calls cmoe. */
/* ctest: labels=kernels,portable cost=60 */
#include "harness_golden.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define GOLDEN CMOE_TEST_DIR "/golden/"

enum { MAX_Y = 8192, MAX_SLOTS = 512, MAX_DEVICES = 4 };

/* One manifest with its outputs. */
struct golden_set {
    struct golden_list list;
    float *y, *weights;
    int32_t *ids;
    int64_t n_y, n_ids, n_weights;
};

struct state {
    struct golden_set own, hf;
    cmoe_context *ctx;
    /* Every host backend that is compiled in. */
    cmoe_device *devices[MAX_DEVICES];
    const char *device_names[MAX_DEVICES];
    int n_devices;
    struct guard guard;
};

/* u(f32): half the distance from 1 to the next float. */
static const double ulp = 0x1p-24;

static void open_devices(struct state *s)
{
    const char *name;
    char why[128];
    for (int i = 0; cmoe_backend_describe(i, &name, why, sizeof why); i++) {
        cmoe_device *device;
        cmoe_device_info info = {.struct_size = sizeof info};
        if (cmoe_device_open(s->ctx, name, &device) != CMOE_OK) continue;
        cmoe_device_describe(device, &info);
        if (!info.host) {
            cmoe_device_close(device);
            continue;
        }
        assert_true(s->n_devices < MAX_DEVICES);
        s->device_names[s->n_devices] = name;
        s->devices[s->n_devices++] = device;
    }
    assert_true(s->n_devices >= 1);
}

static int group_setup(void **out)
{
    struct state *const s = calloc(1, sizeof *s);
    assert_non_null(s);
    golden_read(GOLDEN "manifest.txt", &s->own.list);
    s->own.y = golden_array(GOLDEN "layers.npy", &s->own.n_y);
    s->own.ids = golden_array(GOLDEN "router_ids.npy", &s->own.n_ids);
    s->own.weights = golden_array(GOLDEN "router_weights.npy", &s->own.n_weights);
    golden_read(GOLDEN "hf.txt", &s->hf.list);
    s->hf.y = golden_array(GOLDEN "hf.npy", &s->hf.n_y);
    s->hf.ids = golden_array(GOLDEN "hf_ids.npy", &s->hf.n_ids);
    s->hf.weights = golden_array(GOLDEN "hf_weights.npy", &s->hf.n_weights);
    s->ctx = test_context(0, NULL);
    open_devices(s);
    guard_init(&s->guard);
    *out = s;
    return 0;
}

static int group_teardown(void **state)
{
    struct state *const s = *state;
    struct golden_set *const sets[] = {&s->own, &s->hf};
    for (int i = 0; i < s->n_devices; i++)
        cmoe_device_close(s->devices[i]);
    for (int i = 0; i < 2; i++) {
        golden_free(&sets[i]->list);
        free(sets[i]->y);
        free(sets[i]->ids);
        free(sets[i]->weights);
    }
    cmoe_context_destroy(s->ctx);
    guard_end(&s->guard);
    free(s);
    return 0;
}

static cmoe_problem problem_of(const struct golden_case *c)
{
    cmoe_problem p = test_problem(c->problem);
    const bool layer = c->kind == GOLDEN_LAYER && p.router != CMOE_ROUTE_ALL;
    const bool router = c->kind == GOLDEN_ROUTER || c->kind == GOLDEN_HF_ROUTER;
    p.first = layer ? CMOE_STAGE_QUANT : CMOE_STAGE_ROUTE;
    p.last = router ? CMOE_STAGE_ROUTE : CMOE_STAGE_COMBINE;
    if (router && p.hidden == 0) p.hidden = p.inter = 1;
    return p;
}

static void execute(struct state *s, int device, const cmoe_problem *p, const cmoe_weights *w,
                    const cmoe_tensors *t)
{
    cmoe_plan *plan;
    expect_ok(cmoe_plan_create(s->devices[device], p, w, NULL, &plan));
    void *const workspace = test_workspace(&s->guard, plan);
    expect_ok(cmoe_execute(plan, t, workspace, cmoe_plan_workspace_size(plan), NULL));
    cmoe_plan_destroy(plan);
}

/* --- layers -------------------------------------------------------------------------------------*/

static void *fresh_y(struct state *s, const cmoe_problem *p, const struct golden_inputs *in)
{
    const size_t size = (size_t)cmoe_dtype_bits((cmoe_dtype)p->y) / 8;
    const size_t bytes = (size_t)in->y_count * size;
    void *const y = guard_alloc(&s->guard, bytes, size, GUARD_OUTPUT);
    if (in->y0) memcpy(y, in->y0, bytes);
    return y;
}

/* Batched rows past an expert's count are nobody's: what y has there is not compared. */
static void clear_unused(const cmoe_problem *p, const struct golden_inputs *in, void *y,
                         size_t size)
{
    const int64_t n = p->capacity > 0 ? cmoe_problem_local_experts(p) : 0;
    const size_t row = (size_t)p->hidden * size;
    for (int64_t e = 0; e < n; e++) {
        const int64_t used = in->tensors.expert_offsets[e];
        memset((char *)y + (size_t)(e * p->capacity + used) * row, 0,
               (size_t)(p->capacity - used) * row);
    }
}

static void report(const struct golden_case *c, const char *who, const struct comparison *r)
{
    if (r->outside > 0)
        fail_with("%s: %s is outside the bound in %lld of %lld, first at %lld: %.9g instead of "
                  "%.9g +- %.3g: %s",
                  c->name, who, (long long)r->outside, (long long)r->n, (long long)r->first, r->got,
                  r->want, r->bound, c->problem);
}

/* ||got - want|| / ||want||. */
static double distance(const double *got, const double *want, int64_t n)
{
    double error = 0, size = 0;
    for (int64_t i = 0; i < n; i++) {
        error += (got[i] - want[i]) * (got[i] - want[i]);
        size += want[i] * want[i];
    }
    return sqrt(error / size);
}

/* Values that a zero would not pass for: the case says something. */
static bool telling(const double *want, const double *bound, int64_t n)
{
    int64_t count = 0;
    for (int64_t i = 0; i < n; i++)
        count += fabs(want[i]) > bound[i];
    return 4 * count >= n;
}

/* Returns how far cmoe_reference is from the golden, as a whole. */
static double check_layer(struct state *s, const struct golden_case *c, const float *golden)
{
    static double want[MAX_Y], bound[MAX_Y], y[MAX_Y];
    static float rounded[MAX_Y];
    const cmoe_problem p = problem_of(c);
    struct golden_inputs in;
    cmoe_weights *w;
    guard_reset(&s->guard);
    golden_inputs_make(&s->guard, c, &p, &in);
    assert_true(in.y_count == c->count && c->count <= MAX_Y);
    guard_freeze(&s->guard);
    expect_ok(cmoe_weights_create(s->devices[0], &p, &in.weights, &w));
    in.tensors.y = fresh_y(s, &p, &in);
    expect_ok(cmoe_reference(s->ctx, &p, w, &in.tensors, y, bound));
    clear_unused(&p, &in, y, sizeof y[0]);
    for (int64_t i = 0; i < c->count; i++) {
        want[i] = (double)golden[i];
        bound[i] += ulp * fabs(want[i]); /* goldens are stored in f32 */
        rounded[i] = (float)y[i];
    }
    if (!telling(want, bound, c->count)) fail_with("%s: zeros would pass", c->name);
    struct comparison r = compare(CMOE_F32, rounded, want, bound, c->count);
    report(c, "cmoe_reference", &r);
    const double far = distance(y, want, c->count);
    cmoe_weights_destroy(w);
    for (int d = 0; d < s->n_devices; d++) {
        expect_ok(cmoe_weights_create(s->devices[d], &p, &in.weights, &w));
        in.tensors.y = fresh_y(s, &p, &in);
        execute(s, d, &p, w, &in.tensors);
        clear_unused(&p, &in, in.tensors.y, (size_t)cmoe_dtype_bits((cmoe_dtype)p.y) / 8);
        r = compare((cmoe_dtype)p.y, in.tensors.y, want, bound, c->count);
        report(c, s->device_names[d], &r);
        cmoe_weights_destroy(w);
    }
    assert_true(guard_check(&s->guard));
    return far;
}

/* The reference replays the same roundings in fp64, so it must not merely be within the bound: it
 * is at the golden, but for the odd value that falls to the other side of a rounding boundary. */
static void check_layers(struct state *s, const struct golden_set *set, enum golden_kind kind,
                         int64_t at_least)
{
    int64_t done = 0, flipped = 0;
    for (int64_t i = 0; i < set->list.n; i++) {
        const struct golden_case *const c = &set->list.cases[i];
        if (c->kind != kind || (test_short() && kind == GOLDEN_LAYER && i % 7 != 0)) continue;
        assert_true(c->offset >= 0 && c->offset + c->count <= set->n_y);
        flipped += check_layer(s, c, set->y + c->offset) > 1e-6;
        done++;
    }
    assert_true(done >= at_least);
    if (100 * flipped > done)
        fail_with("cmoe_reference is not at the golden in %lld of %lld cases", (long long)flipped,
                  (long long)done);
}

static void layers_agree_with_torch(void **state)
{
    struct state *const s = *state;
    check_layers(s, &s->own, GOLDEN_LAYER, test_short() ? 128 : 900);
}

static void blocks_agree_with_transformers(void **state)
{
    struct state *const s = *state;
    check_layers(s, &s->hf, GOLDEN_HF_LAYER, 14);
}

/* --- routers ------------------------------------------------------------------------------------*/

/* The first k of every row of S slots, by ascending id. */
static void routed_by_id(int32_t *ids, float *weights, int64_t rows, int64_t slots, int64_t k)
{
    for (int64_t t = 0; t < rows; t++) {
        for (int64_t j = 0; j < k; j++) {
            const int32_t id = ids[t * slots + j];
            const float w = weights[t * slots + j];
            int64_t at = t * k + j;
            for (; at > t * k && ids[at - 1] > id; at--) {
                ids[at] = ids[at - 1];
                weights[at] = weights[at - 1];
            }
            ids[at] = id;
            weights[at] = w;
        }
    }
}

static void check_router(struct state *s, const struct golden_case *c, const int32_t *ids,
                         const float *weights)
{
    static double want[MAX_SLOTS], bound[MAX_SLOTS];
    const cmoe_problem p = problem_of(c);
    const int64_t slots = cmoe_problem_slots(&p), count = p.max_tokens * slots;
    assert_true(c->count <= count && count <= MAX_SLOTS);
    for (int64_t i = 0; i < c->count; i++) {
        want[i] = (double)weights[i];
        bound[i] = isfinite(want[i]) ? 32 * ulp * fabs(want[i]) : 0;
    }
    for (int d = 0; d < s->n_devices; d++) {
        struct golden_inputs in;
        guard_reset(&s->guard);
        golden_inputs_make(&s->guard, c, &p, &in);
        guard_freeze(&s->guard);
        int32_t *const got = guard_alloc(&s->guard, (size_t)count * 4, 4, GUARD_OUTPUT);
        float *const w = guard_alloc(&s->guard, (size_t)count * 4, 4, GUARD_OUTPUT);
        in.tensors.topk_ids = got;
        in.tensors.topk_weights = w;
        execute(s, d, &p, NULL, &in.tensors);
        assert_true(guard_check(&s->guard));
        if (c->kind == GOLDEN_HF_ROUTER) routed_by_id(got, w, p.max_tokens, slots, p.topk);
        for (int64_t i = 0; i < c->count; i++)
            if (got[i] != ids[i])
                fail_with("%s: %s chooses %d, not %d, at %lld: %s", c->name, s->device_names[d],
                          got[i], ids[i], (long long)i, c->problem);
        const struct comparison r = compare(CMOE_F32, w, want, bound, c->count);
        report(c, s->device_names[d], &r);
    }
}

static void check_routers(struct state *s, const struct golden_set *set, enum golden_kind kind,
                          int64_t at_least)
{
    int64_t done = 0;
    for (int64_t i = 0; i < set->list.n; i++) {
        const struct golden_case *const c = &set->list.cases[i];
        if (c->kind != kind) continue;
        assert_true(c->offset >= 0 && c->offset + c->count <= set->n_ids);
        check_router(s, c, set->ids + c->offset, set->weights + c->offset);
        done++;
    }
    assert_true(done >= at_least);
}

static void routers_agree_with_torch(void **state)
{
    struct state *const s = *state;
    check_routers(s, &s->own, GOLDEN_ROUTER, 140);
}

static void routers_agree_with_transformers(void **state)
{
    struct state *const s = *state;
    check_routers(s, &s->hf, GOLDEN_HF_ROUTER, 14);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(layers_agree_with_torch),
        cmocka_unit_test(blocks_agree_with_transformers),
        cmocka_unit_test(routers_agree_with_torch),
        cmocka_unit_test(routers_agree_with_transformers),
    };
    return cmocka_run_group_tests(tests, group_setup, group_teardown);
}
