/* SPDX-License-Identifier: MIT
 * Timing one or two plans in turn. On a host device every call is one sample. On a GPU a graph holds
 * one call for each routing; a sample is one replay between two events, divided by the calls. */
#include "cli/bench.h"
#include "cli/report.h"

#include <stdlib.h>
#include <time.h>

enum { LEAST_RUNS = 5 };

static int compare_doubles(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void summarise(double *us, int n, struct cli_times *out)
{
    qsort(us, (size_t)n, sizeof us[0], compare_doubles);
    *out = (struct cli_times){.median = us[n / 2], .min = us[0], .p90 = us[n * 9 / 10], .runs = n};
}

/* What a sample runs. */
struct sampler {
    struct bench_inputs *in;
    struct bench_lane *lanes;
    int n_lanes, calls; /* a sample */
    double rest;        /* seconds before a sample */
    void *stream, *before, *after, *graph[BENCH_LANES];
};

static cmoe_status record_graph(struct sampler *s, int lane)
{
    cmoe_device *dev = s->in->session->dev;
    cmoe_status status = cmoe_graph_begin(dev, s->stream);
    if (status != CMOE_OK) return status;
    for (int i = 0; i < s->calls && status == CMOE_OK; i++)
        status = bench_job_run(s->lanes[lane].job, s->in, i, s->stream);
    const cmoe_status ended = cmoe_graph_end(dev, s->stream, &s->graph[lane]);
    return status != CMOE_OK ? status : ended;
}

static cmoe_status open_sampler(struct sampler *s)
{
    cmoe_device *dev = s->in->session->dev;
    const int sets = s->lanes[0].job->sets;
    s->calls = 1;
    if (s->in->mirror.dev == NULL) return CMOE_OK;
    s->calls = s->in->variants > sets ? s->in->variants : sets;
    cmoe_status status = cmoe_stream_create(dev, &s->stream);
    if (status == CMOE_OK) status = cmoe_event_create(dev, &s->before);
    if (status == CMOE_OK) status = cmoe_event_create(dev, &s->after);
    for (int lane = 0; lane < s->n_lanes && status == CMOE_OK; lane++)
        status = record_graph(s, lane);
    return status;
}

static void close_sampler(struct sampler *s)
{
    cmoe_device *dev = s->in->session->dev;
    for (int lane = 0; lane < s->n_lanes; lane++)
        cmoe_graph_destroy(dev, s->graph[lane]);
    cmoe_event_destroy(dev, s->before);
    cmoe_event_destroy(dev, s->after);
    cmoe_stream_destroy(dev, s->stream);
}

static void rest(double seconds)
{
    const time_t whole = (time_t)seconds;
    const struct timespec t = {.tv_sec = whole, .tv_nsec = (long)(1e9 * (seconds - (double)whole))};
    if (seconds > 0) nanosleep(&t, NULL);
}

static cmoe_status sample(struct sampler *s, int lane, int i, double *us)
{
    cmoe_device *dev = s->in->session->dev;
    rest(s->rest);
    if (s->stream == NULL) {
        const double start = cli_now();
        const cmoe_status status = bench_job_run(s->lanes[lane].job, s->in, i, NULL);
        *us = 1e6 * (cli_now() - start);
        return status;
    }
    cmoe_status status = cmoe_event_record(dev, s->before, s->stream);
    if (status == CMOE_OK) status = cmoe_graph_launch(dev, s->graph[lane], s->stream);
    if (status == CMOE_OK) status = cmoe_event_record(dev, s->after, s->stream);
    if (status == CMOE_OK) status = cmoe_event_elapsed(dev, s->before, s->after, us);
    *us /= s->calls;
    return status;
}

static cmoe_status take_samples(struct sampler *s, double seconds)
{
    static const int most = BENCH_RUNS;
    double *us = malloc((size_t)(s->n_lanes * most) * sizeof *us);
    if (us == NULL) return CMOE_ERR_NO_MEMORY;
    cmoe_status status = CMOE_OK;
    int n = 0;
    double warm = 0;
    for (int lane = 0; lane < s->n_lanes && status == CMOE_OK; lane++)
        status = sample(s, lane, 0, &warm);
    const double start = cli_now();
    while (status == CMOE_OK && n < most &&
           (n < LEAST_RUNS || cli_now() - start < seconds * s->n_lanes)) {
        for (int lane = 0; lane < s->n_lanes && status == CMOE_OK; lane++)
            status = sample(s, lane, n, &us[lane * most + n]);
        n++;
    }
    for (int lane = 0; lane < s->n_lanes && status == CMOE_OK; lane++)
        summarise(us + lane * most, n, &s->lanes[lane].times);
    free(us);
    return status;
}

cmoe_status bench_time(struct bench_inputs *in, struct bench_lane *lanes, int n_lanes,
                       double seconds, double rest_seconds)
{
    struct sampler s = {.in = in, .lanes = lanes, .n_lanes = n_lanes, .rest = rest_seconds};
    cmoe_status status = open_sampler(&s);
    if (status == CMOE_OK) status = take_samples(&s, seconds);
    close_sampler(&s);
    return status;
}
