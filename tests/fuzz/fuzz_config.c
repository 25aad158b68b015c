/* SPDX-License-Identifier: MIT
 * cmoe_config_parse on any text: an accepted configuration is a problem that can be planned. */
#include <cmoe/io.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    cmoe_model_config config;
    if (cmoe_config_parse((const char *)data, size, &config) != CMOE_OK) return 0;
    if (cmoe_problem_check(&config.problem) != CMOE_OK) abort();
    if (config.layers < 1 || config.dense_layers > config.layers || config.heads < 1) abort();
    return 0;
}
