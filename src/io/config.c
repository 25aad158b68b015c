/* SPDX-License-Identifier: MIT
 * config.json to a problem: the family's keys are turned into a problem string, so that limits and
 * presets are those of every other problem. */
#include "fail.h"
#include "family.h"
#include "file.h"
#include "gguf.h"
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

/* The router's keys as words of a problem, after the family's preset. */
static cmoe_status read_router(const struct source *s, const struct cmoe_family *family, char *text,
                               size_t size)
{
    int groups = 1, kept = 1, renorm = 0;
    float scale = 1;
    char part[64] = "";
    const char *method = NULL;
    if (family->traits & CMOE_FAMILY_NORM_TOPK) CMOE_TRY(read_bool(s, "norm_topk_prob", &renorm));
    if (family->traits & CMOE_FAMILY_GROUPS) {
        CMOE_TRY(read_int(s, "n_group", 1, &groups));
        CMOE_TRY(read_int(s, "topk_group", 1, &kept));
    }
    if (family->traits & CMOE_FAMILY_GREEDY && json_object_get(s->root, "topk_method")) {
        CMOE_TRY(read_string(s, "topk_method", &method));
        if (strcmp(method, "greedy") == 0) groups = 1;
        if (strcmp(method, "greedy") != 0 && strcmp(method, "group_limited_greedy") != 0) {
            return CMOE_FAIL(CMOE_ERR_UNSUPPORTED, "%s: topk_method \"%s\" is not read", s->what,
                             cmoe__quote(method).text);
        }
    } else if (family->traits & CMOE_FAMILY_GREEDY) {
        groups = 1;
    }
    if (family->traits & CMOE_FAMILY_SCALE)
        CMOE_TRY(read_float(s, "routed_scaling_factor", 1, &scale));
    if (family->traits & CMOE_FAMILY_GROUPS) {
        const bool sums = groups > 1 && !(family->traits & CMOE_FAMILY_GREEDY);
        snprintf(part, sizeof part, " groups=%d/%d gsum2=%d scale=%.9g", groups > 1 ? groups : 0,
                 groups > 1 ? kept : 0, sums, (double)scale);
    }
    snprintf(text, size, " router=%s%s%s", family->router, part,
             !(family->traits & CMOE_FAMILY_NORM_TOPK) ? ""
             : renorm                                  ? " renorm"
                                                       : " renorm=0");
    return CMOE_OK;
}

/* The activation, and what gpt-oss adds to the experts. */
static cmoe_status read_experts(const struct source *s, const struct cmoe_family *family,
                                char *text, size_t size)
{
    const char *act = NULL;
    float limit = 0, alpha = 0;
    if (!(family->traits & CMOE_FAMILY_OAI)) {
        CMOE_TRY(read_activation(s, &act));
        snprintf(text, size, " act=%s", act);
        return CMOE_OK;
    }
    CMOE_TRY(read_float(s, "swiglu_limit", 7, &limit));
    CMOE_TRY(read_float(s, "swiglu_alpha", 1.702, &alpha));
    snprintf(text, size, " act=swiglu-oai limit=%.9g alpha=%.9g gate=interleaved b1 b2",
             (double)limit, (double)alpha);
    return CMOE_OK;
}

/* The family's key of E, unless only another one is there: writers differ by version. */
static const char *experts_key(const struct source *s, const struct cmoe_family *family)
{
    static const char *const keys[] = {"num_experts", "num_local_experts", "n_routed_experts"};
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        const bool own = json_object_get(s->root, family->experts) != NULL;
        if (!own && json_object_get(s->root, keys[i])) return keys[i];
    }
    return family->experts;
}

static cmoe_status read_problem(const struct source *s, const struct cmoe_family *family,
                                cmoe_problem *p)
{
    int experts = 0, topk = 0, hidden = 0, inter = 0;
    char text[512], router[192], act[128];
    CMOE_TRY(read_int(s, experts_key(s, family), -1, &experts));
    CMOE_TRY(read_int(s, "num_experts_per_tok", -1, &topk));
    CMOE_TRY(read_int(s, "hidden_size", -1, &hidden));
    CMOE_TRY(read_int(s, family->inter, -1, &inter));
    CMOE_TRY(read_experts(s, family, act, sizeof act));
    CMOE_TRY(read_router(s, family, router, sizeof router));
    snprintf(text, sizeof text, "e=%d k=%d h=%d i=%d%s%s scheme=bf16", experts, topk, hidden, inter,
             router, act);
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

/* Leading dense layers, or every step-th layer with experts. */
static cmoe_status read_layers(const struct source *s, const struct cmoe_family *family,
                               cmoe_model_config *out)
{
    out->moe_step = 1;
    if (family->traits & CMOE_FAMILY_SPARSE_STEP)
        return count_dense(s, out->layers, &out->dense_layers);
    if (family->traits & CMOE_FAMILY_MOE_STEP) {
        CMOE_TRY(read_int(s, "interleave_moe_layer_step", 1, &out->moe_step));
        out->dense_layers = out->moe_step - 1;
    }
    const json_t *const first = json_object_get(s->root, "first_k_dense_replace");
    if (family->traits & CMOE_FAMILY_FIRST_DENSE && first && json_integer_value(first) != 0)
        CMOE_TRY(read_int(s, "first_k_dense_replace", 0, &out->dense_layers));
    if (out->dense_layers > out->layers) out->dense_layers = out->layers;
    return CMOE_OK;
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
    CMOE_TRY(read_layers(s, family, out));
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

/* quantization_config: its method and format as one word. What it describes is read from the
 * tensors themselves; only what they cannot tell is checked here. */
static cmoe_status read_quantization(const struct source *s, char *text, size_t size)
{
    const json_t *config = json_object_get(s->root, "quantization_config");
    if (!config) config = json_object_get(s->root, "compression_config");
    if (!config || json_is_null(config)) return CMOE_OK;
    const char *const method = json_string_value(json_object_get(config, "quant_method"));
    if (!method) {
        return CMOE_FAIL(CMOE_ERR_CORRUPT, "%s: quantization_config has no quant_method", s->what);
    }
    const char *format = json_string_value(json_object_get(config, "format"));
    if (!format) format = json_string_value(json_object_get(config, "checkpoint_format"));
    snprintf(text, size, "%s%s%s", cmoe__quote(method).text, format ? "/" : "",
             format ? cmoe__quote(format).text : "");
    const json_t *const block = json_object_get(config, "weight_block_size");
    for (size_t i = 0; i < json_array_size(block); i++) {
        const json_int_t n = json_integer_value(json_array_get(block, i));
        if (n != 128) {
            return CMOE_FAIL(CMOE_ERR_UNSUPPORTED,
                             "%s: weight_block_size has %" JSON_INTEGER_FORMAT "; 128 is read",
                             s->what, n);
        }
    }
    return CMOE_OK;
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
        const json_t *const inner = family->nested ? json_object_get(root, family->nested) : NULL;
        const struct source model = {.root = json_is_object(inner) ? inner : root, .what = what};
        status = read_quantization(&s, out->quantization, sizeof out->quantization);
        if (status == CMOE_OK) status = read_model(&model, family, out);
    } else if (status == CMOE_OK) {
        char known[256];
        status = CMOE_FAIL(CMOE_ERR_UNSUPPORTED, "%s: model_type \"%s\" is not read; %s are", what,
                           cmoe__quote(type).text, cmoe__family_list(known, sizeof known));
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

/* The metadata of a GGUF file. */
static cmoe_status read_gguf(const char *path, const struct cmoe_mapping *file,
                             cmoe_model_config *out)
{
    struct cmoe_header header;
    char *text = NULL;
    CMOE_TRY(cmoe__gguf_parse(file->data, file->size, path, &header));
    cmoe__header_free(&header);
    CMOE_TRY(cmoe__gguf_config(file->data, file->size, path, &text));
    const cmoe_status status = parse(text, strlen(text), path, out);
    if (status == CMOE_OK) strcpy(out->quantization, "gguf");
    cmoe__io_free(text);
    return status;
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
    struct cmoe_mapping mapping = {0};
    cmoe_status status = cmoe__file_map(file, &mapping);
    if (status == CMOE_OK && cmoe__gguf_is(mapping.data, mapping.size)) {
        status = read_gguf(file, &mapping, out);
        cmoe__file_unmap(&mapping);
        cmoe__io_free(file);
        return status;
    }
    cmoe__file_unmap(&mapping);
    if (status == CMOE_OK) status = cmoe__file_load(file, CONFIG_LIMIT, &text, &size);
    if (status == CMOE_OK) status = parse(text, size, file, out);
    cmoe__io_free(text);
    cmoe__io_free(file);
    return status;
}
