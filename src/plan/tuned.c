/* SPDX-License-Identifier: MIT
 * Reading tuned tables: device,problem,tokens,kernel,us[,anything] a line.
 *
 * The text is untrusted. A line that is not exactly that is skipped, and what it can do is change
 * which of the valid rows is taken. */
#include "plan/tuned.h"

#include "core/fail.h"
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

struct field {
    const char *at;
    size_t len;
};

enum { FIELD_DEVICE, FIELD_PROBLEM, FIELD_TOKENS, FIELD_KERNEL, FIELD_US, FIELDS };

/* The first FIELDS comma-separated fields of a line; false if there are fewer. */
static bool split(const char *line, size_t len, struct field *field)
{
    for (int f = 0; f < FIELDS; f++) {
        const char *comma = memchr(line, ',', len);
        const size_t n = comma ? (size_t)(comma - line) : len;
        field[f] = (struct field){line, n};
        if (!comma) return f == FIELDS - 1;
        line += n + 1;
        len -= n + 1;
    }
    return true;
}

static bool is(struct field f, const char *text)
{
    return f.len == strlen(text) && memcmp(f.at, text, f.len) == 0;
}

/* A plain positive decimal number, at most 31 characters; negative if it is anything else. */
static double number(struct field f)
{
    char copy[32];
    if (f.len == 0 || f.len >= sizeof copy || strspn(f.at, "0123456789.") < f.len) return -1;
    memcpy(copy, f.at, f.len);
    copy[f.len] = 0;
    double whole = 0, scale = 0;
    for (const char *c = copy; *c; c++) {
        if (*c == '.') {
            if (scale != 0) return -1;
            scale = 1;
            continue;
        }
        whole = whole * 10 + (*c - '0');
        scale *= 10;
    }
    return scale > 1 ? whole / scale : whole;
}

static int row_named(struct field name)
{
    const struct cmoe_kernel *k;
    for (int i = 0; (k = cmoe__kernel_at(i, NULL)); i++)
        if (is(name, k->name)) return i;
    return -1;
}

static void take_line(struct cmoe_plan *plan, const struct field *f)
{
    const double tokens = number(f[FIELD_TOKENS]), us = number(f[FIELD_US]);
    if (us <= 0 || tokens < 1 || tokens > plan->p.max_tokens) return;
    const int row = row_named(f[FIELD_KERNEL]);
    const int bucket = cmoe__plan_bucket((int64_t)tokens);
    if (row >= 0 && bucket < plan->n_buckets) plan->tuned[row * plan->n_buckets + bucket] = us;
}

int cmoe_plan_device(const cmoe_plan *plan, char *buf, size_t len)
{
    char isa[32];
    if (!buf) len = 0;
    if (len > 0) buf[0] = 0;
    if (!plan) return 0;
    cmoe__props_isa(&plan->props, isa, sizeof isa);
    return snprintf(buf, len, "%s-%s-%dt", plan->dev->backend->name, isa, plan->props.threads);
}

cmoe_status cmoe__tuned_load(struct cmoe_plan *plan)
{
    const char *text = plan->ctx->tuned;
    char device[64], problem[24];
    if (!text) return CMOE_OK;
    int rows = 0;
    while (cmoe__kernel_at(rows, NULL))
        rows++;
    const size_t n = (size_t)rows * (size_t)plan->n_buckets;
    plan->tuned = cmoe__alloc(plan->ctx, n * sizeof *plan->tuned, 64);
    if (!plan->tuned) return CMOE_FAIL(CMOE_ERR_NO_MEMORY, "no memory for %zu tuned times", n);
    for (size_t i = 0; i < n; i++)
        plan->tuned[i] = -1;
    cmoe_plan_device(plan, device, sizeof device);
    snprintf(problem, sizeof problem, "%016" PRIx64, cmoe_problem_hash(&plan->p));
    while (*text) {
        size_t len = strcspn(text, "\n");
        const size_t next = len + (text[len] == '\n');
        if (len > 0 && text[len - 1] == '\r') len--;
        struct field f[FIELDS];
        if (split(text, len, f) && is(f[FIELD_DEVICE], device) && is(f[FIELD_PROBLEM], problem))
            take_line(plan, f);
        text += next;
    }
    return CMOE_OK;
}

double cmoe__tuned_us(const struct cmoe_plan *plan, int row, int bucket)
{
    return plan->tuned && bucket < plan->n_buckets ? plan->tuned[row * plan->n_buckets + bucket]
                                                   : -1;
}
