/* SPDX-License-Identifier: MIT
 * The key table of problem strings, and the name lists of types.def as arrays. */
#include "core/keys.h"

#include <string.h>

const char *const cmoe__dtype_names[] = {
#define DTYPE(name, text, bits) text,
#include <cmoe/types.def>
#undef DTYPE
    NULL,
};

const char *const cmoe__scaling_names[] = {
#define SCALING(name, text) text,
#include <cmoe/types.def>
#undef SCALING
    NULL,
};

static const char *const routers[] = {
#define ROUTER(name, text) text,
#include <cmoe/types.def>
#undef ROUTER
    NULL,
};

static const char *const activations[] = {
#define ACTIVATION(name, text) text,
#include <cmoe/types.def>
#undef ACTIVATION
    NULL,
};

static const char *const gates[] = {
#define GATE(name, text) text,
#include <cmoe/types.def>
#undef GATE
    NULL,
};

static const char *const weight_positions[] = {
#define WEIGHT_ON(name, text) text,
#include <cmoe/types.def>
#undef WEIGHT_ON
    NULL,
};

const char *const cmoe__rounding_names[] = {
#define ROUNDING(name, text) text,
#include <cmoe/types.def>
#undef ROUNDING
    NULL,
};

const char *const cmoe__mx_rounding_names[] = {
#define MX_ROUNDING(name, text) text,
#include <cmoe/types.def>
#undef MX_ROUNDING
    NULL,
};

const char *const cmoe__stage_names[] = {
#define STAGE(name, text) text,
#include <cmoe/types.def>
#undef STAGE
    NULL,
};

static const char *const sort_formats[] = {
#define SORT_FORMAT(name, text) text,
#include <cmoe/types.def>
#undef SORT_FORMAT
    NULL,
};

const struct cmoe_flag_name cmoe__flag_names[] = {
#define FLAG(name, text, bit) {text, CMOE_##name},
#include <cmoe/types.def>
#undef FLAG
    {NULL, 0},
};

#define AT(field) offsetof(cmoe_problem, field)

/* clang-format off */
const struct cmoe_key cmoe__keys[] = {
    {.name = "t",      .kind = CMOE_KEY_INT,    .offset = AT(max_tokens), .always = true},
    {.name = "e",      .kind = CMOE_KEY_INT,    .offset = AT(experts),    .always = true},
    {.name = "k",      .kind = CMOE_KEY_INT,    .offset = AT(topk),       .always = true},
    {.name = "h",      .kind = CMOE_KEY_INT,    .offset = AT(hidden),     .always = true},
    {.name = "i",      .kind = CMOE_KEY_INT,    .offset = AT(inter),      .always = true},
    {.name = "hpad",   .kind = CMOE_KEY_INT,    .offset = AT(hidden_pad)},
    {.name = "ipad",   .kind = CMOE_KEY_INT,    .offset = AT(inter_pad)},
    {.name = "first",  .kind = CMOE_KEY_INT,    .offset = AT(expert_first)},
    {.name = "local",  .kind = CMOE_KEY_INT,    .offset = AT(expert_count)},
    {.name = "shared", .kind = CMOE_KEY_INT,    .offset = AT(shared)},
    {.name = "cap",    .kind = CMOE_KEY_INT,    .offset = AT(capacity)},
    {.name = "route",  .kind = CMOE_KEY_NAME,   .offset = AT(router),    .names = routers},
    {.name = "groups", .kind = CMOE_KEY_GROUPS},
    {.name = "eps",    .kind = CMOE_KEY_FLOAT,  .offset = AT(renorm_eps)},
    {.name = "scale",  .kind = CMOE_KEY_FLOAT,  .offset = AT(route_scale)},
    {.name = "shw",    .kind = CMOE_KEY_FLOAT,  .offset = AT(shared_weight)},
    {.name = "lg",     .kind = CMOE_KEY_NAME,   .offset = AT(logits),    .names = cmoe__dtype_names},
    {.name = "gate",   .kind = CMOE_KEY_NAME,   .offset = AT(gate),      .names = gates},
    {.name = "act",    .kind = CMOE_KEY_NAME,   .offset = AT(act),       .names = activations},
    {.name = "limit",  .kind = CMOE_KEY_FLOAT,  .offset = AT(act_limit)},
    {.name = "alpha",  .kind = CMOE_KEY_FLOAT,  .offset = AT(act_alpha)},
    {.name = "beta",   .kind = CMOE_KEY_FLOAT,  .offset = AT(act_beta)},
    {.name = "lbeta",  .kind = CMOE_KEY_FLOAT,  .offset = AT(act_lbeta)},
    {.name = "in",     .kind = CMOE_KEY_NAME,   .offset = AT(in),        .names = cmoe__dtype_names},
    {.name = "y",      .kind = CMOE_KEY_NAME,   .offset = AT(y),         .names = cmoe__dtype_names},
    {.name = "x",      .kind = CMOE_KEY_FORMAT, .offset = AT(x)},
    {.name = "w",      .kind = CMOE_KEY_FORMAT, .offset = AT(w)},
    {.name = "mid",    .kind = CMOE_KEY_FORMAT, .offset = AT(mid)},
    {.name = "won",    .kind = CMOE_KEY_NAME,   .offset = AT(weight_on), .names = weight_positions},
    {.name = "acc",    .kind = CMOE_KEY_FLOAT,  .offset = AT(accumulate)},
    {.name = "stages", .kind = CMOE_KEY_STAGES},
    {.name = "sort",   .kind = CMOE_KEY_NAME,   .offset = AT(sort_format), .names = sort_formats},
    {.name = "bm",     .kind = CMOE_KEY_INT,    .offset = AT(block_m)},
    {.name = NULL},
};
/* clang-format on */

int cmoe__name_find(const char *const *names, const char *text, size_t length)
{
    for (int i = 0; names[i]; i++) {
        if (strlen(names[i]) == length && memcmp(names[i], text, length) == 0) return i;
    }
    return -1;
}
