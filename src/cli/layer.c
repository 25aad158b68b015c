/* SPDX-License-Identifier: MIT
 * Opening a checkpoint's layer. Failures say which file or tensor is at fault. */
#include "cli/layer.h"

#include "cli/calibrate.h"
#include "cli/npy.h"
#include "cli/report.h"

#include <stdlib.h>
#include <string.h>

/* A copy of n elements in another type, or NULL with a message. */
static void *convert(cmoe_dtype to, cmoe_dtype from, const void *data, int64_t n)
{
    void *copy = malloc(cmoe_dtype_bytes(to, n) + 1);
    if (copy == NULL) {
        cli_fail(CLI_NO_MEMORY, "out of memory");
        return NULL;
    }
    const cmoe_status status = cmoe_convert(to, copy, from, data, n);
    if (status == CMOE_OK) return copy;
    cli_fail_status(status, NULL);
    free(copy);
    return NULL;
}

static int open_checkpoint(const struct cli_args *args, struct cli_layer *out)
{
    const char *path = cli_args_value(args, "model");
    int64_t index = 0;
    const int code = cli_args_int(args, "layer", 0, INT32_MAX, &index);
    if (code != CLI_OK) return code;
    cmoe_model_config config;
    cmoe_status status = cmoe_config_read(path, &config);
    if (status == CMOE_OK) status = cmoe_checkpoint_open(path, &out->checkpoint);
    if (status == CMOE_OK)
        status = cmoe_layer_open(out->checkpoint, &config, (int)index, &out->layer);
    return status == CMOE_OK ? CLI_OK : cli_fail_status(status, NULL);
}

static bool is_float(cmoe_dtype dtype)
{
    return dtype == CMOE_F32 || dtype == CMOE_F16 || dtype == CMOE_BF16;
}

static int read_input(const struct cli_args *args, struct cli_layer *out)
{
    const char *path = cli_args_value(args, "input");
    const int code = cli_npy_read(path, &out->input);
    if (code != CLI_OK) return code;
    const cmoe_array *a = &out->input;
    const int64_t hidden = out->layer.problem.hidden;
    if (!is_float(a->dtype))
        return cli_fail(CLI_BAD_DATA, "%s has elements of type %s; an input has f32, f16 or bf16",
                        path, cmoe_dtype_name(a->dtype));
    if (a->ndim < 1 || a->shape[a->ndim - 1] != hidden)
        return cli_fail(CLI_BAD_DATA, "%s has %lld columns, but the model's hidden size is %lld",
                        path, a->ndim < 1 ? 0LL : (long long)a->shape[a->ndim - 1],
                        (long long)hidden);
    int64_t rows = 1;
    for (int d = 0; d < a->ndim - 1; d++)
        rows *= a->shape[d];
    if (rows < 1 || rows > INT32_MAX)
        return cli_fail(CLI_BAD_DATA, "%s has %lld rows; 1 to %d can be run", path, (long long)rows,
                        INT32_MAX);
    out->tensors.n_tokens = (int32_t)rows;
    return CLI_OK;
}

static int make_problems(const struct cli_args *args, struct cli_layer *out)
{
    const char *scheme = cli_args_value(args, "scheme");
    out->base = out->layer.problem;
    out->base.max_tokens = out->tensors.n_tokens;
    out->base.flags |= CMOE_ROUTE_FROM_X;
    out->problem = out->base;
    const cmoe_status status =
        scheme != NULL ? cmoe_problem_scheme(&out->problem, scheme) : CMOE_OK;
    if (status != CMOE_OK) return cli_fail_status(status, NULL);
    return cli_problem_check(&out->problem);
}

static bool same_weights(const cmoe_problem *a, const cmoe_problem *b)
{
    return a->w.dtype == b->w.dtype && a->w.scaling == b->w.scaling && a->w.group == b->w.group &&
           a->w.zero == b->w.zero && a->w.scale_dtype == b->w.scale_dtype;
}

/* Bytes a weight of the checkpoint itself takes, scales included. */
static double own_bytes(const cmoe_problem *p)
{
    size_t codes = 0, scales = 0, zeros = 0;
    const cmoe_status status =
        cmoe_format_bytes(p->w, p->inter, p->hidden, &codes, &scales, &zeros);
    const double weights = (double)p->inter * p->hidden;
    return status == CMOE_OK ? (double)(codes + scales + zeros) / weights : 0;
}

static int make_weights(struct cli_layer *out)
{
    out->base_weights = (cmoe_weights_desc){
        .struct_size = sizeof out->base_weights,
        .gate_up = out->layer.gate,
        .up = out->layer.up,
        .down = out->layer.down,
    };
    if (same_weights(&out->problem, &out->base)) {
        out->weights = out->base_weights;
        out->bytes_per_weight = own_bytes(&out->problem);
        return CLI_OK;
    }
    const cmoe_status status = cmoe_layer_quantize(&out->layer, &out->problem, &out->quantized);
    if (status != CMOE_OK) return cli_fail_status(status, NULL);
    out->weights = *cmoe_quantized_desc(out->quantized);
    out->bytes_per_weight = cmoe_quantized_bytes_per_weight(out->quantized);
    return CLI_OK;
}

static int make_tensors(struct cli_layer *out)
{
    const cmoe_problem *p = &out->problem;
    const int64_t n = (int64_t)out->tensors.n_tokens * p->hidden;
    out->x = convert((cmoe_dtype)p->in, out->input.dtype, out->input.data, n);
    out->base_x = convert((cmoe_dtype)out->base.in, out->input.dtype, out->input.data, n);
    if (out->x == NULL || out->base_x == NULL) return CLI_NO_MEMORY;
    const cmoe_status status = cli_router_read(&out->layer, &out->router);
    if (status != CMOE_OK) return cli_fail_status(status, NULL);
    out->tensors.struct_size = sizeof out->tensors;
    out->tensors.x = out->x;
    out->tensors.router_w = out->router.w;
    out->tensors.route_bias = out->router.route_bias;
    out->tensors.router_b = out->router.logit_bias;
    return CLI_OK;
}

int cli_layer_open(const struct cli_args *args, struct cli_layer *out)
{
    *out = (struct cli_layer){.checkpoint = NULL};
    int code = open_checkpoint(args, out);
    if (code == CLI_OK) code = read_input(args, out);
    if (code == CLI_OK) code = make_problems(args, out);
    if (code == CLI_OK) code = make_weights(out);
    if (code == CLI_OK) code = make_tensors(out);
    return code;
}

void cli_layer_close(struct cli_layer *layer)
{
    free(layer->x);
    free(layer->base_x);
    cli_router_free(&layer->router);
    cmoe_array_free(&layer->input);
    cmoe_quantized_free(layer->quantized);
    cmoe_layer_free(&layer->layer);
    cmoe_checkpoint_close(layer->checkpoint);
    *layer = (struct cli_layer){.checkpoint = NULL};
}

/* ---- static scales ---- */

static int observe(struct cli_session *session, struct cli_layer *layer)
{
    cmoe_tensors tensors = layer->tensors;
    tensors.x = layer->base_x;
    cmoe_observation seen = {.struct_size = sizeof seen};
    const cmoe_status status =
        cli_observe(session, &layer->base, &layer->base_weights, &tensors, &seen);
    if (status != CMOE_OK) return cli_fail_status(status, NULL);
    layer->x_scale = cmoe_static_scale(layer->problem.x, seen.x_amax);
    layer->mid_scale = cmoe_static_scale(layer->problem.mid, seen.mid_amax);
    return CLI_OK;
}

/* An .npy file of two f32 numbers, the scale of x and the scale of mid. */
static int read_scales(const char *path, struct cli_layer *layer)
{
    cmoe_array a;
    const int code = cli_npy_read(path, &a);
    if (code != CLI_OK) return code;
    const bool fits = a.dtype == CMOE_F32 && a.bytes == 2 * sizeof(float);
    if (fits) {
        memcpy(&layer->x_scale, a.data, sizeof(float));
        memcpy(&layer->mid_scale, (const char *)a.data + sizeof(float), sizeof(float));
    }
    cmoe_array_free(&a);
    if (fits && layer->x_scale > 0 && layer->mid_scale > 0) return CLI_OK;
    return cli_fail(CLI_BAD_DATA, "%s does not hold two positive f32 numbers", path);
}

int cli_layer_scales(const struct cli_args *args, struct cli_session *session,
                     struct cli_layer *layer)
{
    const cmoe_problem *p = &layer->problem;
    const char *file = cli_args_value(args, "scales");
    const bool wanted = p->x.fixed || p->mid.fixed;
    const bool x_given = !p->x.fixed || cli_args_given(args, "x-scale");
    const bool mid_given = !p->mid.fixed || cli_args_given(args, "mid-scale");
    int code = CLI_OK;
    layer->x_scale = layer->layer.x_scale;
    layer->mid_scale = layer->layer.mid_scale;
    const bool stored =
        (!p->x.fixed || layer->x_scale > 0) && (!p->mid.fixed || layer->mid_scale > 0);
    if (file != NULL)
        code = read_scales(file, layer);
    else if (wanted && !stored && !(x_given && mid_given))
        code = observe(session, layer);
    double x = (double)layer->x_scale, mid = (double)layer->mid_scale;
    if (code == CLI_OK) code = cli_args_double(args, "x-scale", 0, &x);
    if (code == CLI_OK) code = cli_args_double(args, "mid-scale", 0, &mid);
    layer->x_scale = (float)x;
    layer->mid_scale = (float)mid;
    if (p->x.fixed) layer->tensors.x_scale = &layer->x_scale;
    if (p->mid.fixed) layer->tensors.mid_scale = &layer->mid_scale;
    return code;
}
