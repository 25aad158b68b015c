/* SPDX-License-Identifier: MIT
 * config.json to a problem: the family's keys are turned into a problem string, so that limits and
 * presets are those of every other problem. */
#include "fail.h"
#include "family.h"
#include "file.h"
#include "json.h"
#include "memory.h"

#include <cmoe/io.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

enum {
    CONFIG_LIMIT = 1 << 20, /* bytes */
    LAYER_LIMIT = 1 << 16,
    DEPTH = 64,
};

static const struct {
    const char *hidden_act, *act;
} activations[] = {
    {"silu", "silu"},
    {"swish", "silu"},
    {"gelu", "gelu"},
    {"gelu_new", "gelu-tanh"},
    {"gelu_pytorch_tanh", "gelu-tanh"},
    {"relu", "relu"},
};

/* Where in a file a value was looked for. */
struct source {
    const json_t *root;
    const char *what;
};

/* An absent or null value takes `fallback`, unless that is negative. */
static cmoe_status read_int(const struct source *s, const char *key, int fallback, int *out)
{
    const json_t *const value = json_object_get(s->root, key);
    if ((!value || json_is_null(value)) && fallback >= 0) {
        *out = fallback;
        return CMOE_OK;
    }
    const json_int_t v = json_integer_value(value);
    if (!json_is_integer(value) || v < 1 || v > INT_MAX) {
        return CMOE_FAIL(CMOE_ERR_CORRUPT, "%s: %s is not an integer from 1 to 2^31 - 1", s->what,
                         key);
    }
    *out = (int)v;
    return CMOE_OK;
}

static cmoe_status read_bool(const struct source *s, const char *key, int *out)
{
    const json_t *const value = json_object_get(s->root, key);
    if (value && !json_is_boolean(value) && !json_is_null(value)) {
        return CMOE_FAIL(CMOE_ERR_CORRUPT, "%s: %s is not true or false", s->what, key);
    }
    *out = json_is_true(value);
    return CMOE_OK;
}

static cmoe_status read_float(const struct source *s, const char *key, double fallback, float *out)
{
    const json_t *const value = json_object_get(s->root, key);
    const bool absent = !value || json_is_null(value);
    const float v = (float)(absent ? fallback : json_number_value(value));
    if ((!absent && !json_is_number(value)) || !isfinite(v) || v <= 0) {
        return CMOE_FAIL(CMOE_ERR_CORRUPT, "%s: %s is not a positive number", s->what, key);
    }
    *out = v;
    return CMOE_OK;
}

/* A string that must be there. */
static cmoe_status read_string(const struct source *s, const char *key, const char **out)
{
    *out = json_string_value(json_object_get(s->root, key));
    if (*out) return CMOE_OK;
    return CMOE_FAIL(CMOE_ERR_CORRUPT, "%s: %s is not a string", s->what, key);
}

static cmoe_status read_activation(const struct source *s, const char **act)
{
    const char *name = "silu";
    if (json_object_get(s->root, "hidden_act")) CMOE_TRY(read_string(s, "hidden_act", &name));
    for (size_t i = 0; i < sizeof activations / sizeof activations[0]; i++) {
        if (strcmp(activations[i].hidden_act, name) == 0) {
            *act = activations[i].act;
            return CMOE_OK;
        }
    }
    return CMOE_FAIL(CMOE_ERR_UNSUPPORTED, "%s: hidden_act \"%s\" is not read", s->what,
                     cmoe__quote(name).text);
}

static cmoe_status read_problem(const struct source *s, const struct cmoe_family *family,
                                cmoe_problem *p)
{
    int experts = 0, topk = 0, hidden = 0, inter = 0, renorm = 0;
    const char *act = NULL;
    char text[256];
    CMOE_TRY(read_int(s, family->experts, -1, &experts));
    CMOE_TRY(read_int(s, "num_experts_per_tok", -1, &topk));
    CMOE_TRY(read_int(s, "hidden_size", -1, &hidden));
    CMOE_TRY(read_int(s, family->inter, -1, &inter));
    CMOE_TRY(read_activation(s, &act));
    if (family->norm_topk) CMOE_TRY(read_bool(s, "norm_topk_prob", &renorm));
    snprintf(text, sizeof text, "e=%d k=%d h=%d i=%d router=%s%s act=%s scheme=bf16", experts, topk,
             hidden, inter, family->router,
             !family->norm_topk ? ""
             : renorm           ? " renorm"
                                : " renorm=0",
             act);
    cmoe_problem_init(p);
    CMOE_TRY(cmoe_problem_parse(p, text));
    const cmoe_status status = cmoe_problem_check(p);
    if (status != CMOE_ERR_INVALID) return status;
    return CMOE_FAIL(CMOE_ERR_CORRUPT, "%s: %s", s->what, cmoe_last_error());
}

/* Marks the layers without experts. */
static cmoe_status mark_dense(const struct source *s, int layers, uint8_t *dense)
{
    int step = 1;
    const json_t *const only = json_object_get(s->root, "mlp_only_layers");
    CMOE_TRY(read_int(s, "decoder_sparse_step", 1, &step));
    if (only && !json_is_array(only) && !json_is_null(only)) {
        return CMOE_FAIL(CMOE_ERR_CORRUPT, "%s: mlp_only_layers is not an array", s->what);
    }
    for (int i = 0; i < layers; i++)
        dense[i] = (i + 1) % step != 0;
    for (size_t i = 0; i < json_array_size(only); i++) {
        const json_t *const item = json_array_get(only, i);
        const json_int_t layer = json_integer_value(item);
        if (!json_is_integer(item) || layer < 0) {
            return CMOE_FAIL(CMOE_ERR_CORRUPT, "%s: mlp_only_layers has an entry that is no layer",
                             s->what);
        }
        if (layer < layers) dense[layer] = 1;
    }
    return CMOE_OK;
}

static cmoe_status count_dense(const struct source *s, int layers, int *out)
{
    int first = 0;
    uint8_t *const dense = cmoe__io_alloc((size_t)layers);
    if (!dense) return cmoe__fail_memory((size_t)layers, "layers");
    cmoe_status status = mark_dense(s, layers, dense);
    while (first < layers && dense[first])
        first++;
    for (int i = first; i < layers && status == CMOE_OK; i++) {
        if (!dense[i]) continue;
        status =
            CMOE_FAIL(CMOE_ERR_UNSUPPORTED,
                      "%s: layer %d has no experts, but layer %d before it has", s->what, i, first);
    }
    cmoe__io_free(dense);
    *out = first;
    return status;
}

static cmoe_status read_model(const struct source *s, const struct cmoe_family *family,
                              cmoe_model_config *out)
{
    CMOE_TRY(read_problem(s, family, &out->problem));
    CMOE_TRY(read_int(s, "num_hidden_layers", -1, &out->layers));
    if (out->layers > LAYER_LIMIT) {
        return CMOE_FAIL(CMOE_ERR_CORRUPT, "%s: num_hidden_layers is %d, at most %d are read",
                         s->what, out->layers, (int)LAYER_LIMIT);
    }
    if (family->sparse_step) CMOE_TRY(count_dense(s, out->layers, &out->dense_layers));
    CMOE_TRY(read_int(s, "num_attention_heads", -1, &out->heads));
    CMOE_TRY(read_int(s, "num_key_value_heads", out->heads, &out->kv_heads));
    CMOE_TRY(read_int(s, "head_dim", out->problem.hidden / out->heads, &out->head_dim));
    CMOE_TRY(read_int(s, "vocab_size", -1, &out->vocab));
    CMOE_TRY(read_bool(s, "tie_word_embeddings", &out->tied));
    CMOE_TRY(read_float(s, "rms_norm_eps", family->rms_eps, &out->rms_eps));
    const json_t *const rope = json_object_get(s->root, "rope_parameters");
    const struct source nested = {.root = json_is_object(rope) ? rope : s->root, .what = s->what};
    return read_float(&nested, "rope_theta", family->rope_theta, &out->rope_theta);
}

static cmoe_status parse(const char *text, size_t size, const char *what, cmoe_model_config *out)
{
    json_t *root = NULL;
    const char *type = NULL;
    *out = (cmoe_model_config){0};
    if (size > CONFIG_LIMIT) {
        return CMOE_FAIL(CMOE_ERR_CORRUPT, "%s: %zu bytes, at most %d are read", what, size,
                         (int)CONFIG_LIMIT);
    }
    CMOE_TRY(cmoe__json_parse(text, size, DEPTH, what, 0, &root));
    const struct source s = {.root = root, .what = what};
    cmoe_status status = read_string(&s, "model_type", &type);
    const struct cmoe_family *const family = type ? cmoe__family_find(type) : NULL;
    if (family) {
        memcpy(out->model_type, type, strlen(type) + 1);
        status = read_model(&s, family, out);
    } else if (status == CMOE_OK) {
        status = CMOE_FAIL(CMOE_ERR_UNSUPPORTED,
                           "%s: model_type \"%s\" is not read; mixtral, qwen2_moe, qwen3_moe and "
                           "olmoe are",
                           what, cmoe__quote(type).text);
    }
    json_decref(root);
    if (status != CMOE_OK) *out = (cmoe_model_config){0};
    return status;
}

cmoe_status cmoe_config_parse(const char *json, size_t size, cmoe_model_config *out)
{
    CMOE_TRY(cmoe__check_argument(json, "cmoe_config_parse", "json"));
    CMOE_TRY(cmoe__check_argument(out, "cmoe_config_parse", "out"));
    return parse(json, size, "config.json", out);
}

cmoe_status cmoe_config_read(const char *path, cmoe_model_config *out)
{
    char *text = NULL;
    size_t size = 0;
    CMOE_TRY(cmoe__check_argument(path, "cmoe_config_read", "path"));
    CMOE_TRY(cmoe__check_argument(out, "cmoe_config_read", "out"));
    *out = (cmoe_model_config){0};
    char *const file = cmoe__path_is_directory(path) ? cmoe__path_join(path, "config.json")
                                                     : cmoe__text_copy(path);
    if (!file) return cmoe__fail_memory(strlen(path), "a path");
    cmoe_status status = cmoe__file_load(file, CONFIG_LIMIT, &text, &size);
    if (status == CMOE_OK) status = parse(text, size, file, out);
    cmoe__io_free(text);
    cmoe__io_free(file);
    return status;
}
