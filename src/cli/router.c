/* SPDX-License-Identifier: MIT
 * Widening a router's tensors to f32. */
#include "cli/router.h"

#include <stdlib.h>

/* A copy of n elements in f32; NULL stays NULL. */
static cmoe_status widen(cmoe_dtype from, const void *data, int64_t n, float **out)
{
    if (data == NULL) return CMOE_OK;
    *out = malloc((size_t)(n > 0 ? n : 1) * sizeof **out);
    return *out != NULL ? cmoe_convert(CMOE_F32, *out, from, data, n) : CMOE_ERR_NO_MEMORY;
}

cmoe_status cli_router_read(const cmoe_layer *layer, struct cli_router *out)
{
    const int64_t experts = layer->problem.experts;
    *out = (struct cli_router){.w = NULL};
    cmoe_status status =
        widen(layer->router_dtype, layer->router_w, experts * layer->problem.hidden, &out->w);
    if (status == CMOE_OK)
        status = widen(layer->router_bias_dtype, layer->router_bias, experts, &out->route_bias);
    if (status == CMOE_OK)
        status = widen(layer->logit_bias_dtype, layer->logit_bias, experts, &out->logit_bias);
    if (status != CMOE_OK) cli_router_free(out);
    return status;
}

void cli_router_free(struct cli_router *router)
{
    free(router->w);
    free(router->route_bias);
    free(router->logit_bias);
    *router = (struct cli_router){.w = NULL};
}
