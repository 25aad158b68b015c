/* SPDX-License-Identifier: MIT
 * One row a family. */
#include "family.h"

#include <stddef.h>
#include <stdio.h>
#include <string.h>

enum {
    DEEPSEEK = CMOE_FAMILY_FIRST_DENSE | CMOE_FAMILY_GROUPS | CMOE_FAMILY_SCALE,
    QWEN = CMOE_FAMILY_NORM_TOPK | CMOE_FAMILY_SPARSE_STEP,
    GPT_OSS =
        CMOE_FAMILY_OAI | CMOE_FAMILY_BIASES | CMOE_FAMILY_INTERLEAVED | CMOE_FAMILY_TRANSPOSED,
    LLAMA4 = CMOE_FAMILY_MOE_STEP | CMOE_FAMILY_TRANSPOSED,
};

#define PROJECTIONS .gate = "gate_proj", .up = "up_proj", .down = "down_proj"
#define IN_MLP      .block = "mlp", .gate_name = "gate", PROJECTIONS

static const struct cmoe_family families[] = {
    {
        .model_type = "mixtral",
        .gguf = "llama",
        .router = "mixtral",
        .experts = "num_local_experts",
        .inter = "intermediate_size",
        .rms_eps = 1e-5,
        .rope_theta = 1e6,
        .block = "block_sparse_moe",
        .gate_name = "gate",
        .gate = "w1",
        .up = "w3",
        .down = "w2",
    },
    {
        .model_type = "qwen2_moe",
        .gguf = "qwen2moe",
        .router = "qwen2-moe",
        .traits = QWEN,
        .experts = "num_experts",
        .inter = "moe_intermediate_size",
        .rms_eps = 1e-6,
        .rope_theta = 1e4,
        IN_MLP,
        .shared = "shared_expert",
    },
    {
        .model_type = "qwen3_moe",
        .gguf = "qwen3moe",
        .router = "qwen3",
        .traits = QWEN,
        .experts = "num_experts",
        .inter = "moe_intermediate_size",
        .rms_eps = 1e-6,
        .rope_theta = 1e4,
        IN_MLP,
    },
    {
        .model_type = "qwen3_5_moe",
        .nested = "text_config",
        .gguf = "qwen35moe",
        .router = "qwen3",
        .experts = "num_experts",
        .inter = "moe_intermediate_size",
        .rms_eps = 1e-6,
        .rope_theta = 1e4,
        IN_MLP,
        .shared = "shared_expert",
    },
    {
        .model_type = "qwen3_5_moe_text",
        .router = "qwen3",
        .experts = "num_experts",
        .inter = "moe_intermediate_size",
        .rms_eps = 1e-6,
        .rope_theta = 1e4,
        IN_MLP,
        .shared = "shared_expert",
    },
    {
        .model_type = "olmoe",
        .gguf = "olmoe",
        .router = "olmoe",
        .traits = CMOE_FAMILY_NORM_TOPK,
        .experts = "num_experts",
        .inter = "intermediate_size",
        .rms_eps = 1e-5,
        .rope_theta = 1e4,
        IN_MLP,
    },
    {
        .model_type = "deepseek_v2",
        .gguf = "deepseek2",
        .router = "deepseek-v2-lite",
        .traits = DEEPSEEK | CMOE_FAMILY_GREEDY,
        .experts = "n_routed_experts",
        .inter = "moe_intermediate_size",
        .rms_eps = 1e-6,
        .rope_theta = 1e4,
        IN_MLP,
        .shared = "shared_experts",
    },
    {
        .model_type = "deepseek_v3",
        .router = "deepseek-v3",
        .traits = DEEPSEEK | CMOE_FAMILY_NORM_TOPK,
        .experts = "n_routed_experts",
        .inter = "moe_intermediate_size",
        .rms_eps = 1e-6,
        .rope_theta = 1e4,
        IN_MLP,
        .shared = "shared_experts",
    },
    {
        .model_type = "glm4_moe",
        .gguf = "glm4moe",
        .router = "glm4",
        .traits = DEEPSEEK | CMOE_FAMILY_NORM_TOPK,
        .experts = "n_routed_experts",
        .inter = "moe_intermediate_size",
        .rms_eps = 1e-5,
        .rope_theta = 1e4,
        IN_MLP,
        .shared = "shared_experts",
    },
    {
        .model_type = "gpt_oss",
        .gguf = "gpt-oss",
        .router = "gpt-oss",
        .traits = GPT_OSS,
        .experts = "num_local_experts",
        .inter = "intermediate_size",
        .rms_eps = 1e-5,
        .rope_theta = 150000,
        .block = "mlp",
        .gate_name = "router",
        PROJECTIONS,
    },
    {
        .model_type = "llama4",
        .nested = "text_config",
        .gguf = "llama4",
        .router = "llama4",
        .traits = LLAMA4,
        .experts = "num_local_experts",
        .inter = "intermediate_size",
        .rms_eps = 1e-5,
        .rope_theta = 500000,
        .block = "feed_forward",
        .gate_name = "router",
        PROJECTIONS,
        .shared = "shared_expert",
    },
    {
        .model_type = "llama4_text",
        .router = "llama4",
        .traits = LLAMA4,
        .experts = "num_local_experts",
        .inter = "intermediate_size",
        .rms_eps = 1e-5,
        .rope_theta = 500000,
        .block = "feed_forward",
        .gate_name = "router",
        PROJECTIONS,
        .shared = "shared_expert",
    },
};
enum { FAMILIES = sizeof families / sizeof families[0] };

const struct cmoe_family *cmoe__family_find(const char *model_type)
{
    for (size_t i = 0; i < FAMILIES; i++) {
        if (strcmp(families[i].model_type, model_type) == 0) return &families[i];
    }
    return NULL;
}

const struct cmoe_family *cmoe__family_find_gguf(const char *architecture)
{
    for (size_t i = 0; i < FAMILIES; i++) {
        const char *const name = families[i].gguf;
        if (name && strcmp(name, architecture) == 0) return &families[i];
    }
    return NULL;
}

const char *cmoe__family_list(char *text, int size)
{
    int used = 0;
    text[0] = '\0';
    for (size_t i = 0; i < FAMILIES && used < size; i++) {
        const int n = snprintf(text + used, (size_t)(size - used), "%s%s", i ? ", " : "",
                               families[i].model_type);
        used += n > 0 ? n : 0;
    }
    return text;
}
