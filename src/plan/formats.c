/* SPDX-License-Identifier: MIT
 * The choice of weight formats: a layer's weights are stored once, but every bucket of token counts
 * has its own cheapest path. Of all pairs (format of matrix 1, of matrix 2) whose paths cover every
 * bucket, take the one with the least weighted regret, sum of weight * log(cost / best cost), so
 * that a bucket counts by its weight and not by how long it takes. */
#include "plan/formats.h"

#include <math.h>
#include <string.h>

static bool add(const char **list, int *n, const char *format)
{
    for (int i = 0; i < *n; i++)
        if (strcmp(list[i], format) == 0) return true;
    if (*n == CMOE_PLAN_FORMATS) return false;
    list[(*n)++] = format;
    return true;
}

/* Whether weights of the problem can take a form. */
static bool holds(const struct cmoe_plan *plan, int matrix, const char *format)
{
    char why[160];
    const struct cmoe_packing_format *const packing = cmoe__packing_find(plan->dev, format);
    return !packing || packing->holds(&plan->p, matrix, why, sizeof why);
}

/* Formats that usable rows read for matrix 1 or 2; `only` restricts them. */
static int candidates(const struct cmoe_plan *plan, int matrix, const char *only, const char **list)
{
    const struct cmoe_backend *backend;
    const struct cmoe_kernel *k;
    int n = 0;
    if (only) {
        list[n++] = only;
        return n;
    }
    for (int i = 0; (k = cmoe__kernel_at(i, &backend)); i++) {
        const char *format = matrix == 1 ? k->format1 : k->format2;
        if (!format || !cmoe__backend_visible(backend, plan->dev) || k->first < plan->p.first ||
            k->last > plan->p.last || (plan->props.host && k->target > plan->props.isa))
            continue;
        if (!holds(plan, matrix, format)) continue;
        (void)add(list, &n, format);
    }
    if (n == 0) list[n++] = "";
    return n;
}

/* Best cost of every bucket over all pairs, or infinity. */
struct table {
    double best[CMOE_PLAN_BUCKETS];
    double cost[CMOE_PLAN_FORMATS * CMOE_PLAN_FORMATS][CMOE_PLAN_BUCKETS];
};

static double bucket_weight(const cmoe_plan_options *opt, int b)
{
    return opt->bucket_weight && b < opt->n_bucket_weight ? opt->bucket_weight[b] : 1.0;
}

bool cmoe__plan_choose_formats(struct cmoe_plan *plan, const cmoe_plan_options *opt,
                               const char *only1, const char *only2)
{
    const char *list1[CMOE_PLAN_FORMATS], *list2[CMOE_PLAN_FORMATS];
    const int n1 = candidates(plan, 1, only1, list1), n2 = candidates(plan, 2, only2, list2);
    struct table *table = cmoe__alloc(plan->ctx, sizeof *table, 64);
    if (!table) return false;
    for (int b = 0; b < plan->n_buckets; b++)
        table->best[b] = INFINITY;
    for (int pair = 0; pair < n1 * n2; pair++)
        for (int b = 0; b < plan->n_buckets; b++) {
            const double cost = cmoe__path_search(plan, cmoe__plan_bucket_tokens(&plan->p, b),
                                                  list1[pair / n2], list2[pair % n2], NULL);
            table->cost[pair][b] = cost;
            if (cost < table->best[b]) table->best[b] = cost;
        }
    int chosen = 0;
    double least = INFINITY;
    for (int pair = 0; pair < n1 * n2; pair++) {
        double regret = 0;
        for (int b = 0; b < plan->n_buckets; b++)
            regret += bucket_weight(opt, b) * log(table->cost[pair][b] / table->best[b]);
        if (regret < least) {
            least = regret;
            chosen = pair;
        }
    }
    plan->format1 = list1[chosen / n2];
    plan->format2 = list2[chosen % n2];
    for (int b = 0; b < plan->n_buckets; b++) {
        plan->path[b].cost_us = table->cost[chosen][b];
        plan->path[b].regret = log(table->cost[chosen][b] / table->best[b]);
    }
    cmoe__free(plan->ctx, table);
    return true;
}
