/* SPDX-License-Identifier: MIT
 * The parts of cmoe bench: inputs on the device, a plan with its weights, routings, timing, ceilings
 * and printing. bench/README.md says what is measured and why so. */
#ifndef CMOE_CLI_BENCH_H
#define CMOE_CLI_BENCH_H

#include "cli/args.h"
#include "cli/gen.h"
#include "cli/mirror.h"
#include "cli/session.h"
#include "cli/trial.h"

#include <stdio.h>

enum {
    BENCH_VARIANTS = 64,
    BENCH_SETS = 8,
    BENCH_LANES = 2,
    BENCH_RUNS = 1000,
    BENCH_TOKEN_COUNTS = 64
};

/* ---- what is asked for ---- */

struct bench_tokens {
    int64_t at[BENCH_TOKEN_COUNTS], most;
    int n;
};

/* --tokens. @return an exit code. */
int bench_parse_tokens(const struct cli_args *args, struct bench_tokens *out);
/* Of --scheme: 'a+b', 'all', or NULL, which is the problem's own formats. */
int bench_count_schemes(const char *text);
/* One by one, until one's exit code is another than CLI_OK; NULL for the problem's own. */
int bench_each_scheme(const char *text, int (*run)(void *user, const char *scheme), void *user);
/* Whether a problem can be timed, with so many plans' weights in memory. @return an exit code. */
int bench_check(const struct cli_session *session, const struct cli_args *args,
                const cmoe_problem *p, int plans);

/* ---- routings: which experts tokens go to ---- */

struct bench_routing {
    const char *text; /* as on the command line */
    bool hot;
    double zipf;    /* exponent; 0: uniform */
    int32_t *given; /* from a file, [rows, columns] */
    int64_t rows, columns;
};

/* --routing; NULL: uniform. @return an exit code. */
int bench_routing_parse(const char *text, struct bench_routing *out);
void bench_routing_free(struct bench_routing *routing);
/* ids[tokens, slots] of one routing. */
cmoe_status bench_routing_draw(const struct bench_routing *routing, const cmoe_problem *p,
                               struct gen_rng *rng, int64_t tokens, int32_t *ids);

/* ---- inputs of one scheme ---- */

struct bench_inputs {
    struct cli_session *session;
    struct gen_call call;     /* on the host; one expert behind every pointer */
    struct cli_mirror mirror; /* of it on the device; dev NULL: the call is used as it is */
    cmoe_weights *reference;  /* of the host's call */
    /* One cell's routings, host and device. */
    void *routes, *device_routes;
    int variants;
    cmoe_tensors tensors[BENCH_VARIANTS];
};

cmoe_status bench_inputs_open(struct cli_session *session, const cmoe_problem *p, uint64_t seed,
                              struct bench_inputs *out);
/* Make `variants` routings of `tokens` tokens, and the tensors of a call with each. The first tokens of
 * the first routing are the same for every count. */
cmoe_status bench_inputs_route(struct bench_inputs *in, const struct bench_routing *routing,
                               uint64_t seed, int64_t tokens, int variants);
/* Let a call on the host use the first routing. */
void bench_inputs_host_route(const struct bench_inputs *in, cmoe_tensors *tensors);
void bench_inputs_close(struct bench_inputs *in);
/* Routings that a cell rotates through: enough that a weight is out of the caches when its turn
 * comes again. */
int bench_variants(const struct bench_inputs *in, int64_t tokens);
/* Copies of the weights, for layers that fit in the caches as a whole. */
int bench_sets(const struct cli_session *session, const cmoe_problem *p);
/* Whether a plan reads ids or logits, so that routings can be chosen. */
bool bench_routable(const cmoe_problem *p);

/* ---- a plan with its weights ---- */

struct bench_job {
    struct cli_session *session;
    cmoe_plan *plan;
    int sets;
    cmoe_weights *set[BENCH_SETS]; /* equal weights in different memory */
    void *memory[BENCH_SETS * 18]; /* what canonical ones lie in */
    int memories;
    void *workspace;
    size_t workspace_size;
};

cmoe_status bench_job_open(struct bench_inputs *in, const char *pin, int sets,
                           struct bench_job *out);
/* Run on a stream with the i-th of the rotating inputs, without waiting. */
cmoe_status bench_job_run(const struct bench_job *job, const struct bench_inputs *in, int i,
                          void *stream);
/* Run one of the inputs' variants, changed or not, and wait. */
cmoe_status bench_job_run_tensors(const struct bench_job *job, const struct bench_inputs *in,
                                  const cmoe_tensors *tensors);
void bench_job_close(struct bench_job *job);

/* ---- one cell: a scheme and a token count ---- */

struct bench_lane {
    const struct bench_job *job;
    struct cli_times times;
    char path[CLI_PATH_TEXT];
    cmoe_error error; /* n 0: not computed */
    double
        stage_us[CMOE_STAGE_COUNT]; /* of the step that ends a stage; 0: none does, or not asked */
};

/* Times of one or two plans, in turn, with a rest before each sample. */
cmoe_status bench_time(struct bench_inputs *in, struct bench_lane *lanes, int n_lanes,
                       double seconds, double rest_seconds);

/* Into lane->stage_us: medians of a few calls. */
cmoe_status bench_stages(struct bench_inputs *in, struct bench_lane *lane);

/* The first tokens of the first routing against the reference, at the cell's token count. `expected` is kept
 * for the next call; out->n 0: not compared. */
cmoe_status bench_error(const struct bench_inputs *in, const struct bench_job *job,
                        struct cli_expected *expected, cmoe_error *out);

/* ---- ceilings, measured beside every cell ---- */

struct bench_roof {
    struct cli_session *session;
    void *memory;
    size_t bytes;
};

cmoe_status bench_roof_open(struct cli_session *session, struct bench_roof *out);
/* Best of a few readings; NAN where the device has no such probe. */
double bench_roof_measure(const struct bench_roof *roof, cmoe_probe what, cmoe_dtype dtype);
void bench_roof_close(struct bench_roof *roof);

struct bench_cell {
    const char *model, *scheme, *routing; /* NULL: not said */
    const char *device;
    const cmoe_problem *problem;
    int64_t tokens;
    int variants, sets;
    struct bench_lane lane[BENCH_LANES];
    int lanes;
    double rest;         /* seconds before each sample */
    double slots, hit;   /* a forward: slots computed, experts hit */
    double flops, bytes; /* a forward: operations, and bytes that must be read or written */
    double read[2], dot; /* ceilings a second: reading before and after, products; NAN: unknown */
};

void bench_print_text(const struct bench_cell *cell, bool *headed);
void bench_print_json(FILE *out, const struct bench_cell *cell);
void bench_print_csv(FILE *out, const struct bench_cell *cell, bool *headed);

/* Microseconds that the cell must take at its ceilings; NAN: unknown. */
double bench_floor(const struct bench_cell *cell);

/* Bytes of one expert's weights, and multiply-adds of one slot. */
double bench_expert_bytes(const cmoe_problem *p);
double bench_slot_work(const cmoe_problem *p);

#endif
