/* SPDX-License-Identifier: MIT
 * Chains of kernels and the lines that they make. */
#include "cli/tune.h"

#include <cmoe/cmoe.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

struct tune_chain *tune_find(struct tune_point *point, const char *path)
{
    for (int i = 0; i < point->n; i++)
        if (strcmp(point->chain[i].path, path) == 0) return &point->chain[i];
    return NULL;
}

struct tune_chain *tune_add(struct tune_point *point, const char *path, double estimate)
{
    struct tune_chain *const found = tune_find(point, path);
    if (found != NULL || point->n == TUNE_CHAINS) return found;
    struct tune_chain *const chain = &point->chain[point->n++];
    *chain = (struct tune_chain){.estimate = estimate};
    snprintf(chain->path, sizeof chain->path, "%s", path);
    return chain;
}

const struct tune_chain *tune_best(const struct tune_point *point)
{
    const struct tune_chain *best = NULL;
    for (int i = 0; i < point->n; i++)
        if (point->chain[i].us > 0 && (best == NULL || point->chain[i].us < best->us))
            best = &point->chain[i];
    return best;
}

static int by_estimate(const void *a, const void *b)
{
    const double x = ((const struct tune_chain *)a)->estimate,
                 y = ((const struct tune_chain *)b)->estimate;
    return (x > y) - (x < y);
}

void tune_sort(struct tune_point *point)
{
    if (point->n > 1)
        qsort(point->chain + 1, (size_t)(point->n - 1), sizeof point->chain[0], by_estimate);
}

/* Calls `each` with every kernel's name. */
static void for_each_name(const char *path, void (*each)(const char *name, void *user), void *user)
{
    char copy[CLI_PATH_TEXT];
    snprintf(copy, sizeof copy, "%s", path);
    char *rest = NULL;
    for (char *name = strtok_r(copy, " >", &rest); name != NULL; name = strtok_r(NULL, " >", &rest))
        each(name, user);
}

struct pin {
    char *text;
    size_t len, used;
};

static void add_to_pin(const char *name, void *user)
{
    struct pin *const pin = user;
    const int n = snprintf(pin->text + pin->used, pin->len - pin->used, "%s%s",
                           pin->used > 0 ? "," : "", name);
    if (n > 0 && pin->used + (size_t)n < pin->len) pin->used += (size_t)n;
}

void tune_pin(const char *path, char *pin, size_t len)
{
    struct pin out = {.text = pin, .len = len};
    pin[0] = '\0';
    for_each_name(path, add_to_pin, &out);
}

/* ---- lines ---- */

enum { ROWS = 512, NAME = 96 };

struct rows {
    char name[ROWS][NAME];
    double us[ROWS];
    int n;
    const struct tune_chain *chain; /* whose rows are added */
    double known, parts;            /* us of rows that are there, shares of those that are not */
    double left;                    /* us for these */
};

static int find_row(const struct rows *rows, const char *name)
{
    for (int i = 0; i < rows->n; i++)
        if (strcmp(rows->name[i], name) == 0) return i;
    return -1;
}

/* What the step took where the chain was timed by steps; a conversion's is in another's. */
static double part_of(const struct tune_chain *chain, const char *name)
{
    cmoe_kernel_info row;
    for (int i = 0; cmoe_kernel_describe(i, &row); i++)
        if (strcmp(row.name, name) == 0)
            return !row.conversion && chain->stage_us[row.last] > 0 ? chain->stage_us[row.last]
                                                                    : 1e-3;
    return 1e-3;
}

static void sum_row(const char *name, void *user)
{
    struct rows *const rows = user;
    const int at = find_row(rows, name);
    if (at >= 0)
        rows->known += rows->us[at];
    else
        rows->parts += part_of(rows->chain, name);
}

static void add_row(const char *name, void *user)
{
    struct rows *const rows = user;
    if (find_row(rows, name) >= 0 || rows->n == ROWS) return;
    snprintf(rows->name[rows->n], NAME, "%s", name);
    rows->us[rows->n++] = rows->left * part_of(rows->chain, name) / rows->parts;
}

static void add_chain(struct rows *rows, const struct tune_chain *chain)
{
    rows->chain = chain;
    rows->known = rows->parts = 0;
    for_each_name(chain->path, sum_row, rows);
    rows->left = chain->us - rows->known;
    if (rows->left < 1e-3 * chain->us) rows->left = 1e-3 * chain->us;
    for_each_name(chain->path, add_row, rows);
}

/* The fastest that is slower than `than`, or as fast and behind it in the list. */
static const struct tune_chain *next_chain(const struct tune_point *point,
                                           const struct tune_chain *than)
{
    const struct tune_chain *next = NULL;
    for (int i = 0; i < point->n; i++) {
        const struct tune_chain *const c = &point->chain[i];
        const bool behind = than == NULL || c->us > than->us || (c->us == than->us && c > than);
        if (c->us > 0 && behind && (next == NULL || c->us < next->us)) next = c;
    }
    return next;
}

int tune_print(FILE *out, const char *device, const cmoe_problem *p, const struct tune_point *point)
{
    struct rows *const rows = calloc(1, sizeof *rows);
    if (rows == NULL) return 0;
    for (const struct tune_chain *c = next_chain(point, NULL); c != NULL; c = next_chain(point, c))
        add_chain(rows, c);
    char date[16] = "";
    const time_t now = time(NULL);
    struct tm day;
    if (gmtime_r(&now, &day) != NULL) strftime(date, sizeof date, "%Y-%m-%d", &day);
    for (int i = 0; i < rows->n; i++)
        fprintf(out, "%s,%016" PRIx64 ",%" PRId64 ",%s,%.3f,%s,%s\n", device, cmoe_problem_hash(p),
                point->tokens, rows->name[i], rows->us[i] < 1e-3 ? 1e-3 : rows->us[i], date,
                cmoe_version());
    const int n = rows->n;
    free(rows);
    return n;
}
