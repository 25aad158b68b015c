/* SPDX-License-Identifier: MIT
 * Quantised layers from any safetensors header: the input is a header's JSON; its data is what the
 * header asks for, up to a limit. What is accepted can be decoded. */
#include <cmoe/io.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { LIMIT = 1 << 17, H = 64, I = 64, E = 4 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char config_text[] =
    "{\"model_type\":\"qwen3_moe\",\"hidden_size\":64,\"moe_intermediate_size\":64,"
    "\"num_experts\":4,\"num_experts_per_tok\":1,\"num_hidden_layers\":1,"
    "\"num_attention_heads\":1,\"vocab_size\":8,"
    "\"quantization_config\":{\"quant_method\":\"gptq\"}}";

/* The header with every amount of data that its tensors could have, the first that is accepted. */
static cmoe_checkpoint *open_image(const uint8_t *json, size_t size, int fd, const char *path)
{
    /* The end of the data is the largest number in the text that follows a comma and ends a list. */
    uint64_t end = 0;
    for (size_t i = 0; i + 1 < size; i++) {
        uint64_t n = 0;
        size_t j = i + 1;
        if (json[i] != ',') continue;
        while (j < size && json[j] >= '0' && json[j] <= '9' && n < LIMIT)
            n = 10 * n + (uint64_t)(json[j++] - '0');
        if (j < size && json[j] == ']' && n > end && n < LIMIT) end = n;
    }
    uint8_t length[8] = {0};
    memcpy(length, &(const uint64_t){size}, sizeof length);
    cmoe_checkpoint *c = NULL;
    if (ftruncate(fd, 0) != 0 || pwrite(fd, length, 8, 0) != 8 ||
        pwrite(fd, json, size, 8) != (ssize_t)size || ftruncate(fd, (off_t)(8 + size + end)) != 0)
        return NULL;
    return cmoe_checkpoint_open(path, &c) == CMOE_OK ? c : NULL;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static int fd = -1;
    static float values[H * I];
    char path[64];
    cmoe_model_config config;
    cmoe_layer layer;
    if (fd < 0) fd = memfd_create("fuzz", 0);
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    if (size > LIMIT || cmoe_config_parse(config_text, sizeof config_text - 1, &config) != CMOE_OK)
        return 0;
    cmoe_checkpoint *const c = open_image(data, size, fd, path);
    if (!c) return 0;
    if (cmoe_layer_open(c, &config, 0, &layer) == CMOE_OK) {
        for (int e = 0; e < E; e++)
            for (int m = 0; m < 3; m++)
                if (cmoe_layer_decode(&layer, e, m, values) != CMOE_OK) abort();
        cmoe_layer_free(&layer);
    }
    cmoe_checkpoint_close(c);
    return 0;
}
