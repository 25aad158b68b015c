/* SPDX-License-Identifier: MIT
 * One row a family. */
#include "family.h"

#include <stddef.h>
#include <string.h>

static const struct cmoe_family families[] = {
    {
        .model_type = "mixtral",
        .router = "mixtral",
        .experts = "num_local_experts",
        .inter = "intermediate_size",
        .rms_eps = 1e-5,
        .rope_theta = 1e6,
        .block = "block_sparse_moe",
        .gate = "w1",
        .up = "w3",
        .down = "w2",
    },
    {
        .model_type = "qwen2_moe",
        .router = "qwen2-moe",
        .experts = "num_experts",
        .inter = "moe_intermediate_size",
        .norm_topk = true,
        .sparse_step = true,
        .rms_eps = 1e-6,
        .rope_theta = 1e4,
        .block = "mlp",
        .gate = "gate_proj",
        .up = "up_proj",
        .down = "down_proj",
    },
    {
        .model_type = "qwen3_moe",
        .router = "qwen3",
        .experts = "num_experts",
        .inter = "moe_intermediate_size",
        .norm_topk = true,
        .sparse_step = true,
        .rms_eps = 1e-6,
        .rope_theta = 1e4,
        .block = "mlp",
        .gate = "gate_proj",
        .up = "up_proj",
        .down = "down_proj",
    },
    {
        .model_type = "olmoe",
        .router = "olmoe",
        .experts = "num_experts",
        .inter = "intermediate_size",
        .norm_topk = true,
        .rms_eps = 1e-5,
        .rope_theta = 1e4,
        .block = "mlp",
        .gate = "gate_proj",
        .up = "up_proj",
        .down = "down_proj",
    },
};

const struct cmoe_family *cmoe__family_find(const char *model_type)
{
    for (size_t i = 0; i < sizeof families / sizeof families[0]; i++) {
        if (strcmp(families[i].model_type, model_type) == 0) return &families[i];
    }
    return NULL;
}
