/* SPDX-License-Identifier: MIT
 * Pins. A row stays out of the search when a pinned row could do one of its stages; which rows the
 * globs name is found once per plan, since planning asks for every row of every bucket. */
#include "plan/pin.h"

#include "core/fail.h"
#include <fnmatch.h>
#include <string.h>

/* Whether a row's name matches one of the globs in a comma-separated list. */
static bool named(const char *pin, const char *name)
{
    char glob[160];
    for (const char *at = pin; *at;) {
        const size_t n = strcspn(at, ",");
        if (n < sizeof glob) {
            memcpy(glob, at, n);
            glob[n] = 0;
            if (fnmatch(glob, name, 0) == 0) return true;
        }
        at += n + (at[n] == ',');
    }
    return false;
}

cmoe_status cmoe__pin_set(struct cmoe_plan *plan, const char *pin)
{
    const struct cmoe_kernel *k;
    int rows = 0;
    if (!pin) return CMOE_OK;
    while (cmoe__kernel_at(rows, NULL))
        rows++;
    plan->pin = cmoe__strdup(plan->ctx, pin);
    plan->pinned = cmoe__calloc(plan->ctx, (size_t)rows * sizeof *plan->pinned, 64);
    if (!plan->pin || !plan->pinned) return CMOE_FAIL(CMOE_ERR_NO_MEMORY, "no memory for a pin");
    for (int i = 0; (k = cmoe__kernel_at(i, NULL)); i++)
        plan->pinned[i] = named(pin, k->name);
    return CMOE_OK;
}

/* Whether any layout that can lie before the row is accepted by it. */
static bool usable_somewhere(const struct cmoe_kernel *k, const struct cmoe_query *q)
{
    struct cmoe_edge out, in = cmoe__usual_edge(q->p, k->first);
    if (k->first < q->p->first || k->last > q->p->last) return false;
    if (cmoe__kernel_usable(k, q, in, &out, NULL)) return true;
    for (uint8_t layout = 0; layout < CMOE_EDGE_COUNT; layout++) {
        in = (struct cmoe_edge){.layout = layout, .block_m = (uint16_t)q->p->block_m};
        if (cmoe__kernel_usable(k, q, in, &out, NULL)) return true;
    }
    return false;
}

cmoe_status cmoe__pin_check(const struct cmoe_plan *plan)
{
    const struct cmoe_backend *backend;
    const struct cmoe_kernel *k;
    const struct cmoe_query q = cmoe__plan_query(plan, plan->p.max_tokens);
    struct cmoe_why why = {{0}};
    const char *refused = NULL;
    if (!plan->pin) return CMOE_OK;
    for (int i = 0; (k = cmoe__kernel_at(i, &backend)); i++) {
        struct cmoe_edge out;
        if (!cmoe__backend_visible(backend, plan->dev) || !plan->pinned[i]) continue;
        for (int b = 0; b < plan->n_buckets; b++) {
            struct cmoe_query at = q;
            at.tokens = cmoe__plan_bucket_tokens(&plan->p, b);
            if (k->last + 1 == k->first || usable_somewhere(k, &at)) return CMOE_OK;
            (void)cmoe__kernel_usable(k, &at, cmoe__usual_edge(&plan->p, k->first), &out, &why);
        }
        refused = k->name;
    }
    if (!refused)
        return CMOE_FAIL(CMOE_ERR_INVALID,
                         "pin \"%s\" matches no kernel of %s; \"cmoe list\" prints them", plan->pin,
                         plan->dev->backend->name);
    return CMOE_FAIL(CMOE_ERR_INVALID, "pin \"%s\" matches %s, which cannot be used here: %s",
                     plan->pin, refused,
                     why.text[0] ? why.text : "it covers stages outside the plan");
}

static uint32_t stages_of(const struct cmoe_kernel *k)
{
    uint32_t bits = 0;
    for (int stage = k->first; stage <= k->last; stage++)
        bits |= UINT32_C(1) << stage;
    return bits;
}

uint32_t cmoe__pin_stages(const struct cmoe_plan *plan, const struct cmoe_query *q)
{
    const struct cmoe_backend *backend;
    const struct cmoe_kernel *k;
    uint32_t bits = 0;
    for (int i = 0; plan->pin && (k = cmoe__kernel_at(i, &backend)); i++)
        if (plan->pinned[i] && cmoe__backend_visible(backend, plan->dev) && usable_somewhere(k, q))
            bits |= stages_of(k);
    return bits;
}

bool cmoe__pin_excludes(const struct cmoe_plan *plan, int i, uint32_t stages)
{
    return plan->pin && !plan->pinned[i] && (stages_of(cmoe__kernel_at(i, NULL)) & stages) != 0;
}
