/* SPDX-License-Identifier: MIT
 * The metadata of a GGUF file as a config.json: the same keys mean the same things under other
 * names, and the one reader of configurations then checks them. */
#include "fail.h"
#include "family.h"
#include "gguf.h"
#include "memory.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

enum { TEXT = 2048, SIGMOID = 2 };

struct writer {
    const void *image;
    size_t size;
    char architecture[64];
    char *text;
    size_t used;
};

static struct cmoe_gguf_value find(const struct writer *w, const char *key)
{
    char name[160];
    snprintf(name, sizeof name, "%s.%s", w->architecture, key);
    return cmoe__gguf_find(w->image, w->size, name);
}

/* "key":value, unless the metadata has none. */
static void put(struct writer *w, const char *key, struct cmoe_gguf_value v)
{
    char *const at = w->text + w->used;
    const size_t room = TEXT - w->used;
    int n = 0;
    if (v.kind == CMOE_GGUF_INTEGER) n = snprintf(at, room, ",\"%s\":%" PRId64, key, v.integer);
    if (v.kind == CMOE_GGUF_REAL) n = snprintf(at, room, ",\"%s\":%.17g", key, v.real);
    if (v.kind == CMOE_GGUF_BOOL)
        n = snprintf(at, room, ",\"%s\":%s", key, v.integer ? "true" : "false");
    w->used += n > 0 && (size_t)n < room ? (size_t)n : 0;
}

static const struct {
    const char *key, *gguf;
} keys[] = {
    {"num_experts_per_tok", "expert_used_count"},
    {"hidden_size", "embedding_length"},
    {"num_hidden_layers", "block_count"},
    {"num_attention_heads", "attention.head_count"},
    {"num_key_value_heads", "attention.head_count_kv"},
    {"head_dim", "attention.key_length"},
    {"rms_norm_eps", "attention.layer_norm_rms_epsilon"},
    {"rope_theta", "rope.freq_base"},
    {"first_k_dense_replace", "leading_dense_block_count"},
    {"n_group", "expert_group_count"},
    {"topk_group", "expert_group_used_count"},
    {"routed_scaling_factor", "expert_weights_scale"},
    {"interleave_moe_layer_step", "interleave_moe_layer_step"},
};

/* deepseek2 is the name of three families: V3 scores with a sigmoid. */
static const struct cmoe_family *family_of(const struct writer *w)
{
    const struct cmoe_family *const f = cmoe__family_find_gguf(w->architecture);
    const struct cmoe_gguf_value score = find(w, "expert_gating_func");
    if (f && strcmp(f->model_type, "deepseek_v2") == 0 && score.integer == SIGMOID)
        return cmoe__family_find("deepseek_v3");
    return f;
}

static void put_all(struct writer *w, const struct cmoe_family *f)
{
    const struct cmoe_gguf_value yes = {.kind = CMOE_GGUF_BOOL, .integer = 1};
    struct cmoe_gguf_value inter = find(w, "expert_feed_forward_length");
    if (inter.kind == CMOE_GGUF_ABSENT) inter = find(w, "feed_forward_length");
    struct cmoe_gguf_value norm = find(w, "expert_weights_norm");
    if (norm.kind == CMOE_GGUF_ABSENT && strcmp(f->model_type, "qwen3_moe") == 0) norm = yes;
    struct cmoe_gguf_value words = find(w, "vocab_size");
    if (words.kind == CMOE_GGUF_ABSENT) {
        words = cmoe__gguf_find(w->image, w->size, "tokenizer.ggml.tokens");
        if (words.kind == CMOE_GGUF_ARRAY) words.kind = CMOE_GGUF_INTEGER;
    }
    w->used += (size_t)snprintf(w->text, TEXT, "{\"model_type\":\"%s\"", f->model_type);
    put(w, f->experts, find(w, "expert_count"));
    put(w, f->inter, inter);
    put(w, "norm_topk_prob", norm);
    put(w, "vocab_size", words);
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++)
        put(w, keys[i].key, find(w, keys[i].gguf));
    if (f->traits & CMOE_FAMILY_GREEDY)
        w->used += (size_t)snprintf(
            w->text + w->used, TEXT - w->used, ",\"topk_method\":\"%s\"",
            find(w, "expert_group_count").integer > 1 ? "group_limited_greedy" : "greedy");
    snprintf(w->text + w->used, TEXT - w->used, "}");
}

cmoe_status cmoe__gguf_config(const void *image, size_t size, const char *what, char **text)
{
    struct writer w = {.image = image, .size = size};
    const struct cmoe_gguf_value name = cmoe__gguf_find(image, size, "general.architecture");
    if (name.kind != CMOE_GGUF_TEXT || name.integer >= (int64_t)sizeof w.architecture) {
        return CMOE_FAIL(CMOE_ERR_CORRUPT, "%s: general.architecture is no short string", what);
    }
    memcpy(w.architecture, name.text, (size_t)name.integer);
    const struct cmoe_family *const f = family_of(&w);
    if (!f) {
        return CMOE_FAIL(CMOE_ERR_UNSUPPORTED,
                         "%s: general.architecture \"%s\" is not read; llama, qwen2moe, qwen3moe, "
                         "qwen35moe, olmoe, deepseek2, glm4moe, gpt-oss and llama4 are",
                         what, cmoe__quote(w.architecture).text);
    }
    *text = w.text = cmoe__io_alloc(TEXT);
    if (!w.text) return cmoe__fail_memory(TEXT, "a configuration");
    put_all(&w, f);
    return CMOE_OK;
}
