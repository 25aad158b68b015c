/* SPDX-License-Identifier: MIT
 * One generated call against the reference. */
#ifndef CMOE_CLI_TRIAL_H
#define CMOE_CLI_TRIAL_H

#include "cli/gen.h"
#include "cli/session.h"

/* What a call must give: by cmoe_reference, and a bound for each element. NULL bound: exactly. */
struct cli_expected {
    double *y, *bound;
    int64_t n;
};

/* n elements. `exact`: rounded to the problem's y type, without a bound. */
cmoe_status cli_expect(cmoe_context *ctx, const cmoe_problem *p, const cmoe_weights *weights,
                       const cmoe_tensors *tensors, int64_t n, bool exact,
                       struct cli_expected *out);
void cli_expected_free(struct cli_expected *expected);

enum cli_trial_result {
    CLI_TRIAL_PASSED,
    CLI_TRIAL_FAILED,
    CLI_TRIAL_SKIPPED, /* no plan uses the kernel for this problem */
};

struct cli_trial {
    cmoe_error error;
    char what[512]; /* what failed, a clause */
};

/* Plan the call with `pin` (a kernel's name), run it on the session's device and compare. Computes
 * *expected when its y is NULL. */
enum cli_trial_result cli_try(struct cli_session *session, struct gen_call *call, bool exact,
                              const char *pin, struct cli_expected *expected,
                              struct cli_trial *out);

/* y of a call, compared row by row. */
cmoe_status cli_compare_y(const struct gen_call *call, const struct cli_expected *expected,
                          cmoe_error *out);

#endif
