/* SPDX-License-Identifier: MIT
 * A checkpoint with its configuration, and statistics of its layers' weights. */
#ifndef CMOE_CLI_MODEL_H
#define CMOE_CLI_MODEL_H

#include <cmoe/io.h>
#include <stdbool.h>

struct cli_model {
    cmoe_checkpoint *checkpoint;
    cmoe_model_config config;
    bool has_config; /* else only tensors can be listed */
};

/* Open a folder or a file; without config.json next to it a safetensors file has no configuration.
 * @return an exit code. */
int cli_model_open(const char *path, struct cli_model *out);
void cli_model_close(struct cli_model *model);

/* Whether a layer has experts, and the first one that has (-1: none). */
bool cli_model_has_experts(const cmoe_model_config *config, int layer);
int cli_model_first_layer(const cmoe_model_config *config);
int cli_model_moe_layers(const cmoe_model_config *config);

/* Codes, scales, zero points and globals of one expert's three matrices. */
double cli_model_expert_bytes(const cmoe_problem *p);

/* Values of scales or of decoded weights. */
struct cli_range {
    double min, max;
    int64_t count, zeros, nans; /* count: without nans */
};
void cli_range_add(struct cli_range *range, const float *values, int64_t n);

#endif
