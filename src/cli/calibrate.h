/* SPDX-License-Identifier: MIT
 * Largest magnitudes of activations over given tokens, for static scales. */
#ifndef CMOE_CLI_CALIBRATE_H
#define CMOE_CLI_CALIBRATE_H

#include "cli/session.h"

/* Observe one call with weights in the problem's own format. @return the library's status. */
cmoe_status cli_observe(struct cli_session *session, const cmoe_problem *p,
                        const cmoe_weights_desc *desc, const cmoe_tensors *t,
                        cmoe_observation *seen);

/* One entry for each layer with experts, in order. */
struct cli_calibration {
    int layers;
    float *x_amax, *mid_amax;
};

/* Run every layer with experts of a checkpoint over the rows of an .npy file: [tokens, H] for all
 * layers, or [layers, tokens, H], a part for each. @return an exit code. */
int cli_calibrate(const char *model, const char *path, struct cli_calibration *out);
void cli_calibration_free(struct cli_calibration *calibration);

#endif
