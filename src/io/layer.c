/* SPDX-License-Identifier: MIT
 * One layer of a checkpoint as matrices: names from the family's row, every shape and type checked,
 * nothing copied. */
#include "fail.h"
#include "family.h"
#include "memory.h"

#include <cmoe/io.h>
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

static const struct {
    const char *name;   /* as safetensors has it */
    const char *scheme; /* of cmoe_problem_scheme */
    cmoe_dtype dtype;
} types[] = {
    {"BF16", "bf16", CMOE_BF16},
    {"F16", "f16", CMOE_F16},
    {"F32", "f32", CMOE_F32},
};
enum { TYPES = sizeof types / sizeof types[0] };

/* The layer being opened. */
struct opening {
    const cmoe_checkpoint *checkpoint;
    const struct cmoe_family *family;
    int layer;
};

static cmoe_status check_type(const cmoe_tensor_info *t, cmoe_dtype *out)
{
    int i = 0;
    while (i < TYPES && strcmp(types[i].name, t->dtype) != 0)
        i++;
    if (i == TYPES) {
        return CMOE_FAIL(CMOE_ERR_UNSUPPORTED, "tensor %s has the type %s; BF16, F16, F32 are read",
                         cmoe__quote(t->name).text, t->dtype);
    }
    if ((uintptr_t)t->data % (cmoe_dtype_bits(types[i].dtype) / 8) != 0) {
        return CMOE_FAIL(CMOE_ERR_UNSUPPORTED, "tensor %s lies at an odd place in %s",
                         cmoe__quote(t->name).text, cmoe__quote(t->file).text);
    }
    *out = types[i].dtype;
    return CMOE_OK;
}

/* The tensor of that name, which must be [rows, cols]. */
static cmoe_status find(const cmoe_checkpoint *c, const char *name, int64_t rows, int64_t cols,
                        const void **data, cmoe_dtype *dtype)
{
    const cmoe_tensor_info *const t = cmoe_checkpoint_find(c, name);
    if (!t) return CMOE_FAIL(CMOE_ERR_CORRUPT, "tensor %s is missing", name);
    if (t->ndim != 2 || t->shape[0] != rows || t->shape[1] != cols) {
        return CMOE_FAIL(CMOE_ERR_CORRUPT,
                         "tensor %s has %d dimensions, %" PRId64 " x %" PRId64
                         ", the configuration says %" PRId64 " x %" PRId64,
                         name, t->ndim, t->shape[0], t->shape[1], rows, cols);
    }
    CMOE_TRY(check_type(t, dtype));
    *data = t->data;
    return CMOE_OK;
}

/* One expert matrix; all of a layer must have the type that *dtype holds after the first. */
static cmoe_status find_expert(const struct opening *o, int expert, const char *matrix,
                               int64_t rows, int64_t cols, cmoe_matrix *out, cmoe_dtype *dtype)
{
    char name[128];
    cmoe_dtype found = CMOE_NONE;
    snprintf(name, sizeof name, "model.layers.%d.%s.experts.%d.%s.weight", o->layer,
             o->family->block, expert, matrix);
    CMOE_TRY(find(o->checkpoint, name, rows, cols, &out->data, &found));
    if (*dtype != CMOE_NONE && *dtype != found) {
        return CMOE_FAIL(CMOE_ERR_CORRUPT, "tensor %s has the type %s, those before it %s", name,
                         cmoe_dtype_name(found), cmoe_dtype_name(*dtype));
    }
    *dtype = found;
    return CMOE_OK;
}

static cmoe_status apply_type(cmoe_dtype dtype, cmoe_problem *p)
{
    int i = 0;
    while (types[i].dtype != dtype)
        i++;
    return cmoe_problem_scheme(p, types[i].scheme);
}

static cmoe_status open_layer(const struct opening *o, cmoe_layer *out)
{
    char name[128];
    const struct cmoe_family *const f = o->family;
    const int32_t experts = out->problem.experts;
    const int64_t hidden = out->problem.hidden, inter = out->problem.inter;
    const size_t bytes = (size_t)experts * sizeof(cmoe_matrix);
    cmoe_dtype dtype = CMOE_NONE;

    snprintf(name, sizeof name, "model.layers.%d.%s.gate.weight", o->layer, f->block);
    CMOE_TRY(find(o->checkpoint, name, experts, hidden, &out->router_w, &out->router_dtype));
    out->gate = cmoe__io_alloc(bytes);
    out->up = cmoe__io_alloc(bytes);
    out->down = cmoe__io_alloc(bytes);
    if (!out->gate || !out->up || !out->down) return cmoe__fail_memory(bytes, "expert tables");
    for (int32_t e = 0; e < experts; e++) {
        CMOE_TRY(find_expert(o, e, f->gate, inter, hidden, &out->gate[e], &dtype));
        CMOE_TRY(find_expert(o, e, f->up, inter, hidden, &out->up[e], &dtype));
        CMOE_TRY(find_expert(o, e, f->down, hidden, inter, &out->down[e], &dtype));
    }
    return apply_type(dtype, &out->problem);
}

cmoe_status cmoe_layer_open(const cmoe_checkpoint *c, const cmoe_model_config *config, int layer,
                            cmoe_layer *out)
{
    CMOE_TRY(cmoe__check_argument(c, "cmoe_layer_open", "c"));
    CMOE_TRY(cmoe__check_argument(config, "cmoe_layer_open", "config"));
    CMOE_TRY(cmoe__check_argument(out, "cmoe_layer_open", "out"));
    *out = (cmoe_layer){0};
    const struct cmoe_family *const family = cmoe__family_find(config->model_type);
    if (!family) {
        return CMOE_FAIL(CMOE_ERR_UNSUPPORTED, "model_type \"%s\" is not read",
                         cmoe__quote(config->model_type).text);
    }
    CMOE_TRY(cmoe_problem_check(&config->problem));
    if (layer < config->dense_layers || layer >= config->layers) {
        return CMOE_FAIL(CMOE_ERR_INVALID, "layer %d: the layers with experts are %d to %d", layer,
                         config->dense_layers, config->layers - 1);
    }
    const struct opening o = {.checkpoint = c, .family = family, .layer = layer};
    out->problem = config->problem;
    const cmoe_status status = open_layer(&o, out);
    if (status != CMOE_OK) cmoe_layer_free(out);
    return status;
}

void cmoe_layer_free(cmoe_layer *layer)
{
    if (!layer) return;
    cmoe__io_free(layer->gate);
    cmoe__io_free(layer->up);
    cmoe__io_free(layer->down);
    *layer = (cmoe_layer){0};
}
