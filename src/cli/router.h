/* SPDX-License-Identifier: MIT
 * A checkpoint's router in f32, as calls take it. */
#ifndef CMOE_CLI_ROUTER_H
#define CMOE_CLI_ROUTER_H

#include <cmoe/io.h>

struct cli_router {
    float *w;          /* [E, H] */
    float *route_bias; /* [E] for the selection only, or NULL */
    float *logit_bias; /* [E] added to the logits, or NULL */
};

/* @return the library's status; on an error nothing is held. */
cmoe_status cli_router_read(const cmoe_layer *layer, struct cli_router *out);
void cli_router_free(struct cli_router *router);

#endif
