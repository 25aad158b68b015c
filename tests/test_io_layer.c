/* SPDX-License-Identifier: MIT
 * Layers of checkpoints and their quantised copies: a checkpoint written by Hugging Face's library,
 * one trained model whose MoE output transformers computed, and checkpoints that lie.
 * ctest: labels=portable */
#include "harness.h"

#include "harness_files.h"
#include "io/memory.h"

#include <cmoe/io.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SMALL CMOE_TEST_DIR "/vectors/safetensors/qwen3_moe"
#define TINY  CMOE_TEST_DIR "/../models/tiny-moe"

enum { E = 2, H = 8, I = 4 }; /* of SMALL */

struct model {
    cmoe_checkpoint *checkpoint;
    cmoe_model_config config;
};

static struct model open_model(const char *path)
{
    struct model m;
    expect_ok(cmoe_checkpoint_open(path, &m.checkpoint));
    expect_ok(cmoe_config_read(path, &m.config));
    return m;
}

/* Element i of a matrix of SMALL, as its generator says. */
static float small_value(int expert, int matrix, int i)
{
    return (float)(1000 * expert + 100 * matrix) + (float)i / 4;
}

static void test_views(void **state)
{
    (void)state;
    const struct model m = open_model(SMALL);
    cmoe_layer layer;
    for (int l = 0; l < 2; l++) {
        expect_ok(cmoe_layer_open(m.checkpoint, &m.config, l, &layer));
        char line[256];
        cmoe_problem_print(&layer.problem, line, sizeof line);
        const cmoe_problem want = test_problem("e=2 k=2 h=8 i=4 renorm scheme=f32");
        char want_line[256];
        cmoe_problem_print(&want, want_line, sizeof want_line);
        assert_string_equal(line, want_line);
        assert_int_equal(layer.router_dtype, CMOE_F32);
        assert_null(layer.router_bias);
        float router[E * H];
        memcpy(router, layer.router_w, sizeof router);
        for (int i = 0; i < E * H; i++)
            assert_true(router[i] == (float)i / 4);
        const cmoe_matrix *const tables[] = {layer.gate, layer.up, layer.down};
        for (int e = 0; e < E; e++) {
            for (int t = 0; t < 3; t++) {
                float values[H * I];
                memcpy(values, tables[t][e].data, sizeof values);
                for (int i = 0; i < H * I; i++)
                    assert_true(values[i] == small_value(e, t, i));
            }
        }
        const cmoe_tensor_info *const t =
            cmoe_checkpoint_find(m.checkpoint, l ? "model.layers.1.mlp.experts.1.up_proj.weight"
                                                 : "model.layers.0.mlp.experts.1.up_proj.weight");
        assert_ptr_equal(layer.up[1].data, t->data);
        cmoe_layer_free(&layer);
        assert_null(layer.gate);
    }
    expect_error(cmoe_layer_open(m.checkpoint, &m.config, 2, &layer), CMOE_ERR_INVALID, "0 to 1");
    expect_error(cmoe_layer_open(m.checkpoint, &m.config, -1, &layer), CMOE_ERR_INVALID, "-1");
    cmoe_model_config other = m.config;
    other.dense_layers = 1;
    expect_error(cmoe_layer_open(m.checkpoint, &other, 0, &layer), CMOE_ERR_INVALID, "1 to 1");
    strcpy(other.model_type, "llama");
    expect_error(cmoe_layer_open(m.checkpoint, &other, 1, &layer), CMOE_ERR_UNSUPPORTED, "llama");
    cmoe_checkpoint_close(m.checkpoint);
}

/* What the family's names are: Mixtral says w1 gate, w3 up, w2 down. In the header `from` (or NULL)
 * is replaced by `to`, and blanks make it end at a multiple of 8, and `odd` bytes after it. */
static void write_mixtral(struct folder *f, const char *dtype, int size, const char *from,
                          const char *to, int odd)
{
    static const struct {
        const char *name;
        int rows, cols;
    } tensors[] = {
        {"gate", 1, 2},
        {"experts.0.w1", 3, 2},
        {"experts.0.w2", 2, 3},
        {"experts.0.w3", 3, 2},
    };
    char json[2048] = "{", image[4096] = {0};
    int at = 0;
    for (int i = 0; i < 4; i++) {
        const int bytes = tensors[i].rows * tensors[i].cols * size;
        sprintf(json + strlen(json),
                "%s\"model.layers.0.block_sparse_moe.%s.weight\":{\"dtype\":\"%s\","
                "\"shape\":[%d,%d],\"data_offsets\":[%d,%d]}",
                i ? "," : "", tensors[i].name, dtype, tensors[i].rows, tensors[i].cols, at,
                at + bytes);
        at += bytes;
    }
    strcat(json, "}");
    const char *const place = from ? strstr(json, from) : NULL;
    if (from && !place) fail_with("%s is not in the header", from);
    int length =
        place ? sprintf(image + 8, "%.*s%s%s", (int)(place - json), json, to, place + strlen(from))
              : sprintf(image + 8, "%s", json);
    while (length % 8 != odd)
        image[8 + length++] = ' ';
    image[0] = (char)(length & 0xff);
    image[1] = (char)(length >> 8);
    for (int i = 0; i < at; i++)
        image[8 + length + i] = (char)(i + 1);
    folder_write(f, "model.safetensors", image, (size_t)(8 + length + at));
}

static const char mixtral_config[] =
    "{\"hidden_size\":2,\"intermediate_size\":3,\"model_type\":\"mixtral\","
    "\"num_attention_heads\":1,\"num_experts_per_tok\":1,\"num_hidden_layers\":1,"
    "\"num_local_experts\":1,\"vocab_size\":8}";

static const struct {
    const char *dtype;
    int size;
    const char *from, *to; /* edit of the header */
    cmoe_status status;
    const char *part;
} lies[] = {
    {"F16", 2, "experts.0.w2", "experts.0.w9", CMOE_ERR_CORRUPT, "experts.0.w2.weight is missing"},
    {"F16", 2, "moe.gate", "moe.door", CMOE_ERR_CORRUPT, "moe.gate.weight is missing"},
    {"F16", 2, "[3,2]", "[2,3]", CMOE_ERR_CORRUPT, "w1.weight has 2 dimensions, 2 x 3"},
    {"F16", 2, "[3,2]", "[6]", CMOE_ERR_CORRUPT, "w1.weight has 1 dimensions"},
    {"F16", 2, "[3,2]", "[3,2,1]", CMOE_ERR_CORRUPT, "w1.weight has 3 dimensions"},
    {"F16", 2, "[1,2]", "[2,1]", CMOE_ERR_CORRUPT, "gate.weight has 2 dimensions, 2 x 1"},
    {"F8_E4M3", 1, NULL, NULL, CMOE_ERR_UNSUPPORTED, "the type F8_E4M3"},
    {"I64", 8, NULL, NULL, CMOE_ERR_UNSUPPORTED, "the type I64"},
    {"F16", 2, "w3.weight\":{\"dtype\":\"F16\"", "w3.weight\":{\"dtype\":\"BF16\"",
     CMOE_ERR_CORRUPT, "w3.weight has the type bf16, those before it f16"},
};

static void test_lies(void **state)
{
    (void)state;
    struct folder f;
    cmoe_layer layer;
    folder_make(&f);
    folder_text(&f, "config.json", mixtral_config);
    for (size_t i = 0; i < sizeof lies / sizeof lies[0]; i++) {
        write_mixtral(&f, lies[i].dtype, lies[i].size, lies[i].from, lies[i].to, 0);
        const struct model m = open_model(f.path);
        expect_error(cmoe_layer_open(m.checkpoint, &m.config, 0, &layer), lies[i].status,
                     lies[i].part);
        assert_null(layer.gate);
        cmoe_checkpoint_close(m.checkpoint);
    }
    write_mixtral(&f, "F16", 2, NULL, NULL, 0);
    struct model m = open_model(f.path);
    m.config.problem.hidden = 3;
    expect_error(cmoe_layer_open(m.checkpoint, &m.config, 0, &layer), CMOE_ERR_CORRUPT,
                 "1 x 2, the configuration says 1 x 3");
    cmoe_checkpoint_close(m.checkpoint);
    folder_remove(&f);
}

static void test_mixtral_names_and_alignment(void **state)
{
    (void)state;
    struct folder f;
    cmoe_layer layer;
    int aligned = 0, refused = 0;
    folder_make(&f);
    folder_text(&f, "config.json", mixtral_config);
    /* The header's length moves the data; odd places cannot be read in place. */
    for (int odd = 0; odd < 4; odd++) {
        write_mixtral(&f, "F16", 2, NULL, NULL, odd);
        const struct model m = open_model(f.path);
        if (cmoe_layer_open(m.checkpoint, &m.config, 0, &layer) == CMOE_OK) {
            aligned++;
            const uint8_t *const gate = layer.gate[0].data;
            assert_int_equal(gate[0], 5);
            assert_int_equal(*(const uint8_t *)layer.down[0].data, 17);
            assert_int_equal(*(const uint8_t *)layer.up[0].data, 29);
            assert_int_equal(layer.router_dtype, CMOE_F16);
            assert_int_equal(layer.problem.w.dtype, CMOE_F16);
            cmoe_layer_free(&layer);
        } else {
            refused++;
            expect_error(cmoe_layer_open(m.checkpoint, &m.config, 0, &layer), CMOE_ERR_UNSUPPORTED,
                         "not at a multiple of its type's 2 bytes");
        }
        cmoe_checkpoint_close(m.checkpoint);
    }
    assert_int_equal(aligned, 2);
    assert_int_equal(refused, 2);
    folder_remove(&f);
}

/* ---- quantised copies ---- */

/* The codes, scales, zero points and global of `got` are those of src, quantised directly. */
static void check_matrix(cmoe_format f, const float *src, int64_t rows, int64_t cols,
                         const cmoe_matrix *got)
{
    size_t codes, scales, zeros;
    float global = 0;
    expect_ok(cmoe_format_bytes(f, rows, cols, &codes, &scales, &zeros));
    uint8_t *const memory = calloc(codes + scales + zeros + 1, 1);
    uint8_t *const aligned_scales = calloc(scales + 1, 1);
    assert_non_null(memory);
    assert_non_null(aligned_scales);
    expect_ok(
        cmoe_quantize_weight(f, src, rows, cols, memory, aligned_scales, memory + codes, &global));
    assert_same_bytes(got->data, memory, codes);
    if (scales > 0) assert_same_bytes(got->scale, aligned_scales, scales);
    if (zeros > 0) assert_same_bytes(got->zero, memory + codes, zeros);
    assert_int_equal(got->global != NULL, f.scaling == CMOE_SCALE_NV);
    if (got->global) assert_true(*got->global == global && global > 0);
    free(memory);
    free(aligned_scales);
}

static void widen(const cmoe_layer *layer, const cmoe_matrix *m, int64_t n, float *out)
{
    expect_ok(cmoe_convert(CMOE_F32, out, (cmoe_dtype)layer->problem.w.dtype, m->data, n));
}

static void check_scheme(const cmoe_layer *layer, const cmoe_problem *p, cmoe_device *dev)
{
    const int64_t hidden = p->hidden, inter = p->inter, n = hidden * inter;
    cmoe_quantized *q;
    cmoe_weights *w;
    float *const f32 = malloc((size_t)(4 * n) * sizeof(float));
    float *const mixed = f32 + 2 * n;
    assert_non_null(f32);
    expect_ok(cmoe_layer_quantize(layer, p, &q));
    const cmoe_weights_desc *const desc = cmoe_quantized_desc(q);
    for (int32_t e = 0; e < cmoe_problem_local_experts(p); e++) {
        const int32_t id = p->expert_first + e;
        widen(layer, &layer->gate[id], n, f32);
        widen(layer, &layer->up[id], n, f32 + n);
        if (p->gate == CMOE_GATE_INTERLEAVED) {
            assert_null(desc->up);
            for (int64_t r = 0; r < inter; r++) {
                memcpy(mixed + 2 * r * hidden, f32 + r * hidden, (size_t)hidden * 4);
                memcpy(mixed + (2 * r + 1) * hidden, f32 + n + r * hidden, (size_t)hidden * 4);
            }
            check_matrix(p->w, mixed, 2 * inter, hidden, &desc->gate_up[e]);
        } else if (p->flags & CMOE_BLOCK_JOINT) {
            assert_null(desc->up);
            check_matrix(p->w, f32, 2 * inter, hidden, &desc->gate_up[e]);
        } else {
            check_matrix(p->w, f32, inter, hidden, &desc->gate_up[e]);
            check_matrix(p->w, f32 + n, inter, hidden, &desc->up[e]);
        }
        widen(layer, &layer->down[id], n, f32);
        check_matrix(p->w, f32, hidden, inter, &desc->down[e]);
        const float *const smooth1 = desc->gate_up[e].smooth, *const smooth2 = desc->down[e].smooth;
        assert_int_equal(smooth1 != NULL, p->x.scaling == CMOE_SCALE_SMOOTH);
        assert_int_equal(smooth2 != NULL, p->mid.scaling == CMOE_SCALE_SMOOTH);
        for (int64_t i = 0; smooth1 && i < hidden; i++)
            assert_true(smooth1[i] == 1.0f);
        for (int64_t i = 0; smooth2 && i < inter; i++)
            assert_true(smooth2[i] == 1.0f);
    }
    expect_ok(cmoe_weights_create(dev, p, desc, &w));
    cmoe_weights_destroy(w);
    cmoe_quantized_free(q);
    free(f32);
}

static void test_every_scheme(void **state)
{
    (void)state;
    const struct model m = open_model(TINY);
    cmoe_context *const ctx = test_context(1, NULL);
    cmoe_device *const dev = test_device(ctx, "ref");
    cmoe_layer layer;
    int schemes = 0;
    expect_ok(cmoe_layer_open(m.checkpoint, &m.config, 3, &layer));
    for (int i = 0; cmoe_scheme_name(i); i++, schemes++) {
        cmoe_problem p = layer.problem;
        expect_ok(cmoe_problem_scheme(&p, cmoe_scheme_name(i)));
        check_scheme(&layer, &p, dev);
        p.gate = CMOE_GATE_INTERLEAVED;
        p.expert_first = 5;
        p.expert_count = 3;
        check_scheme(&layer, &p, dev);
    }
    assert_true(schemes >= 17);
    const char *const others[] = {"int4-w4a16:g64,zp", "int8-w8a16:g128,zp",
                                  "int4-w4a16:channel,zp", "fp8-w8a16:tensor", "fp8-tensor:e5m2"};
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++) {
        cmoe_problem p = layer.problem;
        expect_ok(cmoe_problem_scheme(&p, others[i]));
        check_scheme(&layer, &p, dev);
    }
    cmoe_problem p = layer.problem;
    expect_ok(cmoe_problem_scheme(&p, "fp8-block"));
    p.flags |= CMOE_BLOCK_JOINT; /* I is 64: one block of rows for gate and up */
    check_scheme(&layer, &p, dev);
    cmoe_layer_free(&layer);
    cmoe_checkpoint_close(m.checkpoint);
    cmoe_device_close(dev);
    cmoe_context_destroy(ctx);
}

static void test_bytes_per_weight(void **state)
{
    (void)state;
    /* Matrices are 2 x [4, 8] and [8, 4]: 96 weights an expert. */
    static const struct {
        const char *scheme;
        double bytes;
    } rows[] = {
        {"f32", 4},
        {"bf16", 2},
        {"fp8-tensor", (96 + 3 * 4) / 96.0},
        {"fp8-token", (96 + (4 + 4 + 8) * 4) / 96.0},
        {"fp8-block", (96 + 3 * 4) / 96.0},
        {"int4-w4a16", (48 + (4 + 4 + 8) * 4) / 96.0},
        {"int4-w4a16:zp", (48 + (4 + 4 + 8) * 5) / 96.0},
        {"mxfp4-w4a16", (48 + (4 + 4 + 8)) / 96.0},
        {"nvfp4-w4a16", (48 + (4 + 4 + 8)) / 96.0},
    };
    const struct model m = open_model(SMALL);
    cmoe_layer layer;
    expect_ok(cmoe_layer_open(m.checkpoint, &m.config, 0, &layer));
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        cmoe_quantized *q;
        cmoe_problem p = layer.problem;
        expect_ok(cmoe_problem_scheme(&p, rows[i].scheme));
        expect_ok(cmoe_layer_quantize(&layer, &p, &q));
        const double got = cmoe_quantized_bytes_per_weight(q);
        if (fabs(got - rows[i].bytes) > 1e-12) fail_with("%s: %g", rows[i].scheme, got);
        cmoe_quantized_free(q);
    }
    cmoe_layer_free(&layer);
    cmoe_checkpoint_close(m.checkpoint);
}

static void test_quantize_refuses(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        cmoe_status status;
        const char *part;
    } rows[] = {
        {"e=3 k=2 h=8 i=4", CMOE_ERR_MISMATCH, "e=3"},
        {"e=2 k=2 h=16 i=4", CMOE_ERR_MISMATCH, "h=16"},
        {"e=2 k=2 h=8 i=5", CMOE_ERR_MISMATCH, "i=5"},
        {"e=2 k=2 h=8 i=4 gate=none", CMOE_ERR_MISMATCH, "gate=none"},
        {"e=2 k=2 h=8 i=4 shared=1", CMOE_ERR_MISMATCH, "shared=1"},
        {"e=2 k=2 h=8 i=4 b2", CMOE_ERR_MISMATCH, "biases"},
        {"e=2 k=2 h=8 i=4 map", CMOE_ERR_UNSUPPORTED, "map"},
        {"e=2 k=3 h=8 i=4", CMOE_ERR_INVALID, "topk"},
    };
    const struct model m = open_model(SMALL);
    cmoe_layer layer;
    cmoe_quantized *q;
    expect_ok(cmoe_layer_open(m.checkpoint, &m.config, 0, &layer));
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        const cmoe_problem p = test_problem(rows[i].text);
        expect_error(cmoe_layer_quantize(&layer, &p, &q), rows[i].status, rows[i].part);
        assert_null(q);
    }
    /* Every allocation of the richest format. */
    cmoe_problem p = layer.problem;
    expect_ok(cmoe_problem_scheme(&p, "int4-w4a16:zp"));
    int n = 0;
    cmoe_status status = CMOE_ERR_NO_MEMORY;
    while (status == CMOE_ERR_NO_MEMORY) {
        cmoe__io_alloc_fail(++n);
        status = cmoe_layer_quantize(&layer, &p, &q);
    }
    cmoe__io_alloc_fail(0);
    expect_ok(status);
    assert_true(n > 12);
    cmoe_quantized_free(q);
    cmoe_layer_free(&layer);
    for (n = 1; n <= 3; n++) {
        cmoe__io_alloc_fail(n);
        expect_error(cmoe_layer_open(m.checkpoint, &m.config, 0, &layer), CMOE_ERR_NO_MEMORY, NULL);
        cmoe__io_alloc_fail(0);
    }
    cmoe_checkpoint_close(m.checkpoint);
}

/* ---- the whole way: files of a trained model to what transformers computes with it ---- */

static void test_trained_layer(void **state)
{
    (void)state;
    enum { LAYER = 2 };
    const struct model m = open_model(TINY);
    cmoe_context *const ctx = test_context(1, NULL);
    cmoe_device *const dev = test_device(ctx, "ref");
    cmoe_layer layer;
    cmoe_array x, want;
    expect_ok(cmoe_layer_open(m.checkpoint, &m.config, LAYER, &layer));
    expect_ok(cmoe_npy_read(TINY "/hidden.npy", &x));
    expect_ok(cmoe_npy_read(TINY "/hidden_layer2_mlp_out.npy", &want));

    cmoe_problem p = layer.problem;
    expect_ok(cmoe_problem_parse(&p, "t=64 rx in=f32 x=f32 mid=f32 y=f32 lg=f32"));
    const int64_t n_router = (int64_t)p.experts * p.hidden;
    float *const router = malloc((size_t)n_router * sizeof(float));
    float *const y = malloc(want.bytes);
    assert_non_null(router);
    assert_non_null(y);
    expect_ok(cmoe_convert(CMOE_F32, router, layer.router_dtype, layer.router_w, n_router));

    const cmoe_weights_desc desc = {
        .struct_size = sizeof desc, .gate_up = layer.gate, .up = layer.up, .down = layer.down};
    cmoe_weights *w;
    cmoe_plan *plan;
    expect_ok(cmoe_weights_create(dev, &p, &desc, &w));
    expect_ok(cmoe_plan_create(dev, &p, w, NULL, &plan));
    const size_t bytes = cmoe_plan_workspace_size(plan);
    void *const workspace = aligned_alloc(256, (bytes + 255) / 256 * 256);
    const cmoe_tensors t = {
        .struct_size = sizeof t, .n_tokens = 64, .x = x.data, .router_w = router, .y = y};
    expect_ok(cmoe_execute(plan, &t, workspace, bytes, NULL));

    double worst = 0, largest = 0;
    for (size_t i = 0; i < want.bytes / sizeof(float); i++) {
        const double expected = (double)((const float *)want.data)[i];
        worst = fmax(worst, fabs((double)y[i] - expected));
        largest = fmax(largest, fabs(expected));
    }
    /* The oracle's own distance from fp64 arithmetic is 6e-7. */
    if (!(worst < 5e-6) || largest < 1) fail_with("%g away, largest %g", worst, largest);

    free(workspace);
    free(router);
    free(y);
    cmoe_plan_destroy(plan);
    cmoe_weights_destroy(w);
    cmoe_array_free(&x);
    cmoe_array_free(&want);
    cmoe_layer_free(&layer);
    cmoe_checkpoint_close(m.checkpoint);
    cmoe_device_close(dev);
    cmoe_context_destroy(ctx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_views),
        cmocka_unit_test(test_lies),
        cmocka_unit_test(test_mixtral_names_and_alignment),
        cmocka_unit_test(test_every_scheme),
        cmocka_unit_test(test_bytes_per_weight),
        cmocka_unit_test(test_quantize_refuses),
        cmocka_unit_test(test_trained_layer),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
