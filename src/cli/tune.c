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

enum { STEPS = 32 };

/* A chain's kernels. */
struct names {
    char text[CLI_PATH_TEXT];
    const char *at[STEPS];
    int n;
};

static void split(const char *path, struct names *out)
{
    out->n = 0;
    snprintf(out->text, sizeof out->text, "%s", path);
    char *rest = NULL;
    for (char *name = strtok_r(out->text, " >", &rest); name != NULL && out->n < STEPS;
         name = strtok_r(NULL, " >", &rest))
        out->at[out->n++] = name;
}

void tune_pin(const char *path, char *pin, size_t len)
{
    struct names names;
    size_t used = 0;
    split(path, &names);
    pin[0] = '\0';
    for (int i = 0; i < names.n && used < len; i++)
        used += (size_t)snprintf(pin + used, len - used, "%s%s", i > 0 ? "," : "", names.at[i]);
}

/* ---- lines ---- */

enum { ROWS = 512, NAME = 96 };

struct rows {
    char name[ROWS][NAME];
    double us[ROWS];
    int n;
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

static void add_chain(struct rows *rows, const struct tune_chain *chain)
{
    struct names names;
    double left = chain->us, parts = 0; /* of rows that are not there yet */
    split(chain->path, &names);
    for (int i = 0; i < names.n; i++) {
        const int at = find_row(rows, names.at[i]);
        if (at >= 0)
            left -= rows->us[at];
        else
            parts += part_of(chain, names.at[i]);
    }
    left = left < 1e-3 * chain->us ? 1e-3 * chain->us : left;
    for (int i = 0; i < names.n; i++) {
        if (find_row(rows, names.at[i]) >= 0 || rows->n == ROWS) continue;
        snprintf(rows->name[rows->n], NAME, "%s", names.at[i]);
        rows->us[rows->n++] = left * part_of(chain, names.at[i]) / parts;
    }
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
