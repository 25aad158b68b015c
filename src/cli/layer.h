/* SPDX-License-Identifier: MIT
 * One layer of a checkpoint, quantised to a scheme, with an input: everything that run executes. */
#ifndef CMOE_CLI_LAYER_H
#define CMOE_CLI_LAYER_H

#include "cli/args.h"
#include "cli/router.h"
#include "cli/session.h"

struct cli_layer {
    cmoe_checkpoint *checkpoint;
    cmoe_layer layer;
    cmoe_problem problem;      /* the layer's in the wanted scheme, routed from x */
    cmoe_problem base;         /* the same in the checkpoint's own type */
    cmoe_quantized *quantized; /* NULL: the checkpoint's weights are used in place */
    cmoe_weights_desc weights, base_weights;
    double bytes_per_weight;
    struct cli_router router;
    cmoe_array input; /* as the file has it */
    void *x, *base_x; /* [T, H] in the types of the two problems */
    float x_scale, mid_scale;
    cmoe_tensors tensors;
};

/* Open what --model, --layer, --input and --scheme say. @return an exit code. */
int cli_layer_open(const struct cli_args *args, struct cli_layer *out);
/* Static scales: --x-scale, --mid-scale, --scales, else the checkpoint's, else observed on the input. */
int cli_layer_scales(const struct cli_args *args, struct cli_session *session,
                     struct cli_layer *layer);
void cli_layer_close(struct cli_layer *layer);

#endif
