/* SPDX-License-Identifier: MIT
 * Routings for bench: uniform, Zipf, with one hot expert, or from a file.
 *
 * A token's experts are drawn one after the other from the distribution, without repetition. */
#include "cli/bench.h"
#include "cli/npy.h"
#include "cli/report.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static int read_given(const char *path, struct bench_routing *out)
{
    cmoe_array a;
    const int code = cli_npy_read(path, &a);
    if (code != CLI_OK) return code;
    const bool ids = a.dtype == CMOE_I32 || a.dtype == CMOE_I64;
    if (!ids || a.ndim != 2 || a.shape[0] < 1 || a.shape[1] < 1) {
        cmoe_array_free(&a);
        return cli_fail(CLI_BAD_DATA, "%s does not hold expert ids: i32 or i64 [tokens, slots]",
                        path);
    }
    out->rows = a.shape[0];
    out->columns = a.shape[1];
    out->given = malloc((size_t)(out->rows * out->columns) * sizeof *out->given);
    for (int64_t i = 0; out->given != NULL && i < out->rows * out->columns; i++) {
        int64_t id = 0;
        int32_t narrow = 0;
        memcpy(a.dtype == CMOE_I64 ? (void *)&id : (void *)&narrow,
               (const char *)a.data + i * (a.dtype == CMOE_I64 ? 8 : 4),
               a.dtype == CMOE_I64 ? 8 : 4);
        if (a.dtype == CMOE_I32) id = narrow;
        out->given[i] = id >= 0 && id <= INT32_MAX ? (int32_t)id : -1;
    }
    cmoe_array_free(&a);
    return out->given != NULL ? CLI_OK : cli_fail(CLI_NO_MEMORY, "out of memory");
}

int bench_routing_parse(const char *text, struct bench_routing *out)
{
    *out = (struct bench_routing){.text = text != NULL ? text : "uniform"};
    if (strcmp(out->text, "uniform") == 0) return CLI_OK;
    out->hot = strcmp(out->text, "hot") == 0;
    if (out->hot) return CLI_OK;
    if (strncmp(out->text, "zipf:", 5) != 0) return read_given(out->text, out);
    char *end = NULL;
    out->zipf = strtod(out->text + 5, &end);
    if (end == out->text + 5 || *end != '\0' || !(out->zipf > 0 && out->zipf <= 8))
        return cli_fail(CLI_USAGE, "bench: --routing=%.40s: the exponent is not a number in (0, 8]",
                        out->text);
    return CLI_OK;
}

void bench_routing_free(struct bench_routing *routing)
{
    free(routing->given);
    routing->given = NULL;
}

/* Experts by rank, with the sums of their shares. */
struct shares {
    int32_t *order;
    double *sum;
    unsigned char *used, *group;
    int32_t n, per_group;
};

static bool make_shares(const struct bench_routing *routing, const cmoe_problem *p,
                        struct gen_rng *rng, struct shares *out)
{
    const int32_t n =
        (p->flags & CMOE_LOCAL_IDS) != 0 ? cmoe_problem_local_experts(p) - p->shared : p->experts;
    *out = (struct shares){
        .n = n,
        .per_group = p->groups > 0 ? p->experts / p->groups : 0,
        .order = malloc((size_t)n * sizeof(int32_t)),
        .sum = malloc((size_t)n * sizeof(double)),
        .used = calloc((size_t)n, 1),
        .group = calloc((size_t)n, 1),
    };
    if (out->order == NULL || out->sum == NULL || out->used == NULL || out->group == NULL)
        return false;
    double total = 0;
    for (int32_t i = 0; i < n; i++) {
        const int32_t j = (int32_t)gen_below(rng, i + 1);
        out->order[i] = out->order[j];
        out->order[j] = i;
        total += pow(i + 1, -routing->zipf);
        out->sum[i] = total;
    }
    return true;
}

static void free_shares(struct shares *s)
{
    free(s->order);
    free(s->sum);
    free(s->used);
    free(s->group);
}

/* The groups of a token that its experts may come from. */
static void draw_groups(const cmoe_problem *p, struct gen_rng *rng, struct shares *s)
{
    memset(s->group, s->per_group > 0 ? 0 : 1, (size_t)s->n);
    for (int32_t kept = 0; s->per_group > 0 && kept < p->groups_kept;) {
        const int64_t g = gen_below(rng, p->groups);
        kept += s->group[g * s->per_group] == 0;
        memset(s->group + g * s->per_group, 1, (size_t)s->per_group);
    }
}

static int32_t draw_one(struct gen_rng *rng, const struct shares *s)
{
    for (int tries = 0; tries < 256; tries++) {
        const double at = gen_unit(rng) * s->sum[s->n - 1];
        int32_t low = 0, high = s->n - 1;
        while (low < high) {
            const int32_t middle = (low + high) / 2;
            if (s->sum[middle] > at)
                high = middle;
            else
                low = middle + 1;
        }
        const int32_t e = s->order[low];
        if (!s->used[e] && s->group[e]) return e;
    }
    for (int32_t i = 0; i < s->n; i++)
        if (!s->used[s->order[i]] && s->group[s->order[i]]) return s->order[i];
    return -1;
}

static void draw_token(const struct bench_routing *routing, const cmoe_problem *p,
                       struct gen_rng *rng, struct shares *s, int32_t *ids)
{
    draw_groups(p, rng, s);
    for (int32_t k = 0; k < p->topk; k++) {
        const int32_t first = s->order[0];
        ids[k] = k == 0 && routing->hot && s->group[first] ? first : draw_one(rng, s);
        if (ids[k] >= 0) s->used[ids[k]] = 1;
    }
    for (int32_t k = 0; k < p->topk; k++)
        if (ids[k] >= 0) s->used[ids[k]] = 0;
    for (int32_t j = 0; j < p->shared; j++)
        ids[p->topk + j] = s->n + j;
}

cmoe_status bench_routing_draw(const struct bench_routing *routing, const cmoe_problem *p,
                               struct gen_rng *rng, int64_t tokens, int32_t *ids)
{
    const int64_t slots = cmoe_problem_slots(p);
    if (routing->given != NULL) {
        const int64_t start = gen_below(rng, routing->rows);
        for (int64_t t = 0; t < tokens; t++)
            for (int64_t k = 0; k < slots; k++)
                ids[t * slots + k] =
                    routing->given[(start + t) % routing->rows * routing->columns +
                                   (k < routing->columns ? k : routing->columns - 1)];
        return CMOE_OK;
    }
    struct shares shares;
    const bool made = make_shares(routing, p, rng, &shares);
    for (int64_t t = 0; made && t < tokens; t++)
        draw_token(routing, p, rng, &shares, ids + t * slots);
    free_shares(&shares);
    return made ? CMOE_OK : CMOE_ERR_NO_MEMORY;
}
