/* SPDX-License-Identifier: MIT
 * config.json of every family, as their makers publish it, and everything that can be wrong in one.
 * ctest: labels=portable */
#include "harness.h"

#include "harness_files.h"
#include "io/memory.h"

#include <cmoe/io.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Keys in the order and with the values of the models' published files, cut to what is read. */
static const char mixtral[] =
    "{\"architectures\":[\"MixtralForCausalLM\"],\"hidden_act\":\"silu\",\"hidden_size\":4096,"
    "\"intermediate_size\":14336,\"model_type\":\"mixtral\",\"num_attention_heads\":32,"
    "\"num_experts_per_tok\":2,\"num_hidden_layers\":32,\"num_key_value_heads\":8,"
    "\"num_local_experts\":8,\"rms_norm_eps\":1e-05,\"rope_theta\":1000000.0,"
    "\"router_aux_loss_coef\":0.02,\"sliding_window\":null,\"tie_word_embeddings\":false,"
    "\"torch_dtype\":\"bfloat16\",\"vocab_size\":32000}";
static const char qwen2[] =
    "{\"decoder_sparse_step\":1,\"hidden_act\":\"silu\",\"hidden_size\":2048,"
    "\"intermediate_size\":5632,\"model_type\":\"qwen2_moe\",\"moe_intermediate_size\":1408,"
    "\"norm_topk_prob\":false,\"num_attention_heads\":16,\"num_experts\":60,"
    "\"num_experts_per_tok\":4,\"num_hidden_layers\":24,\"num_key_value_heads\":16,"
    "\"rms_norm_eps\":1e-06,\"rope_theta\":1000000.0,\"shared_expert_intermediate_size\":5632,"
    "\"tie_word_embeddings\":false,\"vocab_size\":151936}";
static const char qwen3[] =
    "{\"decoder_sparse_step\":1,\"head_dim\":128,\"hidden_act\":\"silu\",\"hidden_size\":2048,"
    "\"intermediate_size\":6144,\"mlp_only_layers\":[],\"model_type\":\"qwen3_moe\","
    "\"moe_intermediate_size\":768,\"norm_topk_prob\":true,\"num_attention_heads\":32,"
    "\"num_experts\":128,\"num_experts_per_tok\":8,\"num_hidden_layers\":48,"
    "\"num_key_value_heads\":4,\"rms_norm_eps\":1e-06,\"rope_scaling\":null,"
    "\"rope_theta\":1000000.0,\"tie_word_embeddings\":false,\"vocab_size\":151936}";
static const char olmoe[] =
    "{\"clip_qkv\":null,\"hidden_act\":\"silu\",\"hidden_size\":2048,\"intermediate_size\":1024,"
    "\"model_type\":\"olmoe\",\"norm_topk_prob\":false,\"num_attention_heads\":16,"
    "\"num_experts\":64,\"num_experts_per_tok\":8,\"num_hidden_layers\":16,"
    "\"num_key_value_heads\":16,\"rms_norm_eps\":1e-05,\"rope_theta\":10000.0,"
    "\"tie_word_embeddings\":false,\"vocab_size\":50304}";

static const struct {
    const char *json, *type, *problem;
    int layers, heads, kv_heads, head_dim, vocab;
    float eps, theta;
} families[] = {
    {mixtral, "mixtral", "e=8 k=2 h=4096 i=14336 renorm", 32, 32, 8, 128, 32000, 1e-5f, 1e6f},
    {qwen2, "qwen2_moe", "e=60 k=4 h=2048 i=1408", 24, 16, 16, 128, 151936, 1e-6f, 1e6f},
    {qwen3, "qwen3_moe", "e=128 k=8 h=2048 i=768 renorm", 48, 32, 4, 128, 151936, 1e-6f, 1e6f},
    {olmoe, "olmoe", "e=64 k=8 h=2048 i=1024", 16, 16, 16, 128, 50304, 1e-5f, 1e4f},
};

static void check_problem(const cmoe_problem *got, const char *text)
{
    char a[512], b[512];
    const cmoe_problem want = test_problem(text);
    cmoe_problem_print(got, a, sizeof a);
    cmoe_problem_print(&want, b, sizeof b);
    assert_string_equal(a, b);
}

static void test_families(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof families / sizeof families[0]; i++) {
        cmoe_model_config c;
        expect_ok(cmoe_config_parse(families[i].json, strlen(families[i].json), &c));
        assert_string_equal(c.model_type, families[i].type);
        check_problem(&c.problem, families[i].problem);
        assert_int_equal(c.layers, families[i].layers);
        assert_int_equal(c.dense_layers, 0);
        assert_int_equal(c.heads, families[i].heads);
        assert_int_equal(c.kv_heads, families[i].kv_heads);
        assert_int_equal(c.head_dim, families[i].head_dim);
        assert_int_equal(c.vocab, families[i].vocab);
        assert_int_equal(c.tied, 0);
        assert_true(c.rms_eps == families[i].eps);
        assert_true(c.rope_theta == families[i].theta);
    }
}

/* The qwen3 file with one value replaced: `from` must occur in it. */
static char *edited(const char *from, const char *to)
{
    const char *const at = strstr(qwen3, from);
    char *const out = malloc(sizeof qwen3 + strlen(to));
    if (!at || !out) fail_with("%s is not in the file", from);
    sprintf(out, "%.*s%s%s", (int)(at - qwen3), qwen3, to, at + strlen(from));
    return out;
}

static const struct {
    const char *from, *to;
    cmoe_status status;
    const char *part;
} edits[] = {
    {"\"qwen3_moe\"", "\"llama\"", CMOE_ERR_UNSUPPORTED, "model_type \"llama\""},
    {"\"qwen3_moe\"", "\"\\u001b[2J\"", CMOE_ERR_UNSUPPORTED, "model_type \"?[2J\""},
    {"\"qwen3_moe\"", "7", CMOE_ERR_CORRUPT, "model_type is not a string"},
    {"\"model_type\":\"qwen3_moe\",", "", CMOE_ERR_CORRUPT, "model_type is not a string"},
    {"\"silu\"", "\"xielu\"", CMOE_ERR_UNSUPPORTED, "hidden_act \"xielu\""},
    {"\"silu\"", "1", CMOE_ERR_CORRUPT, "hidden_act"},
    {"\"hidden_size\":2048,", "", CMOE_ERR_CORRUPT, "hidden_size"},
    {"\"hidden_size\":2048", "\"hidden_size\":0", CMOE_ERR_CORRUPT, "hidden_size"},
    {"\"hidden_size\":2048", "\"hidden_size\":-1", CMOE_ERR_CORRUPT, "hidden_size"},
    {"\"hidden_size\":2048", "\"hidden_size\":2048.0", CMOE_ERR_CORRUPT, "hidden_size"},
    {"\"hidden_size\":2048", "\"hidden_size\":\"2048\"", CMOE_ERR_CORRUPT, "hidden_size"},
    {"\"hidden_size\":2048", "\"hidden_size\":2147483648", CMOE_ERR_CORRUPT, "hidden_size"},
    {"\"hidden_size\":2048", "\"hidden_size\":null", CMOE_ERR_CORRUPT, "hidden_size"},
    {"\"hidden_size\":2048", "\"hidden_size\":2048,\"hidden_size\":1", CMOE_ERR_CORRUPT,
     "duplicate"},
    {"\"num_experts\":128", "\"no_experts\":128", CMOE_ERR_CORRUPT, "num_experts"},
    {"\"num_experts\":128", "\"num_experts\":2000000000", CMOE_ERR_CORRUPT, "2000000000"},
    {"_tok\":8", "_tok\":129", CMOE_ERR_CORRUPT, "129"},
    {"\"moe_inter", "\"no_inter", CMOE_ERR_CORRUPT, "moe_intermediate_size"},
    {"_prob\":true", "_prob\":1", CMOE_ERR_CORRUPT, "norm_topk_prob is not true or false"},
    {"layers\":48", "layers\":100000", CMOE_ERR_CORRUPT, "num_hidden_layers is 100000"},
    {"_layers\":[]", "_layers\":{}", CMOE_ERR_CORRUPT, "mlp_only_layers is not an array"},
    {"_layers\":[]", "_layers\":[-1]", CMOE_ERR_CORRUPT, "mlp_only_layers has an entry"},
    {"_layers\":[]", "_layers\":[0.5]", CMOE_ERR_CORRUPT, "mlp_only_layers has an entry"},
    {"_layers\":[]", "_layers\":[0,2]", CMOE_ERR_UNSUPPORTED, "layer 2 has no experts"},
    {"_step\":1", "_step\":2", CMOE_ERR_UNSUPPORTED, "layer 2 has no experts"},
    {"_step\":1", "_step\":0", CMOE_ERR_CORRUPT, "decoder_sparse_step"},
    {"eps\":1e-06", "eps\":0", CMOE_ERR_CORRUPT, "rms_norm_eps"},
    {"eps\":1e-06", "eps\":\"x\"", CMOE_ERR_CORRUPT, "rms_norm_eps"},
    {"theta\":1000000.0", "theta\":1e300", CMOE_ERR_CORRUPT, "rope_theta"},
    {"theta\":1000000.0", "theta\":1e999", CMOE_ERR_CORRUPT, "at byte"},
    {"theta\":1000000.0", "theta\":NaN", CMOE_ERR_CORRUPT, "at byte"},
    {"embeddings\":false", "embeddings\":[]", CMOE_ERR_CORRUPT, "tie_word_embeddings"},
    {"\"vocab_size\":151936", "\"a\":[]", CMOE_ERR_CORRUPT, "vocab_size"},
    {"}", "", CMOE_ERR_CORRUPT, "at byte"},
    {"}", "} {", CMOE_ERR_CORRUPT, "at byte"},
};

static void test_wrong_values(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof edits / sizeof edits[0]; i++) {
        cmoe_model_config c;
        char *const json = edited(edits[i].from, edits[i].to);
        expect_error(cmoe_config_parse(json, strlen(json), &c), edits[i].status, edits[i].part);
        assert_int_equal(c.layers, 0);
        free(json);
    }
}

static void test_variants(void **state)
{
    (void)state;
    cmoe_model_config c;
    char *json = edited("_prob\":true", "_prob\":false");
    expect_ok(cmoe_config_parse(json, strlen(json), &c));
    check_problem(&c.problem, "e=128 k=8 h=2048 i=768");
    free(json);
    json = edited("\"norm_topk_prob\":true,", "");
    expect_ok(cmoe_config_parse(json, strlen(json), &c));
    check_problem(&c.problem, "e=128 k=8 h=2048 i=768");
    free(json);
    json = edited("\"silu\"", "\"gelu_pytorch_tanh\"");
    expect_ok(cmoe_config_parse(json, strlen(json), &c));
    check_problem(&c.problem, "e=128 k=8 h=2048 i=768 renorm act=gelu-tanh");
    free(json);
    json = edited("_layers\":[]", "_layers\":[2,0,1,1,48,99]");
    expect_ok(cmoe_config_parse(json, strlen(json), &c));
    assert_int_equal(c.dense_layers, 3);
    free(json);
    json = edited("_layers\":[]", "_layers\":null");
    expect_ok(cmoe_config_parse(json, strlen(json), &c));
    assert_int_equal(c.dense_layers, 0);
    free(json);
    json = edited("\"rope_theta\":1000000.0",
                  "\"rope_parameters\":{\"rope_theta\":5e6,\"rope_type\":\"default\"}");
    expect_ok(cmoe_config_parse(json, strlen(json), &c));
    assert_true(c.rope_theta == 5e6f);
    free(json);
    json = edited("\"num_key_value_heads\":4,\"rms_norm_eps\":1e-06,\"rope_scaling\":null,"
                  "\"rope_theta\":1000000.0,\"tie_word_embeddings\":false",
                  "\"tie_word_embeddings\":true");
    expect_ok(cmoe_config_parse(json, strlen(json), &c));
    assert_int_equal(c.kv_heads, 32);
    assert_int_equal(c.tied, 1);
    assert_true(c.rms_eps == 1e-6f);
    assert_true(c.rope_theta == 1e4f);
    free(json);
    json = edited("\"head_dim\":128,", "");
    expect_ok(cmoe_config_parse(json, strlen(json), &c));
    assert_int_equal(c.head_dim, 64);
    free(json);
}

static void test_files(void **state)
{
    (void)state;
    struct folder f;
    cmoe_model_config c;
    folder_make(&f);
    expect_error(cmoe_config_read(f.path, &c), CMOE_ERR_IO, "config.json");
    folder_text(&f, "config.json", qwen3);
    expect_ok(cmoe_config_read(f.path, &c));
    assert_int_equal(c.layers, 48);
    expect_ok(cmoe_config_read(folder_path(&f, "config.json"), &c));
    assert_int_equal(c.layers, 48);
    folder_text(&f, "config.json", "{\"model_type\":");
    expect_error(cmoe_config_read(f.path, &c), CMOE_ERR_CORRUPT, f.path);
    folder_text(&f, "config.json", "");
    expect_error(cmoe_config_read(f.path, &c), CMOE_ERR_CORRUPT, f.path);
    char *const large = calloc(1, (1 << 20) + 1);
    assert_non_null(large);
    folder_write(&f, "config.json", large, (1 << 20) + 1);
    expect_error(cmoe_config_read(f.path, &c), CMOE_ERR_CORRUPT, "1048576");
    expect_error(cmoe_config_parse(large, (1 << 20) + 1, &c), CMOE_ERR_CORRUPT, "1048577");
    free(large);
    folder_remove(&f);
}

static void test_every_truncation(void **state)
{
    (void)state;
    cmoe_model_config c;
    for (size_t n = 0; n < sizeof qwen3 - 1; n++) {
        char *const copy = malloc(n + 1);
        assert_non_null(copy);
        memcpy(copy, qwen3, n);
        expect_error(cmoe_config_parse(copy, n, &c), CMOE_ERR_CORRUPT, "config.json: ");
        free(copy);
    }
}

static void test_every_allocation_fails(void **state)
{
    (void)state;
    cmoe_model_config c;
    int n = 0;
    cmoe_status status = CMOE_ERR_NO_MEMORY;
    while (status == CMOE_ERR_NO_MEMORY) {
        cmoe__io_alloc_fail(++n);
        status = cmoe_config_read(CMOE_TEST_DIR "/vectors/safetensors/qwen3_moe", &c);
    }
    cmoe__io_alloc_fail(0);
    expect_ok(status);
    assert_int_equal(n, 4);
    check_problem(&c.problem, "e=2 k=2 h=8 i=4 renorm");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_families),         cmocka_unit_test(test_wrong_values),
        cmocka_unit_test(test_variants),         cmocka_unit_test(test_files),
        cmocka_unit_test(test_every_truncation), cmocka_unit_test(test_every_allocation_fails),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
