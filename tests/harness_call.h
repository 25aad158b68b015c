/* SPDX-License-Identifier: MIT
 * One generated call, run by one plan and compared with cmoe_reference: what the kernel tests, the
 * property test and the field tests have in common. Nothing here fails a test; the outcome says what
 * happened, so that a property test can shrink it. */
#ifndef CMOE_TESTS_HARNESS_CALL_H
#define CMOE_TESTS_HARNESS_CALL_H

#include "harness.h"

#include "cli/gen.h"

struct rig {
    cmoe_context *ctx;
    cmoe_device *ref, *cpu;
    struct guard guard;
};

void rig_open(struct rig *rig, int threads);
void rig_close(struct rig *rig);
/* A rig of two threads as the state of a group of tests. */
int rig_setup(void **state);
int rig_teardown(void **state);

enum outcome_kind {
    OUTCOME_OK,
    OUTCOME_MISTRUSTED, /* within bounds, but more than half of the result is 0 */
    OUTCOME_REFUSED,    /* the planner has no path: `why` says so */
    OUTCOME_WRONG,
};

struct outcome {
    enum outcome_kind kind;
    char path[256]; /* kernels that ran */
    char why[512];
};

/* Generate the inputs of p, run it on dev with a pin (or NULL) and compare. EXACT inputs must give
 * equal results, REAL ones results within the bound; guard pages and input hashes are checked. */
struct outcome call_check(struct rig *rig, const cmoe_problem *p, const struct gen_options *options,
                          cmoe_device *dev, const char *pin);

/* The same in steps, for many runs on one set of inputs. call_prepare takes all buffers of the rig's
 * guard. */
struct prepared {
    struct gen_call call;
    enum gen_kind kind;
    cmoe_weights *canonical;
    double *want, *bound;
};
cmoe_status call_prepare(struct rig *rig, const cmoe_problem *p, const struct gen_options *options,
                         struct prepared *out);
struct outcome call_run(struct rig *rig, const struct prepared *prepared, cmoe_device *dev,
                        const char *pin);
void call_done(struct prepared *prepared);
/* Poison y, or put back what accumulate adds to. */
void call_reset_y(struct rig *rig, const struct gen_call *call);
/* The call's y against what is expected; rounds `want` of exact inputs to y's type. */
struct outcome call_judge(const struct gen_call *call, enum gen_kind kind, double *want,
                          const double *bound);
/* A plan for w (or none), run on t with a workspace of its own: the statuses must be CMOE_OK. */
void call_execute(struct rig *rig, cmoe_device *dev, const cmoe_problem *p, const cmoe_weights *w,
                  const char *pin, const cmoe_tensors *t);

/* Weights of a call for a plan made without: in the formats that its paths read. */
cmoe_status call_weights(cmoe_device *dev, const struct gen_call *call, const cmoe_plan *plan,
                         cmoe_weights **out);
/* y as rows without gaps, [y_rows, y_row] bytes; from malloc. */
void *call_y(const struct gen_call *call);
/* Generated buffers between guard pages of `g`. */
struct gen_options call_options(struct guard *g, enum gen_kind kind, uint64_t seed);
/* The command that runs a case again. */
void call_repro(const cmoe_problem *p, const struct gen_options *options, char *buf, size_t len);
/* From now on in this test, a fault prints the case that call_check was running. */
void call_report_faults(void);
/* The smallest problem found for which `fails` still holds: every size halved, every flag and option
 * dropped, as long as cmoe_problem_check accepts the result. */
cmoe_problem call_shrink(const cmoe_problem *p, bool (*fails)(void *arg, const cmoe_problem *p),
                         void *arg);

#endif
