/* SPDX-License-Identifier: MIT
 * ctest: labels=kernels
 * Any interval of stages is a plan. The eight stages are run one by one on ref, keeping what lies
 * between them; then every interval [first, last] on both devices must make, from what lies before
 * `first`, the bits that lie behind `last` (inputs are exact). Pointers that an interval does not use
 * are garbage, because the rest of cmoe_tensors is ignored. */
#include "harness_call.h"

#include <stdlib.h>
#include <string.h>

static const char *const problems[] = {
    "t=6 e=5 k=2 h=48 i=32 act=relu scheme=bf16",
    "t=6 e=5 k=2 h=48 i=32 act=relu scheme=f32 b1 b2 noreduce",
    "t=6 e=5 k=2 h=48 i=32 act=identity scheme=bf16 won=input",
    "t=6 e=5 k=2 h=48 i=32 act=relu scheme=fp8-token won=act",
    "t=6 e=5 k=2 h=48 i=32 act=relu scheme=fp8-tensor",
    "t=6 e=5 k=2 h=48 i=32 act=relu scheme=mxfp4-w4a8",
    "t=6 e=5 k=2 h=160 i=144 act=relu scheme=fp8-block",
    "t=6 e=5 k=2 h=48 i=32 act=relu scheme=int8-smooth midround",
    "t=6 e=5 k=2 h=64 i=32 act=relu scheme=mxfp4-w4a4",
    "t=6 e=5 k=2 h=64 i=32 act=relu scheme=int4-w4a16",
};
enum { PROBLEMS = sizeof problems / sizeof problems[0], STAGES = CMOE_STAGE_COUNT };

/* One buffer between stages: the field, the stage that makes it and its bytes. */
struct edge {
    size_t field; /* offset in cmoe_tensors of a pointer */
    cmoe_stage made;
    size_t bytes;
    bool wanted; /* exists in this problem */
    int dtype;   /* of its elements, where 0 and -0 are the same; CMOE_NONE: bytes */
};
enum { EDGES = 13 };

#define FIELD(name) offsetof(cmoe_tensors, name)

static size_t scales_of(cmoe_format f, int64_t rows, int64_t n)
{
    size_t scales = 0;
    expect_ok(cmoe_format_bytes(f, rows, n, NULL, &scales, NULL));
    return f.scaling == CMOE_SCALE_TENSOR ? 4 : scales;
}

static size_t codes_of(cmoe_format f, int64_t rows, int64_t n)
{
    return (size_t)rows * cmoe_dtype_bytes((cmoe_dtype)f.dtype, n);
}

static void list_edges(const cmoe_problem *p, struct edge *edges)
{
    const int64_t rows = (int64_t)p->max_tokens * cmoe_problem_slots(p);
    const bool by_slot = p->weight_on == CMOE_WEIGHT_ON_INPUT || p->x.scaling == CMOE_SCALE_SMOOTH;
    const int64_t x_rows = by_slot ? rows : p->max_tokens;
    const bool x_quantized = p->x.scaling != CMOE_SCALE_NONE;
    const bool quant = x_quantized || p->weight_on == CMOE_WEIGHT_ON_INPUT;
    const bool requant = p->mid.scaling != CMOE_SCALE_NONE;
    const size_t h = requant ? 4 : cmoe_dtype_bytes((cmoe_dtype)p->mid.dtype, 1);
    const size_t y = cmoe_dtype_bytes((cmoe_dtype)p->y, p->hidden);
    const int64_t y_rows = p->flags & CMOE_NO_REDUCE ? rows : p->max_tokens;
    const size_t local = (size_t)cmoe_problem_local_experts(p);
    const struct edge all[EDGES] = {
        {FIELD(topk_ids), CMOE_STAGE_ROUTE, (size_t)rows * 4, true, CMOE_NONE},
        {FIELD(topk_weights), CMOE_STAGE_ROUTE, (size_t)rows * 4, true, CMOE_F32},
        {FIELD(xq), CMOE_STAGE_QUANT, codes_of(p->x, x_rows, p->hidden), quant, p->x.dtype},
        {FIELD(xq_scale), CMOE_STAGE_QUANT, scales_of(p->x, x_rows, p->hidden),
         x_quantized && !(p->x.fixed && p->x.scaling == CMOE_SCALE_TENSOR), CMOE_NONE},
        {FIELD(xq_global), CMOE_STAGE_QUANT, (size_t)x_rows * 4, p->x.scaling == CMOE_SCALE_NV,
         CMOE_NONE},
        {FIELD(sorted_ids), CMOE_STAGE_SORT, (size_t)rows * 4, true, CMOE_NONE},
        {FIELD(expert_offsets), CMOE_STAGE_SORT, (local + 1) * 4, true, CMOE_NONE},
        {FIELD(gate_up), CMOE_STAGE_GEMM1, (size_t)(rows * cmoe_problem_rows1(p)) * 4, true,
         CMOE_F32},
        {FIELD(mid), CMOE_STAGE_ACT, (size_t)(rows * p->inter) * h, true,
         requant ? CMOE_F32 : p->mid.dtype},
        {FIELD(mid_q), CMOE_STAGE_REQUANT, codes_of(p->mid, rows, p->inter), requant, p->mid.dtype},
        {FIELD(mid_q_scale), CMOE_STAGE_REQUANT, scales_of(p->mid, rows, p->inter),
         requant && !(p->mid.fixed && p->mid.scaling == CMOE_SCALE_TENSOR), CMOE_NONE},
        {FIELD(z), CMOE_STAGE_GEMM2, (size_t)(rows * p->hidden) * 4, true, CMOE_F32},
        {FIELD(y), CMOE_STAGE_COMBINE, (size_t)y_rows * y, true, p->y},
    };
    memcpy(edges, all, sizeof all);
}

static void **pointer_at(cmoe_tensors *t, const struct edge *e)
{
    return (void **)(void *)((char *)t + e->field);
}

/* The stage whose edge a plan that ends with `last` leaves behind. */
static bool leaves(const cmoe_problem *p, const struct edge *e, int last)
{
    const bool requant = p->mid.scaling != CMOE_SCALE_NONE;
    if (last == CMOE_STAGE_REQUANT && !requant) return e->made == CMOE_STAGE_ACT;
    return (int)e->made == last;
}

/* What an interval that begins at `first` finds: outputs of earlier stages. */
static bool finds(const struct edge *e, int first)
{
    return (int)e->made < first && e->made != CMOE_STAGE_QUANT;
}

struct chain {
    struct rig *rig;
    struct prepared *made;
    struct edge edges[EDGES];
    cmoe_tensors t; /* every edge's buffer */
};

/* Tensors of an interval: inputs from the chain, fresh outputs, garbage elsewhere. */
static cmoe_tensors interval_tensors(const struct chain *c, int first, int last)
{
    const cmoe_problem *const p = &c->made->call.problem;
    cmoe_tensors t = c->made->call.tensors;
    t.weights = c->made->canonical;
    t.x_stride = t.y_stride = 0;
    const bool quant = p->x.scaling != CMOE_SCALE_NONE || p->weight_on == CMOE_WEIGHT_ON_INPUT;
    if (first > CMOE_STAGE_QUANT && quant) {
        t.x = c->t.xq;
        if (!(p->x.fixed && p->x.scaling == CMOE_SCALE_TENSOR)) t.x_scale = c->t.xq_scale;
        t.x_global = c->t.xq_global;
    }
    for (int i = 0; i < EDGES; i++) {
        const struct edge *const e = &c->edges[i];
        void **const at = pointer_at(&t, e);
        const bool routing = e->made == CMOE_STAGE_ROUTE && first == CMOE_STAGE_ROUTE;
        if (e->wanted && leaves(p, e, last) && (int)e->made >= first) {
            *at = guard_alloc(&c->rig->guard, e->bytes, 4, GUARD_OUTPUT);
        } else if (e->wanted && finds(e, first)) {
            *at = *pointer_at((cmoe_tensors *)&c->t, e);
        } else {
            /* optional outputs of ROUTE are read where they are not NULL */
            *at = routing ? NULL : (void *)(uintptr_t)64;
        }
    }
    return t;
}

static bool same(const struct edge *e, const void *got, const void *want)
{
    if (memcmp(got, want, e->bytes) == 0) return true;
    const size_t bits = (size_t)cmoe_dtype_bits((cmoe_dtype)e->dtype);
    for (size_t i = 0; i < e->bytes && bits > 0; i += bits < 8 ? 1 : bits / 8) {
        uint32_t a = 0, b = 0;
        memcpy(&a, (const char *)got + i, bits < 8 ? 1 : bits / 8);
        memcpy(&b, (const char *)want + i, bits < 8 ? 1 : bits / 8);
        for (size_t shift = 0; shift < 8; shift += bits < 8 ? bits : 8) {
            const float va = cmoe_decode((cmoe_dtype)e->dtype, a >> shift);
            const float vb = cmoe_decode((cmoe_dtype)e->dtype, b >> shift);
            if (va != vb && a >> shift != b >> shift) return false;
        }
    }
    return bits > 0;
}

static void run_interval(const struct chain *c, cmoe_device *dev, int first, int last, bool keep)
{
    cmoe_problem p = c->made->call.problem;
    p.first = (uint8_t)first;
    p.last = (uint8_t)last;
    if (cmoe_problem_check(&p) != CMOE_OK) {
        fail_with("%d..%d is refused: %s", first, last, cmoe_last_error());
    }
    const cmoe_tensors t = interval_tensors(c, first, last);
    call_execute(c->rig, dev, &p, c->made->canonical, NULL, &t);
    for (int i = 0; i < EDGES; i++) {
        const struct edge *const e = &c->edges[i];
        if (!e->wanted || !leaves(&p, e, last)) continue;
        void *const got = *pointer_at((cmoe_tensors *)&t, e);
        void **const kept = pointer_at((cmoe_tensors *)&c->t, e);
        if (keep) {
            *kept = got;
        } else if (!same(e, got, *kept)) {
            char text[300];
            cmoe_problem_print(&p, text, sizeof text);
            print_error("\"%s\" differs behind %s, edge %d\n", text, cmoe_stage_name(e->made), i);
            assert_same_bytes(got, *kept, e->bytes);
        }
    }
}

static void check_problem(struct rig *rig, const char *text)
{
    const cmoe_problem p = test_problem(text);
    const char *why;
    if (!gen_exact_possible(&p, &why)) fail_with("%s: %s", text, why);
    struct gen_options options = call_options(&rig->guard, GEN_EXACT, test_seed());
    options.plain = true;
    struct prepared made;
    expect_ok(call_prepare(rig, &p, &options, &made));
    struct chain c = {.rig = rig, .made = &made, .t = made.call.tensors};
    list_edges(&p, c.edges);
    for (int stage = 0; stage < STAGES; stage++) {
        run_interval(&c, rig->ref, stage, stage, true);
    }
    /* The chain's end is the right result: nothing below compares zeros with zeros. */
    memcpy(made.call.tensors.y, c.t.y, (size_t)(made.call.y_rows * made.call.y_row));
    const struct outcome out = call_judge(&made.call, GEN_EXACT, made.want, NULL);
    if (out.kind != OUTCOME_OK) fail_with("%s stage by stage: %s", text, out.why);
    for (int first = 0; first < STAGES; first++) {
        for (int last = first; last < STAGES; last++) {
            run_interval(&c, rig->ref, first, last, false);
            run_interval(&c, rig->cpu, first, last, false);
        }
    }
    call_done(&made);
}

static void every_interval(void **state)
{
    for (int i = 0; i < PROBLEMS; i++) {
        check_problem(*state, problems[i]);
    }
}

/* NVFP4 has rounded block scales, so its inputs are not exact; ref against ref needs no exactness. */
static void nvfp4_round_trip(void **state)
{
    struct rig *const rig = *state;
    const cmoe_problem p = test_problem("t=5 e=4 k=2 h=64 i=48 stages=quant..combine "
                                        "scheme=nvfp4-w4a4");
    const struct gen_options options = call_options(&rig->guard, GEN_REAL, test_seed());
    struct prepared made;
    expect_ok(call_prepare(rig, &p, &options, &made));
    call_reset_y(rig, &made.call);
    call_execute(rig, rig->ref, &p, made.canonical, NULL, &made.call.tensors);
    void *const whole = call_y(&made.call);
    const size_t bytes = (size_t)(made.call.y_rows * made.call.y_row), rows = 5 * 2;
    cmoe_problem head = p, tail = p;
    head.last = CMOE_STAGE_REQUANT;
    tail.first = CMOE_STAGE_GEMM2;
    cmoe_tensors t = made.call.tensors;
    struct guard *const g = &rig->guard;
    t.mid_q = guard_alloc(g, codes_of(p.mid, rows, p.inter), 1, GUARD_OUTPUT);
    t.mid_q_scale = guard_alloc(g, scales_of(p.mid, rows, p.inter), 1, GUARD_OUTPUT);
    t.mid_q_global = guard_alloc(g, rows * 4, 4, GUARD_OUTPUT);
    call_execute(rig, rig->ref, &head, made.canonical, NULL, &t);
    cmoe_problem sort = p;
    sort.first = sort.last = CMOE_STAGE_SORT;
    t.sorted_ids = guard_alloc(g, rows * 4, 4, GUARD_OUTPUT);
    t.expert_offsets = guard_alloc(g, 5 * 4, 4, GUARD_OUTPUT);
    call_execute(rig, rig->ref, &sort, NULL, NULL, &t);
    call_reset_y(rig, &made.call);
    call_execute(rig, rig->ref, &tail, made.canonical, NULL, &t);
    void *const parts = call_y(&made.call);
    assert_same_bytes(parts, whole, bytes);
    t.mid_q_global = NULL;
    cmoe_plan *plan = NULL;
    expect_ok(cmoe_plan_create(rig->ref, &head, made.canonical, NULL, &plan));
    expect_error(
        cmoe_execute(plan, &t, test_workspace(g, plan), cmoe_plan_workspace_size(plan), NULL),
        CMOE_ERR_INVALID, "mid_q_global");
    cmoe_plan_destroy(plan);
    free(whole);
    free(parts);
    call_done(&made);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_interval),
        cmocka_unit_test(nvfp4_round_trip),
    };
    return cmocka_run_group_tests(tests, rig_setup, rig_teardown);
}
