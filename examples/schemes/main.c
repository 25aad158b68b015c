/* SPDX-License-Identifier: MIT
 * cmoe-lm-schemes: what each quantisation scheme costs the language model of ../lm.
 *
 * A thread for each CPU takes one scheme after another and runs it on a context with one thread of
 * its own: that keeps attention busy too, which is serial within a scheme. */
#include "measure.h"

#include <getopt.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static const char usage[] =
    "usage: cmoe-lm-schemes [options] [SCHEME]...\n"
    "Prints bytes per weight, held-out perplexity and logit error of schemes (default: all).\n"
    "  --model DIR      Qwen3-MoE checkpoint over bytes with its texts (models/tiny-moe)\n"
    "  --device D       cpu, ref or cuda:N (a GPU if there is one, else cpu)\n"
    "  --windows N      windows of 512 bytes to compute the perplexity on (16)\n"
    "  --step N         bytes fed at a time for the logit error (512)\n"
    "  --max-error E    exit status 1 if a logit error is larger than E\n";

enum { MAX_ROWS = 64 };

struct row {
    const char *scheme;
    double bytes, perplexity, error;
    char device[96];
    int done;
};

struct table {
    struct lm lm;
    const char *device;
    int windows, step;
    struct row rows[MAX_ROWS];
    int n, next, done;
    pthread_mutex_t lock; /* guards next and done */
    pthread_cond_t changed;
};

static void measure(const struct table *t, struct row *row)
{
    struct lm_experts e;
    experts_open(&e, &t->lm, row->scheme, t->device);
    row->bytes = cmoe_quantized_bytes_per_weight(e.layers[0].quantized);
    row->error = logit_error(&e, t->step);
    snprintf(row->device, sizeof row->device, "%s", e.info.name);
    row->perplexity = t->windows > 0 ? perplexity(&e, t->windows) : 0;
    experts_close(&e);
}

static void *work(void *arg)
{
    struct table *const t = arg;
    pthread_mutex_lock(&t->lock);
    while (t->next < t->n) {
        struct row *const row = &t->rows[t->next++];
        pthread_mutex_unlock(&t->lock);
        measure(t, row);
        pthread_mutex_lock(&t->lock);
        row->done = 1;
        t->done++;
        pthread_cond_signal(&t->changed);
    }
    pthread_mutex_unlock(&t->lock);
    return NULL;
}

/* Print rows in order as they get ready; on a terminal, say how far it is meanwhile. */
static double print_rows(struct table *t)
{
    const int terminal = isatty(STDERR_FILENO);
    double worst = 0;
    printf("%-12s  %12s  %10s  %11s\n", "scheme", "bytes/weight", "perplexity", "logit error");
    for (int i = 0; i < t->n; i++) {
        const struct row *const row = &t->rows[i];
        fflush(stdout);
        pthread_mutex_lock(&t->lock);
        while (!row->done) {
            if (terminal) fprintf(stderr, "\r%d of %d schemes ...", t->done, t->n);
            pthread_cond_wait(&t->changed, &t->lock);
        }
        pthread_mutex_unlock(&t->lock);
        if (terminal) fputs("\r                        \r", stderr);
        printf("%-12s  %12.3f  ", row->scheme, row->bytes);
        if (t->windows > 0)
            printf("%10.4f", row->perplexity);
        else
            printf("%10s", "-");
        printf("  %11.2g\n", row->error);
        if (!(row->error <= worst)) worst = row->error; /* a NaN stays */
    }
    printf("experts on %s\n", t->rows[0].device);
    return worst;
}

static double run(struct table *t)
{
    const long cpus = sysconf(_SC_NPROCESSORS_ONLN);
    pthread_t threads[MAX_ROWS];
    int n = 0;
    setenv("CMOE_THREADS", "1", 0);
    pthread_mutex_init(&t->lock, NULL);
    pthread_cond_init(&t->changed, NULL);
    while (n < t->n && n < cpus && pthread_create(&threads[n], NULL, work, t) == 0)
        n++;
    if (n == 0) work(t);
    const double worst = print_rows(t);
    while (n > 0)
        pthread_join(threads[--n], NULL);
    pthread_cond_destroy(&t->changed);
    pthread_mutex_destroy(&t->lock);
    return worst;
}

static double number(const char *text)
{
    char *end;
    const double value = strtod(text, &end);
    if (end == text || *end || !(value >= 0 && value <= 1e9)) {
        ok(cmoe_set_error(CMOE_ERR_INVALID, "\"%s\" is not a number from 0 to 1e9.", text));
    }
    return value;
}

int main(int argc, char **argv)
{
    static const struct option options[] = {
        {"model", 1, NULL, 'm'}, {"device", 1, NULL, 'd'}, {"windows", 1, NULL, 'w'},
        {"step", 1, NULL, 's'},  {"help", 0, NULL, 'h'},   {"max-error", 1, NULL, 'e'},
        {NULL, 0, NULL, 0},
    };
    struct table t = {.windows = 16, .step = LM_CONTEXT};
    const char *model = "models/tiny-moe";
    double limit = INFINITY;
    for (int c; (c = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        if (c == 'm') model = optarg;
        if (c == 'd') t.device = optarg;
        if (c == 'w') t.windows = (int)number(optarg);
        if (c == 's') t.step = (int)fmax(1, number(optarg));
        if (c == 'e') limit = number(optarg);
        if (c == 'h' || c == '?') {
            fputs(usage, c == 'h' ? stdout : stderr);
            return c == 'h' ? 0 : 1;
        }
    }
    const int given = argc - optind;
    for (; t.n < MAX_ROWS; t.n++) {
        t.rows[t.n].scheme = given == 0 ? cmoe_scheme_name(t.n) : argv[optind + t.n];
        if (!t.rows[t.n].scheme) break; /* argv ends with NULL too */
    }
    lm_load(&t.lm, model);
    const double worst = run(&t);
    lm_unload(&t.lm);
    if (worst <= limit) return 0;
    fprintf(stderr, "cmoe-lm-schemes: a logit error of %g, where %g was allowed.\n", worst, limit);
    return 1;
}
