/* SPDX-License-Identifier: MIT
 * Checkpoints of every family and scheme, written by the code of those who defined them
 * (tools/gen_checkpoints.py): what cmoe computes of a layer must be what that code computed.
 * ctest: labels=portable cost=12 */
#include "harness.h"

#include "harness_files.h"
#include "io/memory.h"

#include <cmoe/convert.h>
#include <cmoe/io.h>
#include <cmoe/reference.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECKPOINTS CMOE_TEST_DIR "/vectors/checkpoints/"

static const struct row {
    const char *name;
    int layer;
    const char *problem; /* as read, formats of x and mid apart */
    bool mapped;         /* experts are read in place */
} rows[] = {
    {"mixtral", 0, "e=6 k=2 h=48 i=64 renorm scheme=f16", true},
    {"qwen2_moe", 0, "e=6 k=3 h=48 i=40", true},
    {"qwen3_moe", 0, "e=4 k=2 h=64 i=64 renorm", true},
    {"qwen3_moe-fused", 0, "e=4 k=2 h=48 i=40 renorm", true},
    {"qwen3_5_moe", 0, "e=6 k=2 h=48 i=32 renorm", true},
    {"olmoe", 0, "e=8 k=3 h=40 i=48", true},
    {"deepseek_v2", 1, "e=8 k=3 h=48 i=40 groups=4/2 scale=4", true},
    {"deepseek_v2-greedy", 1, "e=8 k=3 h=48 i=40", true},
    {"deepseek_v3", 1,
     "e=8 k=3 h=48 i=40 route=sigmoid rbias groups=4/2 gsum2 renorm eps=1e-20 scale=2.5", true},
    {"deepseek_v3-fp8", 1,
     "e=3 k=2 h=128 i=128 route=sigmoid rbias renorm eps=1e-20 scale=2.5 w=e4m3/b128", true},
    {"glm4_moe", 1, "e=8 k=3 h=48 i=40 route=sigmoid rbias renorm eps=1e-20 scale=1.5", true},
    {"gpt_oss", 0,
     "e=4 k=2 h=64 i=32 topkfirst act=swiglu-oai limit=7 alpha=1.702 gate=interleaved b1 b2", true},
    {"gpt_oss-mxfp4", 0,
     "e=4 k=2 h=64 i=32 topkfirst act=swiglu-oai limit=7 alpha=1.702 gate=interleaved b1 b2 "
     "w=e2m1/mx32",
     true},
    {"llama4", 1, "e=6 k=1 h=48 i=40 route=sigmoid won=input", true},
    {"llama4-whole", 1, "e=6 k=1 h=48 i=40 route=sigmoid won=input", true},
    {"qwen3_moe-int4", 0, "e=4 k=2 h=64 i=64 renorm w=u4/g32:bf16", true},
    {"qwen3_moe-int4-zp", 0, "e=4 k=2 h=64 i=64 renorm w=u4/g32:zp", true},
    {"qwen3_moe-int4-channel", 0, "e=4 k=2 h=64 i=64 renorm w=u4/channel", true},
    {"qwen3_moe-int8-packed", 0, "e=4 k=2 h=64 i=64 renorm w=u8/g32", true},
    {"qwen3_moe-int8", 0, "e=4 k=2 h=64 i=64 renorm w=i8/channel", true},
    {"qwen3_moe-fp8-channel", 0, "e=4 k=2 h=64 i=64 renorm w=e4m3/channel", true},
    {"qwen3_moe-fp8-tensor", 0, "e=4 k=2 h=64 i=64 renorm w=e4m3/tensor", true},
    {"qwen3_moe-fp8-block", 0, "e=2 k=2 h=144 i=136 renorm w=e4m3/b128", true},
    {"qwen3_moe-mxfp8", 0, "e=4 k=2 h=64 i=64 renorm w=e4m3/mx32", true},
    {"qwen3_moe-mxfp4", 0, "e=4 k=2 h=64 i=64 renorm w=e2m1/mx32", true},
    {"qwen3_moe-nvfp4", 0, "e=4 k=2 h=64 i=64 renorm w=e2m1/nv16", true},
    {"qwen3_moe-fp8-attention", 0, "e=4 k=2 h=64 i=64 renorm w=e4m3/channel", true},
    {"qwen3_moe-fp8-static", 0, "e=4 k=2 h=64 i=64 renorm w=e4m3/tensor", true},
    {"qwen3_moe-nvfp4-static", 0, "e=4 k=2 h=64 i=64 renorm w=e2m1/nv16", true},
    {"qwen3_moe-gptq-v1", 0, "e=4 k=2 h=64 i=64 renorm w=u4/g32:zp", false},
    {"qwen3_moe-gptq-v2", 0, "e=4 k=2 h=64 i=64 renorm w=u4/g32:zp", false},
    {"qwen3_moe-gptq-8bit", 0, "e=4 k=2 h=64 i=64 renorm w=u8/g32:zp", false},
    {"qwen3_moe-gptq-order", 0, "e=4 k=2 h=64 i=64 renorm scheme=f32", false},
    {"qwen3_moe-awq", 0, "e=4 k=2 h=64 i=64 renorm w=u4/g32:zp", false},
    {"gguf-f16/model.gguf", 0, "e=4 k=2 h=64 i=64 renorm scheme=f16", true},
    {"gguf-bf16/model.gguf", 0, "e=4 k=2 h=64 i=64 renorm", true},
    {"gguf-q8_0/model.gguf", 0, "e=4 k=2 h=64 i=64 renorm w=i8/g32:f16", false},
    {"gguf-q4_0/model.gguf", 0, "e=4 k=2 h=64 i=64 renorm w=u4/g32:f16", false},
    {"gguf-mxfp4/model.gguf", 0, "e=4 k=2 h=64 i=64 renorm w=e2m1/mx32", false},
    {"gguf-deepseek2/model.gguf", 1,
     "e=8 k=3 h=48 i=40 route=sigmoid rbias groups=4/2 gsum2 renorm eps=1e-20 scale=2.5", true},
    {"gguf-llama/model.gguf", 0, "e=6 k=2 h=48 i=64 renorm scheme=f16", true},
    {"gguf-qwen2moe/model.gguf", 0, "e=6 k=3 h=48 i=40", true},
    {"gguf-olmoe/model.gguf", 0, "e=8 k=3 h=40 i=48", true},
    {"gguf-glm4moe/model.gguf", 1,
     "e=8 k=3 h=48 i=40 route=sigmoid rbias renorm eps=1e-20 scale=1.5 scheme=f16", true},
    {"gguf-deepseek2-v2/model.gguf", 1, "e=8 k=3 h=48 i=40 groups=4/2 scale=4", true},
    {"gguf-llama4/model.gguf", 1, "e=6 k=1 h=48 i=40 route=sigmoid won=input scheme=f16", true},
    {"gguf-qwen35moe/model.gguf", 0, "e=6 k=2 h=48 i=32 renorm", true},
    {"gguf-merged/model.gguf", 0, "e=4 k=2 h=64 i=64 renorm w=i8/g32:f16", false},
    {"gguf-gpt-oss/model.gguf", 0,
     "e=4 k=2 h=64 i=32 topkfirst act=swiglu-oai limit=7 alpha=1.702 b1 b2 w=e2m1/mx32", false},
};
enum { ROWS = sizeof rows / sizeof rows[0] };

static void check_problem(const struct row *row, const cmoe_problem *got)
{
    char a[512], b[512];
    const cmoe_problem want = test_problem(row->problem);
    cmoe_problem_print(got, a, sizeof a);
    cmoe_problem_print(&want, b, sizeof b);
    if (strcmp(a, b) != 0) fail_with("%s: read as\n  %s, not\n  %s", row->name, a, b);
}

/* The tensors of a layer as f32, of which any may be missing. */
static float *widen(cmoe_dtype from, const void *data, int64_t n)
{
    float *const out = malloc((size_t)n * sizeof *out);
    assert_non_null(out);
    if (data) expect_ok(cmoe_convert(CMOE_F32, out, from, data, n));
    return out;
}

static void read_array(const struct row *row, const char *file, cmoe_array *out)
{
    char path[512];
    const int folder = (int)strcspn(row->name, "/");
    snprintf(path, sizeof path, CHECKPOINTS "%.*s/%s", folder, row->name, file);
    expect_ok(cmoe_npy_read(path, out));
}

/* y of the layer in fp64, and the distance of the file's outputs from it. */
static void compare_layer(const struct row *row, const cmoe_layer *layer, cmoe_context *ctx,
                          cmoe_device *dev)
{
    cmoe_array x, want;
    read_array(row, "x.npy", &x);
    read_array(row, "y.npy", &want);
    cmoe_problem p = layer->problem;
    p.max_tokens = (int32_t)x.shape[0];
    p.flags |= CMOE_ROUTE_FROM_X;
    p.in = p.y = CMOE_F32;
    p.x = p.mid = (cmoe_format){.dtype = CMOE_F32};
    const cmoe_weights_desc desc = {
        .struct_size = sizeof desc, .gate_up = layer->gate, .up = layer->up, .down = layer->down};
    float *const router =
        widen(layer->router_dtype, layer->router_w, (int64_t)p.experts * p.hidden);
    float *const bias = widen(layer->router_bias_dtype, layer->router_bias, p.experts);
    float *const logit_bias = widen(layer->logit_bias_dtype, layer->logit_bias, p.experts);
    cmoe_tensors t = {.struct_size = sizeof t,
                      .n_tokens = p.max_tokens,
                      .x = x.data,
                      .router_w = router,
                      .router_b = layer->logit_bias ? logit_bias : NULL,
                      .route_bias = layer->router_bias ? bias : NULL};
    const int64_t n = (int64_t)p.max_tokens * p.hidden;
    assert_int_equal(want.bytes, n * 4);
    float *const out = malloc((size_t)n * sizeof *out);
    double *const y = malloc((size_t)n * sizeof *y), *const bound = malloc((size_t)n * sizeof *y);
    assert_true(out && y && bound);
    t.y = out;
    cmoe_weights *w;
    cmoe_error e;
    expect_ok(cmoe_weights_create(dev, &p, &desc, &w));
    expect_ok(cmoe_reference(ctx, &p, w, &t, y, bound));
    cmoe_compare(CMOE_F32, want.data, y, bound, n, &e);
    if (e.outside || e.zeros > 0.5 || e.n != n) {
        fail_with("%s: %lld of %lld outside, largest distance %g, ratio %g, zeros %g", row->name,
                  (long long)e.outside, (long long)e.n, e.max_abs, e.max_ratio, e.zeros);
    }
    cmoe_weights_destroy(w);
    free(router);
    free(bias);
    free(logit_bias);
    free(y);
    free(out);
    free(bound);
    cmoe_array_free(&x);
    cmoe_array_free(&want);
}

static void open_row(const struct row *row, cmoe_checkpoint **c, cmoe_layer *layer)
{
    char path[512];
    cmoe_model_config config;
    snprintf(path, sizeof path, CHECKPOINTS "%s", row->name);
    expect_ok(cmoe_checkpoint_open(path, c));
    expect_ok(cmoe_config_read(path, &config));
    expect_ok(cmoe_layer_open(*c, &config, row->layer, layer));
}

static void test_outputs(void **state)
{
    (void)state;
    cmoe_context *const ctx = test_context(1, NULL);
    cmoe_device *const dev = test_device(ctx, "ref");
    for (int i = 0; i < ROWS; i++) {
        cmoe_checkpoint *c;
        cmoe_layer layer;
        open_row(&rows[i], &c, &layer);
        check_problem(&rows[i], &layer.problem);
        compare_layer(&rows[i], &layer, ctx, dev);
        cmoe_layer_free(&layer);
        cmoe_checkpoint_close(c);
    }
    cmoe_device_close(dev);
    cmoe_context_destroy(ctx);
}

/* Static activation scales: the largest of the experts', as compressed-tensors wrote them. */
static void test_activation_scales(void **state)
{
    (void)state;
    int n = 0;
    for (int i = 0; i < ROWS; i++) {
        cmoe_checkpoint *c;
        cmoe_layer layer;
        open_row(&rows[i], &c, &layer);
        if (strstr(rows[i].name, "-static")) {
            cmoe_array want;
            float scales[2];
            read_array(&rows[i], "scales.npy", &want);
            assert_int_equal(want.bytes, sizeof scales);
            memcpy(scales, want.data, sizeof scales);
            cmoe_array_free(&want);
            assert_true(scales[0] > 0 && layer.x_scale == scales[0]);
            assert_true(scales[1] > 0 && layer.mid_scale == scales[1]);
            n++;
        } else {
            assert_true(layer.x_scale == 0 && layer.mid_scale == 0);
        }
        cmoe_layer_free(&layer);
        cmoe_checkpoint_close(c);
    }
    assert_int_equal(n, 2);
}

/* Experts that are read in place lie inside a tensor of the checkpoint. */
static void test_mapped(void **state)
{
    (void)state;
    for (int i = 0; i < ROWS; i++) {
        cmoe_checkpoint *c;
        cmoe_layer layer;
        int inside = 0;
        open_row(&rows[i], &c, &layer);
        const uint8_t *const data = layer.down[layer.problem.experts - 1].data;
        for (int64_t t = 0; t < cmoe_checkpoint_count(c); t++) {
            const cmoe_tensor_info *const info = cmoe_checkpoint_at(c, t);
            const uint8_t *const first = info->data;
            inside += info->bytes > 0 && data >= first && data < first + info->bytes;
        }
        if (inside != (rows[i].mapped ? 1 : 0))
            fail_with("%s: in %d tensors", rows[i].name, inside);
        if (!rows[i].mapped) assert_true(layer.owned_bytes > 0);
        cmoe_layer_free(&layer);
        assert_int_equal(layer.owned_bytes, 0);
        cmoe_checkpoint_close(c);
    }
}

/* Quantised to f32, every layer keeps its values: decoding, gate order and biases of a copy. */
static void test_copies(void **state)
{
    (void)state;
    cmoe_context *const ctx = test_context(1, NULL);
    cmoe_device *const dev = test_device(ctx, "ref");
    for (int i = 0; i < ROWS; i++) {
        cmoe_checkpoint *c;
        cmoe_layer layer, copy;
        cmoe_quantized *q;
        open_row(&rows[i], &c, &layer);
        copy = layer;
        expect_ok(cmoe_problem_scheme(&copy.problem, "f32"));
        /* And the other order of gate and up rows. */
        copy.problem.gate = layer.up ? CMOE_GATE_INTERLEAVED : CMOE_GATE_SPLIT;
        expect_ok(cmoe_layer_quantize(&layer, &copy.problem, &q));
        const cmoe_weights_desc *const desc = cmoe_quantized_desc(q);
        copy.gate = (cmoe_matrix *)(uintptr_t)desc->gate_up;
        copy.up = (cmoe_matrix *)(uintptr_t)desc->up;
        copy.down = (cmoe_matrix *)(uintptr_t)desc->down;
        compare_layer(&rows[i], &copy, ctx, dev);
        cmoe_quantized_free(q);
        cmoe_layer_free(&layer);
        cmoe_checkpoint_close(c);
    }
    cmoe_device_close(dev);
    cmoe_context_destroy(ctx);
}

static void test_every_allocation_fails(void **state)
{
    (void)state;
    for (int i = 0; i < ROWS; i++) {
        char path[512];
        cmoe_checkpoint *c;
        cmoe_model_config config;
        cmoe_layer layer;
        snprintf(path, sizeof path, CHECKPOINTS "%s", rows[i].name);
        cmoe_status status = CMOE_ERR_NO_MEMORY;
        int n = 0;
        while (status == CMOE_ERR_NO_MEMORY) {
            cmoe__io_alloc_fail(++n);
            status = cmoe_config_read(path, &config);
        }
        cmoe__io_alloc_fail(0);
        expect_ok(status);
        expect_ok(cmoe_checkpoint_open(path, &c));
        const int before = n;
        status = CMOE_ERR_NO_MEMORY;
        for (n = 0; status == CMOE_ERR_NO_MEMORY;) {
            cmoe__io_alloc_fail(++n);
            status = cmoe_layer_open(c, &config, rows[i].layer, &layer);
            if (status != CMOE_OK) assert_true(!layer.gate && !layer.storage);
        }
        cmoe__io_alloc_fail(0);
        expect_ok(status);
        assert_true(before > 1 && n > 3);
        if (!rows[i].mapped) assert_true(n > 5);
        cmoe_layer_free(&layer);
        cmoe_checkpoint_close(c);
    }
}

/* What is not read is named together with what was found. */
static void test_unknown(void **state)
{
    (void)state;
    static const struct {
        const char *name, *model_type, *quantization;
        cmoe_status status;
        const char *part;
    } cases[] = {
        {"qwen3_moe-int4", "mixtral", "x", CMOE_ERR_CORRUPT, "block_sparse_moe.gate.weight"},
        {"qwen3_moe-int4", "llama", "x", CMOE_ERR_UNSUPPORTED, "\"llama\" is not read"},
        {"qwen3_moe-int4", "glm4_moe", "x", CMOE_ERR_CORRUPT, "e_score_correction_bias"},
        {"qwen3_moe", "gpt_oss", "", CMOE_ERR_CORRUPT, "router.weight is missing"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char path[512];
        cmoe_checkpoint *c;
        cmoe_model_config config;
        cmoe_layer layer;
        snprintf(path, sizeof path, CHECKPOINTS "%s", cases[i].name);
        expect_ok(cmoe_checkpoint_open(path, &c));
        expect_ok(cmoe_config_read(path, &config));
        strcpy(config.model_type, cases[i].model_type);
        if (strcmp(cases[i].model_type, "glm4_moe") == 0) config.problem.flags |= CMOE_ROUTE_BIAS;
        expect_error(cmoe_layer_open(c, &config, 0, &layer), cases[i].status, cases[i].part);
        cmoe_checkpoint_close(c);
    }
}

/* Whatever allocation fails, OUT does not appear, and the next run completes it. */
/* Quantise `in` with every allocation failing in turn; @return how many shards a later run found. */
static int64_t quantize_without_memory(const char *in, const struct folder *f, char *out,
                                       size_t size, cmoe_quantize_report *report)
{
    const cmoe_quantize_options options = {.struct_size = sizeof options,
                                           .scheme = "int4-w4a16:zp"};
    /* Some allocations may fail without harm: the run is then complete, and the next one new. */
    int failures = 0, runs = 0;
    int64_t reused = 0;
    snprintf(out, size, "%s/out-0", f->path);
    for (int n = 1; n <= 100 || (n <= 2000 && !file_exists(out)); n++) {
        if (file_exists(out)) snprintf(out, size, "%s/out-%d", f->path, ++runs);
        cmoe__io_alloc_fail(n);
        const cmoe_status status = cmoe_checkpoint_quantize(in, out, &options, report);
        cmoe__io_alloc_fail(0);
        if (status != CMOE_OK) assert_int_equal(status, CMOE_ERR_NO_MEMORY);
        assert_int_equal(file_exists(out), status == CMOE_OK);
        failures += status != CMOE_OK;
        reused += report->reused;
    }
    assert_true(failures > 20);
    assert_true(file_exists(out));
    assert_string_equal(report->format, "pack-quantized");
    cmoe_quantize_report none;
    expect_error(cmoe_checkpoint_quantize(in, out, &options, &none), CMOE_ERR_IO, "exists already");
    return reused;
}

static void test_quantize_without_memory(void **state)
{
    (void)state;
    struct folder f;
    char out[320], again[512];
    const cmoe_quantize_options options = {.struct_size = sizeof options, .scheme = "fp8-w8a16"};
    cmoe_quantize_report report;
    folder_make(&f);
    assert_true(quantize_without_memory(CHECKPOINTS "qwen3_moe", &f, out, sizeof out, &report) > 2);
    assert_int_equal(report.shards, 2);
    /* What was written is quantised a second time, and says what it was. */
    snprintf(again, sizeof again, "%s/again", f.path);
    expect_ok(cmoe_checkpoint_quantize(out, again, &options, &report));
    assert_string_equal(report.source, "compressed-tensors/pack-quantized");
    assert_string_equal(report.format, "float-quantized");
    folder_remove(&f);
}

static void test_decode_without_memory(void **state)
{
    (void)state;
    static const struct {
        const char *in, *source;
        int64_t shards;
    } inputs[] = {
        {CHECKPOINTS "gpt_oss-mxfp4", "mxfp4", 2},
        {CHECKPOINTS "gguf-gpt-oss/model.gguf", "gguf", 1},
        {CHECKPOINTS "qwen3_moe-gptq-order", "gptq/gptq", 2},
    };
    const cmoe_quantize_options dry = {.struct_size = sizeof dry, .scheme = "bf16", .dry_run = 1};
    for (size_t i = 0; i < sizeof inputs / sizeof inputs[0]; i++) {
        struct folder f;
        char out[320];
        cmoe_quantize_report report;
        folder_make(&f);
        (void)quantize_without_memory(inputs[i].in, &f, out, sizeof out, &report);
        assert_int_equal(report.shards, inputs[i].shards);
        expect_ok(cmoe_checkpoint_quantize(inputs[i].in, "x", &dry, &report));
        assert_string_equal(report.source, inputs[i].source);
        folder_remove(&f);
    }
}

/* Quantised matrices beside experts become what their own tool decodes, rounded to bf16. */
static void test_attention_is_decoded(void **state)
{
    (void)state;
    static const char in[] = CHECKPOINTS "qwen3_moe-fp8-attention";
    static const char name[] = "model.layers.0.self_attn.q_proj.weight";
    const cmoe_quantize_options options = {.struct_size = sizeof options, .scheme = "int4-w4a16"};
    struct folder f;
    char out[320];
    uint16_t want[32 * 64];
    cmoe_quantize_report report;
    cmoe_checkpoint *before, *after;
    cmoe_array decoded;
    folder_make(&f);
    snprintf(out, sizeof out, "%s/out", f.path);
    expect_ok(cmoe_checkpoint_quantize(in, out, &options, &report));
    expect_ok(cmoe_checkpoint_open(in, &before));
    expect_ok(cmoe_checkpoint_open(out, &after));
    expect_ok(cmoe_npy_read(CHECKPOINTS "qwen3_moe-fp8-attention/q_proj.npy", &decoded));
    expect_ok(cmoe_convert(CMOE_BF16, want, decoded.dtype, decoded.data, 32 * 64));
    assert_string_equal(cmoe_checkpoint_find(before, name)->dtype, "F8_E4M3");
    const cmoe_tensor_info *const t = cmoe_checkpoint_find(after, name);
    assert_string_equal(t->dtype, "BF16");
    assert_int_equal(t->bytes, sizeof want);
    assert_memory_equal(t->data, want, sizeof want);
    assert_non_null(cmoe_checkpoint_find(before, "model.layers.0.self_attn.q_proj.weight_scale"));
    assert_null(cmoe_checkpoint_find(after, "model.layers.0.self_attn.q_proj.weight_scale"));
    const cmoe_tensor_info *const norm = cmoe_checkpoint_find(after, "model.norm.weight");
    assert_memory_equal(norm->data, cmoe_checkpoint_find(before, norm->name)->data, norm->bytes);
    cmoe_array_free(&decoded);
    cmoe_checkpoint_close(before);
    cmoe_checkpoint_close(after);
    folder_remove(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_outputs),
        cmocka_unit_test(test_activation_scales),
        cmocka_unit_test(test_mapped),
        cmocka_unit_test(test_copies),
        cmocka_unit_test(test_every_allocation_fails),
        cmocka_unit_test(test_unknown),
        cmocka_unit_test(test_quantize_without_memory),
        cmocka_unit_test(test_decode_without_memory),
        cmocka_unit_test(test_attention_is_decoded),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
