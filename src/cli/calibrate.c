/* SPDX-License-Identifier: MIT
 * Calibration of a checkpoint: each layer runs once, unquantised, over the tokens it is given. */
#include "cli/calibrate.h"

#include "cli/model.h"
#include "cli/npy.h"
#include "cli/report.h"
#include "cli/router.h"

#include <stdlib.h>

cmoe_status cli_observe(struct cli_session *session, const cmoe_problem *p,
                        const cmoe_weights_desc *desc, const cmoe_tensors *t,
                        cmoe_observation *seen)
{
    cmoe_weights *weights = NULL;
    cmoe_status status = cmoe_weights_create(session->host, p, desc, &weights);
    if (status == CMOE_OK) status = cmoe_observe(session->host, p, weights, t, seen);
    cmoe_weights_destroy(weights);
    return status;
}

/* The file's rows: of layer i they begin at i * stride. */
struct rows {
    float *x;
    int64_t tokens, stride;
};

static int read_rows(const char *path, int64_t hidden, int layers, struct rows *out)
{
    cmoe_array a;
    int code = cli_npy_read(path, &a);
    if (code != CLI_OK) return code;
    const bool parts = a.ndim == 3;
    const int64_t count = a.ndim >= 2 ? a.shape[a.ndim - 2] : 0;
    const int64_t n = (parts ? layers : 1) * count * hidden;
    out->tokens = count;
    out->stride = parts ? count * hidden : 0;
    if ((a.ndim != 2 && !parts) || a.shape[a.ndim - 1] != hidden || count < 1 || count > 1 << 20 ||
        (parts && a.shape[0] != layers))
        code =
            cli_fail(CLI_BAD_DATA,
                     "%s is neither 1 to 2^20 rows of %lld columns nor such rows for each of the "
                     "%d layers with experts",
                     path, (long long)hidden, layers);
    else if ((out->x = malloc((size_t)n * sizeof *out->x)) == NULL)
        code = cli_fail(CLI_NO_MEMORY, "out of memory");
    else if (cmoe_convert(CMOE_F32, out->x, a.dtype, a.data, n) != CMOE_OK)
        code = cli_fail(CLI_BAD_DATA, "%s does not hold floating point numbers", path);
    cmoe_array_free(&a);
    return code;
}

static cmoe_status observe_layer(struct cli_session *session, const cmoe_layer *layer,
                                 const float *x, int64_t tokens, cmoe_observation *seen)
{
    struct cli_router router;
    cmoe_problem p = layer->problem;
    p.max_tokens = (int32_t)tokens;
    p.flags |= CMOE_ROUTE_FROM_X;
    p.in = p.y = CMOE_F32;
    p.x = p.mid = (cmoe_format){.dtype = CMOE_F32};
    cmoe_status status = cli_router_read(layer, &router);
    if (status != CMOE_OK) return status;
    const cmoe_weights_desc desc = {
        .struct_size = sizeof desc, .gate_up = layer->gate, .up = layer->up, .down = layer->down};
    const cmoe_tensors t = {
        .struct_size = sizeof t,
        .n_tokens = (int32_t)tokens,
        .x = x,
        .router_w = router.w,
        .router_b = router.logit_bias,
        .route_bias = router.route_bias,
    };
    status = cli_observe(session, &p, &desc, &t, seen);
    cli_router_free(&router);
    return status;
}

static cmoe_status observe_layers(struct cli_session *session, const struct cli_model *model,
                                  const struct rows *rows, struct cli_calibration *out)
{
    struct cli_progress progress = {.what = "calibrate: layer", .start = cli_now()};
    cmoe_status status = CMOE_OK;
    int at = 0;
    for (int l = 0; l < model->config.layers && status == CMOE_OK; l++) {
        cmoe_layer layer;
        cmoe_observation seen = {.struct_size = sizeof seen};
        if (!cli_model_has_experts(&model->config, l)) continue;
        cli_progress_show(&progress, at, out->layers);
        status = cmoe_layer_open(model->checkpoint, &model->config, l, &layer);
        if (status != CMOE_OK) break;
        status = observe_layer(session, &layer, rows->x + at * rows->stride, rows->tokens, &seen);
        cmoe_layer_free(&layer);
        out->x_amax[at] = seen.x_amax;
        out->mid_amax[at++] = seen.mid_amax;
    }
    cli_progress_end(&progress);
    return status;
}

static int calibrate(struct cli_session *session, const char *model_path, const char *path,
                     struct cli_calibration *out)
{
    struct cli_model model;
    struct rows rows = {.x = NULL};
    int code = cli_model_open(model_path, &model);
    if (code != CLI_OK) return code;
    out->layers = model.has_config ? cli_model_moe_layers(&model.config) : 0;
    out->x_amax = calloc((size_t)out->layers + 1, sizeof *out->x_amax);
    out->mid_amax = calloc((size_t)out->layers + 1, sizeof *out->mid_amax);
    if (out->layers == 0)
        code = cli_fail(CLI_BAD_DATA, "%s has no layer with experts", model_path);
    else if (out->x_amax == NULL || out->mid_amax == NULL)
        code = cli_fail(CLI_NO_MEMORY, "out of memory");
    if (code == CLI_OK) code = read_rows(path, model.config.problem.hidden, out->layers, &rows);
    if (code == CLI_OK) {
        const cmoe_status status = observe_layers(session, &model, &rows, out);
        if (status != CMOE_OK) code = cli_fail_status(status, NULL);
    }
    free(rows.x);
    cli_model_close(&model);
    return code;
}

int cli_calibrate(const char *model, const char *path, struct cli_calibration *out)
{
    struct cli_session session;
    *out = (struct cli_calibration){.layers = 0};
    int code = cli_session_open(&session);
    if (code == CLI_OK) code = cli_session_host_device(&session, NULL);
    if (code == CLI_OK) code = calibrate(&session, model, path, out);
    if (code != CLI_OK) cli_calibration_free(out);
    return cli_session_close(&session, code);
}

void cli_calibration_free(struct cli_calibration *calibration)
{
    free(calibration->x_amax);
    free(calibration->mid_amax);
    *calibration = (struct cli_calibration){.layers = 0};
}
