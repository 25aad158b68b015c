/* SPDX-License-Identifier: MIT
 * Opening a model by its folder or file. */
#include "cli/model.h"

#include "cli/args.h"
#include "cli/report.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

static bool exists(const char *path)
{
    struct stat info;
    return stat(path, &info) == 0;
}

/* config.json of a folder, next to a file, or the GGUF file itself. */
static void config_path(const char *path, char *out, size_t size)
{
    struct stat info;
    const char *dot = strrchr(path, '.');
    const bool folder = stat(path, &info) == 0 && S_ISDIR(info.st_mode);
    if (folder || (dot != NULL && strcmp(dot, ".gguf") == 0)) {
        snprintf(out, size, "%s", path);
        return;
    }
    const char *slash = strrchr(path, '/');
    const int length = slash != NULL ? (int)(slash - path + 1) : 0;
    snprintf(out, size, "%.*sconfig.json", length, path);
}

int cli_model_open(const char *path, struct cli_model *out)
{
    char config[4096];
    struct stat info;
    *out = (struct cli_model){.checkpoint = NULL};
    cmoe_status status = cmoe_checkpoint_open(path, &out->checkpoint);
    if (status != CMOE_OK) return cli_fail_status(status, NULL);
    config_path(path, config, sizeof config);
    const bool folder = stat(path, &info) == 0 && S_ISDIR(info.st_mode);
    out->has_config = folder || exists(config);
    if (out->has_config) status = cmoe_config_read(config, &out->config);
    if (status == CMOE_OK) return CLI_OK;
    const int code = cli_fail_status(status, NULL);
    cli_model_close(out);
    return code;
}

void cli_model_close(struct cli_model *model)
{
    cmoe_checkpoint_close(model->checkpoint);
    model->checkpoint = NULL;
}

bool cli_model_has_experts(const cmoe_model_config *config, int layer)
{
    const int step = config->moe_step > 1 ? config->moe_step : 1;
    return layer >= config->dense_layers && layer < config->layers &&
           (layer - config->dense_layers) % step == 0;
}

int cli_model_first_layer(const cmoe_model_config *config)
{
    return config->dense_layers < config->layers ? config->dense_layers : -1;
}

int cli_model_moe_layers(const cmoe_model_config *config)
{
    int n = 0;
    for (int l = 0; l < config->layers; l++)
        n += cli_model_has_experts(config, l);
    return n;
}

double cli_model_expert_bytes(const cmoe_problem *p)
{
    size_t codes[2] = {0}, scales[2] = {0}, zeros[2] = {0};
    if (cmoe_format_bytes(p->w, 2 * (int64_t)p->inter, p->hidden, &codes[0], &scales[0],
                          &zeros[0]) != CMOE_OK ||
        cmoe_format_bytes(p->w, p->hidden, p->inter, &codes[1], &scales[1], &zeros[1]) != CMOE_OK)
        return 0;
    const double globals = p->w.scaling == CMOE_SCALE_NV ? 3.0 * sizeof(float) : 0;
    return (double)(codes[0] + scales[0] + zeros[0] + codes[1] + scales[1] + zeros[1]) + globals;
}

void cli_range_add(struct cli_range *range, const float *values, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        const double v = (double)values[i];
        if (isnan(v)) {
            range->nans++;
            continue;
        }
        if (range->count == 0 || v < range->min) range->min = v;
        if (range->count == 0 || v > range->max) range->max = v;
        range->zeros += v == 0;
        range->count++;
    }
}
