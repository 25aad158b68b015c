/* SPDX-License-Identifier: MIT
 * What a plan does and why: steps with costs, formats with regret, every rejected row's reason. */
#include "plan/pin.h"
#include "plan/plan.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* snprintf that appends and keeps counting past the end. */
struct text {
    char *buf;
    size_t len, used;
};

CMOE_PRINTF(2, 3) static void say(struct text *t, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    const size_t room = t->used < t->len ? t->len - t->used : 0;
    const int n = vsnprintf(room ? t->buf + t->used : NULL, room, format, args);
    va_end(args);
    if (n > 0) t->used += (size_t)n;
}

static const struct cmoe_path *path_for(const cmoe_plan *plan, int tokens)
{
    const int b = cmoe__plan_bucket(tokens < 1 ? 1 : tokens);
    return &plan->path[b < plan->n_buckets ? b : plan->n_buckets - 1];
}

int cmoe_plan_path(const cmoe_plan *plan, int tokens, char *buf, size_t len)
{
    struct text t = {.buf = buf, .len = buf ? len : 0};
    if (t.len > 0) buf[0] = 0;
    if (!plan) return 0;
    const struct cmoe_path *path = path_for(plan, tokens);
    for (int i = 0; i < path->n_steps; i++)
        say(&t, "%s%s", i ? " > " : "", path->step[i].kernel->name);
    return (int)t.used;
}

static bool in_path(const struct cmoe_path *path, const struct cmoe_kernel *k)
{
    for (int i = 0; i < path->n_steps; i++)
        if (path->step[i].kernel == k) return true;
    return false;
}

static bool format_fits(const char *planned, const char *read)
{
    return !read || !planned || !*planned || strcmp(planned, read) == 0;
}

static void say_rejected(struct text *t, const cmoe_plan *plan, const struct cmoe_path *path)
{
    const struct cmoe_query q = cmoe__plan_query(plan, path->tokens);
    const uint32_t pinned = cmoe__pin_stages(plan, &q);
    const struct cmoe_backend *backend;
    const struct cmoe_kernel *k;
    say(t, "  not used:\n");
    for (int i = 0; (k = cmoe__kernel_at(i, &backend)); i++) {
        struct cmoe_why why = {{0}};
        struct cmoe_edge out;
        if (in_path(path, k)) continue;
        say(t, "    %-52s ", k->name);
        if (!cmoe__backend_visible(backend, plan->dev))
            say(t, "a row of %s, the device is %s\n", backend->name, plan->dev->backend->name);
        else if (k->first < plan->p.first || k->last > plan->p.last)
            say(t, "covers stages outside the plan\n");
        else if (!cmoe__kernel_usable(k, &q, cmoe__usual_edge(&plan->p, k->first), &out, &why))
            say(t, "%s\n", why.text);
        else if (!format_fits(plan->format1, k->format1) || !format_fits(plan->format2, k->format2))
            say(t, "reads weights as %s, the plan keeps %s\n", k->format1 ? k->format1 : k->format2,
                k->format1 ? cmoe_plan_weight_format(plan, 1) : cmoe_plan_weight_format(plan, 2));
        else if (cmoe__pin_excludes(plan, i, pinned))
            say(t, "excluded by the pin \"%s\"\n", plan->pin);
        else
            say(t, "estimated %.1f us, dearer\n", k->family->cost_us(k, &q));
    }
}

static void say_path(struct text *t, const cmoe_plan *plan, const struct cmoe_path *path)
{
    say(t,
        "tokens <= %d: %.1f us estimated for %d threads, workspace %zu bytes, regret of the weight "
        "formats %.3f\n",
        path->tokens, path->cost_us, CMOE_COST_THREADS, path->arena.total, path->regret);
    for (int stage = plan->p.first; stage <= plan->p.last; stage++)
        if (cmoe__plan_skips(&plan->shape, stage))
            say(t, "  %-18s nothing to do\n", cmoe_stage_name((cmoe_stage)stage));
    for (int i = 0; i < path->n_steps; i++) {
        const struct cmoe_kernel *k = path->step[i].kernel;
        char span[40];
        if (k->last + 1 == k->first)
            snprintf(span, sizeof span, "(convert)");
        else if (k->first == k->last)
            snprintf(span, sizeof span, "%s", cmoe_stage_name((cmoe_stage)k->first));
        else
            snprintf(span, sizeof span, "%s..%s", cmoe_stage_name((cmoe_stage)k->first),
                     cmoe_stage_name((cmoe_stage)k->last));
        say(t, "  %-18s %-52s %10.1f us\n", span, k->name, path->step[i].cost_us);
    }
}

double cmoe_plan_estimate(const cmoe_plan *plan, int tokens)
{
    return plan ? path_for(plan, tokens)->cost_us : 0;
}

int cmoe_plan_explain(const cmoe_plan *plan, int tokens, char *buf, size_t len)
{
    struct text t = {.buf = buf, .len = buf ? len : 0};
    char problem[CMOE_PROBLEM_TEXT];
    if (t.len > 0) buf[0] = 0;
    if (!plan) return 0;
    cmoe_problem_print(&plan->p, problem, sizeof problem);
    say(&t, "problem: %s\n", problem);
    say(&t, "hash: %016" PRIx64 "\n", cmoe_problem_hash(&plan->p));
    char device[64];
    cmoe_plan_device(plan, device, sizeof device);
    say(&t, "device: %s (%s)\n", device, plan->props.name);
    say(&t, "weights: matrix 1 %s, matrix 2 %s\n", cmoe_plan_weight_format(plan, 1),
        cmoe_plan_weight_format(plan, 2));
    if (plan->chunk < plan->p.max_tokens)
        say(&t, "passes: %d tokens at a time, to keep the workspace limit\n", plan->chunk);
    if (tokens > 0) {
        say_path(&t, plan, path_for(plan, tokens));
        say_rejected(&t, plan, path_for(plan, tokens));
        return (int)t.used;
    }
    for (int b = 0; b < plan->n_buckets; b++)
        say_path(&t, plan, &plan->path[b]);
    say_rejected(&t, plan, &plan->path[plan->n_buckets - 1]);
    return (int)t.used;
}
