/* SPDX-License-Identifier: MIT
 * The weights object: wrong tables are named, packed matrices own what they need, and running out
 * of memory leaves nothing behind. */
/* ctest: labels=portable,threads cost=12 */
#include "backends/backend.h"
#include "core/weights.h"
#include "harness.h"
#include "harness_weights.h"
#include "stages/tensors.h"

#include <cmoe/record.h>
#include <stdlib.h>
#include <string.h>

static void test_missing_data(void **state)
{
    (void)state;
    struct rng rng = {test_seed()};
    cmoe_context *const ctx = test_context(1, NULL);
    cmoe_device *const dev = test_device(ctx, "ref");
    const cmoe_format nv = weight_formats[FORMAT_NV], zp = weight_formats[FORMAT_U4_ZERO],
                      i4 = weight_formats[FORMAT_I4_CHANNEL];
    struct weights_made m = {0};
    cmoe_weights *w;
    weights_make(&rng, nv, SEPARATE, &m);
    m.gate_up[1].data = NULL;
    expect_error(cmoe_weights_create(dev, &m.p, &m.desc, &w), CMOE_ERR_INVALID,
                 "gate_up of expert 1 has no data");
    assert_null(w);
    weights_make(&rng, nv, SEPARATE, &m);
    m.up[2].scale = NULL;
    expect_error(cmoe_weights_create(dev, &m.p, &m.desc, &w), CMOE_ERR_INVALID,
                 "up of expert 2 has no scales");
    weights_make(&rng, nv, SEPARATE, &m);
    m.down[0].global = NULL;
    expect_error(cmoe_weights_create(dev, &m.p, &m.desc, &w), CMOE_ERR_INVALID,
                 "down of expert 0 has no global");
    m.p.w = zp;
    m.down[0].zero = NULL;
    expect_error(cmoe_weights_create(dev, &m.p, &m.desc, &w), CMOE_ERR_INVALID,
                 "down of expert 0 has no zero points");
    weights_make(&rng, nv, FUSED, &m);
    m.down[1].bias = NULL;
    expect_error(cmoe_weights_create(dev, &m.p, &m.desc, &w), CMOE_ERR_INVALID,
                 "down of expert 1 has no bias");
    weights_make(&rng, i4, FUSED, &m);
    m.gate_up[0].col_stride = 1;
    expect_error(cmoe_weights_create(dev, &m.p, &m.desc, &w), CMOE_ERR_INVALID,
                 "gate_up of expert 0 has a column stride");
    weights_make(&rng, weight_formats[FORMAT_U8_ZERO], FUSED, &m);
    m.p.x = (cmoe_format){.dtype = CMOE_I8, .scaling = CMOE_SCALE_SMOOTH};
    m.gate_up[2].smooth = NULL;
    expect_error(cmoe_weights_create(dev, &m.p, &m.desc, &w), CMOE_ERR_INVALID,
                 "gate_up of expert 2 has no smooth vector");
    m.p.inter = 0;
    expect_error(cmoe_weights_create(dev, &m.p, &m.desc, &w), CMOE_ERR_INVALID, "inter");
    weights_made_end(&m);
    cmoe_device_close(dev);
    cmoe_context_destroy(ctx);
}

static void test_wrong_tables(void **state)
{
    (void)state;
    struct rng rng = {test_seed()};
    cmoe_context *const ctx = test_context(1, NULL);
    cmoe_device *const dev = test_device(ctx, "ref");
    struct weights_made m = {0};
    cmoe_weights *w;
    weights_make(&rng, weight_formats[FORMAT_BF16], FUSED, &m);
    expect_error(cmoe_weights_create(NULL, &m.p, &m.desc, &w), CMOE_ERR_INVALID, "dev is NULL");
    expect_error(cmoe_weights_create(dev, NULL, &m.desc, &w), CMOE_ERR_INVALID, "problem is NULL");
    expect_error(cmoe_weights_create(dev, &m.p, NULL, &w), CMOE_ERR_INVALID, "desc is NULL");
    m.desc.format2 = "p7";
    expect_error(cmoe_weights_create(dev, &m.p, &m.desc, &w), CMOE_ERR_INVALID,
                 "format2 \"p7\" is not a weight format of device ref");
    m.desc.format2 = NULL;
    m.desc.struct_size = 8;
    expect_error(cmoe_weights_create(dev, &m.p, &m.desc, &w), CMOE_ERR_INVALID, "struct_size is 8");
    m.desc.struct_size = sizeof m.desc;
    m.desc.down = NULL;
    expect_error(cmoe_weights_create(dev, &m.p, &m.desc, &w), CMOE_ERR_INVALID, "down is NULL");
    m.p.last = CMOE_STAGE_GEMM1; /* which reads no matrix 2 */
    expect_ok(cmoe_weights_create(dev, &m.p, &m.desc, &w));
    expect_ok(cmoe__weights_fit(&m.p, w));
    m.p.last = CMOE_STAGE_COMBINE;
    expect_error(cmoe__weights_fit(&m.p, w), CMOE_ERR_MISMATCH, "matrix 2");
    m.p.last = CMOE_STAGE_GEMM1;
    cmoe_weights_destroy(w);
    m.desc.gate_up = NULL;
    expect_error(cmoe_weights_create(dev, &m.p, &m.desc, &w), CMOE_ERR_INVALID, "gate_up is NULL");
    weights_make(&rng, weight_formats[FORMAT_BF16], INTERLEAVED, &m);
    m.desc.up = m.up;
    expect_error(cmoe_weights_create(dev, &m.p, &m.desc, &w), CMOE_ERR_INVALID, "gate=split");
    weights_make(&rng, weight_formats[FORMAT_E4M3_BLOCK], JOINT, &m);
    m.desc.up = m.up;
    expect_error(cmoe_weights_create(dev, &m.p, &m.desc, &w), CMOE_ERR_INVALID, "inter=130");
    cmoe_fused fused = {.data = &m, .experts = 2, .rows = 0, .cols = 4};
    expect_error(cmoe_matrix_split(&fused, weight_formats[FORMAT_BF16], m.up), CMOE_ERR_INVALID,
                 "empty");
    fused.rows = INT64_MAX / 8;
    expect_error(cmoe_matrix_split(&fused, weight_formats[FORMAT_BF16], m.up), CMOE_ERR_OVERFLOW,
                 "fit");
    fused.rows = 4;
    expect_error(cmoe_matrix_split(&fused, weight_formats[FORMAT_E4M3_TENSOR], m.up),
                 CMOE_ERR_INVALID, "no scales");
    fused.scale_rows = 2;
    expect_error(cmoe_matrix_split(&fused, weight_formats[FORMAT_BF16], m.up), CMOE_ERR_INVALID,
                 "scale_rows is 2");
    weights_made_end(&m);
    cmoe_device_close(dev);
    cmoe_context_destroy(ctx);
}

static void test_matrix(void **state)
{
    (void)state;
    struct rng rng = {test_seed()};
    cmoe_context *const ctx = test_context(1, NULL);
    cmoe_device *const dev = test_device(ctx, "ref");
    struct weights_made m = {0};
    cmoe_weights *w;
    cmoe_matrix first, up;
    weights_make(&rng, weight_formats[FORMAT_BF16], SEPARATE, &m);
    expect_ok(cmoe_weights_create(dev, &m.p, &m.desc, &w));
    expect_ok(cmoe_weights_matrix(w, 1, 1, &first, &up));
    assert_memory_equal(&first, &m.gate_up[1], sizeof first);
    assert_memory_equal(&up, &m.up[1], sizeof up);
    expect_ok(cmoe_weights_matrix(w, 2, 2, &first, NULL));
    assert_memory_equal(&first, &m.down[2], sizeof first);
    expect_error(cmoe_weights_matrix(w, E, 1, &first, &up), CMOE_ERR_INVALID, "expert 3");
    expect_error(cmoe_weights_matrix(w, 0, 3, &first, &up), CMOE_ERR_INVALID, "matrix is 3");
    expect_error(cmoe_weights_matrix(w, 0, 1, NULL, &up), CMOE_ERR_INVALID, "NULL");
    cmoe_weights_destroy(w);
    cmoe_weights_destroy(NULL);
    weights_made_end(&m);
    cmoe_device_close(dev);
    cmoe_context_destroy(ctx);
}

/* A packed object lives on without the checkpoint: same slabs, biases and smooth vectors. */
static void test_packed(void **state)
{
    (void)state;
    struct rng rng = {test_seed()};
    struct counter counter = {0};
    cmoe_context *const ctx = test_context(3, &counter);
    cmoe_device *const dev = test_device(ctx, "cpu");
    struct weights_made m = {0};
    int packed = 0;
    for (int i = 0; dev->backend->formats && dev->backend->formats[i]; i++)
        for (int k = 0; k < WEIGHT_FORMATS; k++) {
            const struct cmoe_packing_format *const format = dev->backend->formats[i];
            char why[160];
            cmoe_weights *w, *plain;
            weights_make(&rng, weight_formats[k], SEPARATE, &m);
            m.p.x = (cmoe_format){.dtype = CMOE_I8, .scaling = CMOE_SCALE_SMOOTH};
            m.desc.format1 = m.desc.format2 = format->name;
            if (!format->holds(&m.p, 1, why, sizeof why)) {
                expect_error(cmoe_weights_create(dev, &m.p, &m.desc, &w), CMOE_ERR_UNSUPPORTED,
                             why);
                continue;
            }
            if (!format->holds(&m.p, 2, why, sizeof why)) continue;
            expect_ok(cmoe_weights_create(dev, &m.p, &m.desc, &w));
            m.desc.format1 = m.desc.format2 = NULL;
            expect_ok(cmoe_weights_create(dev, &m.p, &m.desc, &plain));
            assert_string_equal(cmoe_weights_format(w, 1), format->name);
            assert_true(cmoe_weights_owned_bytes(w) > 0);
            for (int matrix = 1; matrix <= 2; matrix++) {
                const int64_t panels = format->panels(&m.p, matrix);
                const size_t bytes = (size_t)panels * format->panel_bytes(&m.p, matrix);
                uint8_t *const slab = aligned_alloc(64, (bytes + 63) / 64 * 64);
                memset(slab, 0, bytes);
                format->pack(plain, matrix, E - 1, 0, panels, slab);
                assert_same_bytes(cmoe__weights_panel(w, matrix, E - 1, 0), slab, bytes);
                free(slab);
            }
            struct store *const last = weights_store(&m, E - 1, 1);
            const float bias = last->bias[I - 1], smooth = weights_store(&m, 0, 0)->smooth[5];
            memset(m.stores, 0, 3 * E * sizeof *m.stores);
            assert_true(cmoe__weights_bias(w, 1, E - 1, 2 * I - 1) == bias);
            assert_true(cmoe__weights_smooth(w, 1, 0)[5] == smooth);
            cmoe_matrix view;
            expect_error(cmoe_weights_matrix(w, 0, 1, &view, NULL), CMOE_ERR_UNSUPPORTED, "packed");
            cmoe_weights_destroy(plain);
            cmoe_weights_destroy(w);
            packed++;
        }
    weights_made_end(&m);
    cmoe_device_close(dev);
    cmoe_context_destroy(ctx);
    assert_int_equal(counter.live, 0);
    if (packed == 0) skip();
}

/* Every allocation fails once. */
static void test_no_memory(void **state)
{
    (void)state;
    struct rng rng = {test_seed()};
    struct counter counter = {0};
    cmoe_context *const ctx = test_context(1, &counter);
    cmoe_device *const dev = test_device(ctx, "cpu");
    struct weights_made m = {0};
    weights_make(&rng, weight_formats[FORMAT_BF16], FUSED, &m);
    const struct cmoe_packing_format *const *const list = dev->backend->formats;
    for (int i = -1; i < 0 || (list && list[i]); i++) {
        char why[160];
        if (i >= 0 && !list[i]->holds(&m.p, 1, why, sizeof why)) continue;
        m.desc.format1 = i < 0 ? NULL : list[i]->name;
        for (int n = 1;; n++) {
            cmoe_weights *w;
            const long live = counter.live;
            counter.fail_at = counter.calls + n;
            const cmoe_status status = cmoe_weights_create(dev, &m.p, &m.desc, &w);
            counter.fail_at = 0;
            if (status == CMOE_OK) {
                cmoe_weights_destroy(w);
                assert_true(n > 2);
                break;
            }
            assert_int_equal(status, CMOE_ERR_NO_MEMORY);
            assert_int_equal(counter.live, live);
            assert_null(w);
        }
    }
    weights_made_end(&m);
    cmoe_device_close(dev);
    cmoe_context_destroy(ctx);
}

/* All rows of both matrices, decoded; biases and smooth vectors behind them. */
static double *contents(const cmoe_weights *w, size_t *n)
{
    const int64_t rows1 = cmoe_problem_rows1(&w->p);
    double *const out = calloc((size_t)E * (2 * I + H) * (H + I + 2), sizeof *out);
    assert_non_null(out);
    *n = 0;
    for (int e = 0; e < E; e++)
        for (int matrix = 1; matrix <= 2; matrix++) {
            const int64_t rows = matrix == 1 ? rows1 : H, cols = matrix == 1 ? H : I;
            for (int64_t r = 0; r < rows; r++) {
                struct cmoe_row row;
                cmoe__weights_row(w, matrix, e, r, &row);
                cmoe__row_decode_f64(w->p.w, &row, cols, out + *n);
                *n += (size_t)cols;
                out[(*n)++] = (double)cmoe__weights_bias(w, matrix, e, r);
            }
            const float *const smooth = cmoe__weights_smooth(w, matrix, e);
            const bool used = (matrix == 1 ? w->p.x : w->p.mid).scaling == CMOE_SCALE_SMOOTH;
            for (int64_t c = 0; used && c < cols; c++)
                out[(*n)++] = (double)smooth[c];
        }
    return out;
}

/* An upload holds what the matrices held, and nothing of the caller's. */
static void check_upload(cmoe_device *dev, struct weights_made *m)
{
    cmoe_weights *plain, *w;
    size_t n, again;
    expect_ok(cmoe_weights_create(dev, &m->p, &m->desc, &plain));
    double *const want = contents(plain, &n);
    expect_ok(cmoe_weights_upload(dev, &m->p, &m->desc, &w));
    assert_true(cmoe_weights_owned_bytes(w) > 0);
    memset(m->stores, 0, 3 * E * sizeof *m->stores);
    double *const got = contents(w, &again);
    assert_int_equal(n, again);
    assert_same_bytes(got, want, n * sizeof *got);
    free(want);
    free(got);
    cmoe_weights_destroy(plain);
    cmoe_weights_destroy(w);
}

static void test_upload(void **state)
{
    (void)state;
    struct rng rng = {test_seed()};
    struct counter counter = {0};
    cmoe_context *const ctx = test_context(1, &counter);
    cmoe_device *const dev = test_device(ctx, "ref");
    struct weights_made m = {0};
    int checked = 0;
    for (int f = 0; f < WEIGHT_FORMATS; f++)
        for (int layout = 0; layout < LAYOUTS; layout++) {
            if (test_short() && (f + layout) % 3 != 0) continue;
            weights_make(&rng, weight_formats[f], (enum layout)layout, &m);
            if (m.p.w.dtype == CMOE_I8)
                m.p.x = (cmoe_format){.dtype = CMOE_I8, .scaling = CMOE_SCALE_SMOOTH};
            if (cmoe_problem_check(&m.p) != CMOE_OK) continue;
            checked++;
            check_upload(dev, &m);
        }
    assert_true(checked > WEIGHT_FORMATS);
    /* Rows apart, and columns apart: the store's memory read as another matrix. */
    weights_make(&rng, weight_formats[FORMAT_BF16], SEPARATE, &m);
    for (int e = 0; e < E; e++) {
        m.gate_up[e].row_stride = 2 * H + 6;
        m.up[e].row_stride = 2;
        m.up[e].col_stride = 2 * I;
        m.down[e].row_stride = 4;
        m.down[e].col_stride = 4 * H;
    }
    check_upload(dev, &m);
    weights_make(&rng, weight_formats[FORMAT_U4_ZERO], FUSED, &m);
    m.gate_up[1].row_stride = H;
    check_upload(dev, &m);
    cmoe_weights *w;
    m.down[2].zero = NULL;
    expect_error(cmoe_weights_upload(dev, &m.p, &m.desc, &w), CMOE_ERR_INVALID,
                 "down of expert 2 has no zero points");
    assert_null(w);
    weights_make(&rng, weight_formats[FORMAT_BF16], SEPARATE, &m);
    for (int n = 1;; n++) {
        counter.fail_at = counter.calls + n;
        const cmoe_status status = cmoe_weights_upload(dev, &m.p, &m.desc, &w);
        counter.fail_at = 0;
        if (status == CMOE_OK) break;
        assert_int_equal(status, CMOE_ERR_NO_MEMORY);
        assert_true(n < 20);
    }
    cmoe_weights_destroy(w);
    weights_made_end(&m);
    cmoe_device_close(dev);
    cmoe_context_destroy(ctx);
    assert_int_equal(counter.live, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_missing_data), cmocka_unit_test(test_wrong_tables),
        cmocka_unit_test(test_matrix),       cmocka_unit_test(test_packed),
        cmocka_unit_test(test_no_memory),    cmocka_unit_test(test_upload),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
