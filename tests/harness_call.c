/* SPDX-License-Identifier: MIT
 * Running generated calls: plan, weights in the formats it reads, reference, execution, comparison. */
#include "harness_call.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char running[1024]; /* what a fault is reported with */

void rig_open(struct rig *rig, int threads)
{
    rig->ctx = test_context(threads, NULL);
    rig->ref = test_device(rig->ctx, "ref");
    rig->cpu = test_device(rig->ctx, "cpu");
    guard_init(&rig->guard);
}

void rig_close(struct rig *rig)
{
    guard_end(&rig->guard);
    cmoe_device_close(rig->ref);
    cmoe_device_close(rig->cpu);
    cmoe_context_destroy(rig->ctx);
}

int rig_setup(void **state)
{
    static struct rig rig;
    rig_open(&rig, 2);
    *state = &rig;
    return 0;
}

int rig_teardown(void **state)
{
    rig_close(*state);
    return 0;
}

/* Aligned to what divides the size, up to a double: the element's alignment, and often no more. */
static void *guarded(void *user, size_t bytes, bool input)
{
    const size_t align = bytes % 8 == 0 ? 8 : bytes % 4 == 0 ? 4 : bytes % 2 == 0 ? 2 : 1;
    return guard_alloc(user, bytes, align, input ? GUARD_INPUT : GUARD_OUTPUT);
}

struct gen_options call_options(struct guard *g, enum gen_kind kind, uint64_t seed)
{
    return (struct gen_options){.kind = kind, .seed = seed, .alloc = guarded, .user = g};
}

void call_repro(const cmoe_problem *p, const struct gen_options *options, char *buf, size_t len)
{
    char text[512];
    cmoe_problem_print(p, text, sizeof text);
    snprintf(buf, len, "cmoe check --problem \"%s\" --seed %llu  (%s inputs)", text,
             (unsigned long long)options->seed, options->kind == GEN_EXACT ? "exact" : "real");
}

cmoe_status call_weights(cmoe_device *dev, const struct gen_call *call, const cmoe_plan *plan,
                         cmoe_weights **out)
{
    cmoe_weights_desc desc = call->weights;
    const char *const format1 = plan ? cmoe_plan_weight_format(plan, 1) : "none";
    const char *const format2 = plan ? cmoe_plan_weight_format(plan, 2) : "none";
    desc.format1 = strcmp(format1, "none") == 0 ? NULL : format1;
    desc.format2 = strcmp(format2, "none") == 0 ? NULL : format2;
    return cmoe_weights_create(dev, &call->problem, &desc, out);
}

void *call_y(const struct gen_call *call)
{
    char *const y = malloc((size_t)(call->y_rows * call->y_row) + 1);
    if (!y) abort();
    for (int64_t r = 0; r < call->y_rows; r++) {
        /* Batched rows past an expert's count are not written; the reference has 0 there. */
        char *const row = y + r * call->y_row;
        if (gen_y_row_counts(call, r))
            memcpy(row, gen_y_row(call, r), (size_t)call->y_row);
        else
            memset(row, 0, (size_t)call->y_row);
    }
    return y;
}

static void on_fault(int sig)
{
    const ssize_t n = write(STDERR_FILENO, running, strlen(running));
    (void)n;
    signal(sig, SIG_DFL);
    raise(sig);
}

void call_report_faults(void)
{
    signal(SIGSEGV, on_fault);
    signal(SIGBUS, on_fault);
    signal(SIGFPE, on_fault);
    signal(SIGABRT, on_fault);
}

static void announce(const cmoe_problem *p, const struct gen_options *options)
{
    char repro[900];
    call_repro(p, options, repro, sizeof repro);
    snprintf(running, sizeof running, "fault in: %s\n", repro);
}

static struct outcome outcome(enum outcome_kind kind, const char *what)
{
    struct outcome out = {.kind = kind};
    snprintf(out.why, sizeof out.why, "%s: %s", what, cmoe_last_error());
    return out;
}

/* Share of zeros among the expected values that count, in rows that are not zero altogether (their
 * slots belong to other ranks): 1 when there is no such row. */
static double share_of_zeros(const struct gen_call *call, const double *want)
{
    const int64_t H = call->problem.hidden, used = H - call->problem.hidden_pad;
    int64_t zeros = 0, n = 0;
    for (int64_t r = 0; r < call->y_rows; r++) {
        int64_t here = 0;
        for (int64_t c = 0; c < used; c++) {
            here += want[r * H + c] == 0;
        }
        if (here == used) continue;
        zeros += here;
        n += used;
    }
    return n ? (double)zeros / (double)n : 1;
}

struct outcome call_judge(const struct gen_call *call, enum gen_kind kind, double *want,
                          const double *bound)
{
    struct outcome out = {.kind = OUTCOME_OK};
    const cmoe_problem *const p = &call->problem;
    const int64_t n = call->y_rows * p->hidden;
    void *const y = call_y(call);
    /* An exact result still has its one rounding to y's type. */
    for (int64_t i = 0; kind == GEN_EXACT && i < n; i++) {
        want[i] =
            (double)cmoe_decode((cmoe_dtype)p->y, cmoe_encode((cmoe_dtype)p->y, (float)want[i]));
    }
    const struct comparison c =
        compare((cmoe_dtype)p->y, y, want, kind == GEN_EXACT ? NULL : bound, n);
    const double zeros = share_of_zeros(call, want);
    free(y);
    if (c.outside) {
        out.kind = OUTCOME_WRONG;
        snprintf(out.why, sizeof out.why,
                 "%lld of %lld outside; y[%lld, %lld] is %.9g, expected %.9g +- %.3g",
                 (long long)c.outside, (long long)c.n, (long long)(c.first / p->hidden),
                 (long long)(c.first % p->hidden), c.got, c.want, c.bound);
    } else if (zeros > 0.5) {
        out.kind = OUTCOME_MISTRUSTED;
        snprintf(out.why, sizeof out.why, "%.0f %% of the expected values are 0", 100 * zeros);
    }
    return out;
}

cmoe_status call_prepare(struct rig *rig, const cmoe_problem *p, const struct gen_options *options,
                         struct prepared *out)
{
    announce(p, options);
    guard_reset(&rig->guard);
    *out = (struct prepared){.kind = options->kind};
    cmoe_status status = gen_call_create(p, options, &out->call);
    if (status != CMOE_OK) return status;
    const size_t n = (size_t)(out->call.y_rows * p->hidden) + 1;
    out->want = malloc(2 * n * sizeof *out->want);
    if (!out->want) abort();
    out->bound = out->want + n;
    status = call_weights(rig->ref, &out->call, NULL, &out->canonical);
    guard_freeze(&rig->guard);
    if (status == CMOE_OK) {
        status =
            cmoe_reference(rig->ctx, p, out->canonical, &out->call.tensors, out->want, out->bound);
    }
    if (status != CMOE_OK) call_done(out);
    return status;
}

void call_done(struct prepared *prepared)
{
    cmoe_weights_destroy(prepared->canonical);
    gen_call_free(&prepared->call);
    free(prepared->want);
}

void call_reset_y(struct rig *rig, const struct gen_call *call)
{
    const size_t block = (size_t)(call->y_block * call->y_row);
    if (call->y_rows == 0) return;
    const size_t stride = call->tensors.y_stride ? (size_t)call->tensors.y_stride : block;
    const size_t bytes = (size_t)(call->y_rows / call->y_block) * stride;
    guard_poison(&rig->guard, call->tensors.y);
    memset(call->tensors.y, 0xff, bytes);
    if (call->y_before) memcpy(call->tensors.y, call->y_before, bytes);
}

static struct outcome execute(struct rig *rig, const struct prepared *prepared,
                              const cmoe_plan *plan, const cmoe_weights *w)
{
    cmoe_tensors t = prepared->call.tensors;
    t.weights = w;
    call_reset_y(rig, &prepared->call);
    void *const workspace = test_workspace(&rig->guard, plan);
    if (cmoe_execute(plan, &t, workspace, cmoe_plan_workspace_size(plan), NULL) != CMOE_OK) {
        return outcome(OUTCOME_WRONG, "cmoe_execute");
    }
    struct outcome out =
        call_judge(&prepared->call, prepared->kind, prepared->want, prepared->bound);
    const char *const damage = gen_call_damage(&prepared->call);
    if (damage || !guard_check(&rig->guard)) {
        out.kind = OUTCOME_WRONG;
        snprintf(out.why, sizeof out.why, "%s", damage ? damage : "wrote around a buffer");
    }
    return out;
}

struct outcome call_run(struct rig *rig, const struct prepared *prepared, cmoe_device *dev,
                        const char *pin)
{
    const cmoe_problem *const p = &prepared->call.problem;
    const cmoe_plan_options choose = {.struct_size = sizeof choose, .pin = pin};
    cmoe_plan *plan = NULL;
    if (cmoe_plan_create(dev, p, NULL, &choose, &plan) != CMOE_OK) {
        return outcome(OUTCOME_REFUSED, "cmoe_plan_create");
    }
    cmoe_weights *w = NULL;
    struct outcome out = call_weights(dev, &prepared->call, plan, &w) == CMOE_OK
                             ? execute(rig, prepared, plan, w)
                             : outcome(OUTCOME_WRONG, "cmoe_weights_create");
    cmoe_plan_path(plan, p->max_tokens, out.path, sizeof out.path);
    cmoe_weights_destroy(w);
    cmoe_plan_destroy(plan);
    return out;
}

struct outcome call_check(struct rig *rig, const cmoe_problem *p, const struct gen_options *options,
                          cmoe_device *dev, const char *pin)
{
    struct prepared prepared;
    if (call_prepare(rig, p, options, &prepared) != CMOE_OK) {
        return outcome(OUTCOME_WRONG, "inputs or cmoe_reference");
    }
    const struct outcome out = call_run(rig, &prepared, dev, pin);
    call_done(&prepared);
    return out;
}

void call_execute(struct rig *rig, cmoe_device *dev, const cmoe_problem *p, const cmoe_weights *w,
                  const char *pin, const cmoe_tensors *t)
{
    const cmoe_plan_options choose = {.struct_size = sizeof choose, .pin = pin};
    cmoe_plan *plan = NULL;
    expect_ok(cmoe_plan_create(dev, p, w, &choose, &plan));
    void *const workspace = test_workspace(&rig->guard, plan);
    expect_ok(cmoe_execute(plan, t, workspace, cmoe_plan_workspace_size(plan), NULL));
    assert_true(guard_check(&rig->guard));
    cmoe_plan_destroy(plan);
}
