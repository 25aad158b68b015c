/* SPDX-License-Identifier: MIT
 * Offsets past 2^31 and 2^32 bytes: rows of x, y, logits and weights lie gigabytes apart in sparse
 * mappings, and the result must be that of the same numbers laid out tightly. */
#include "harness_call.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { T = 5, E = 3 };
static const size_t gap = (size_t)3
                          << 30; /* 3 GiB: the second row is past 2^31, the third past 2^32 */

static void *sparse(size_t bytes)
{
    void *const p = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return p == MAP_FAILED ? NULL : p;
}

/* rows of `row` bytes, `from` apart, to `gap` apart in a mapping. */
static void *spread(const void *data, size_t row, size_t from, int rows)
{
    char *const out = sparse((size_t)rows * gap);
    for (int i = 0; out && i < rows; i++) {
        memcpy(out + (size_t)i * gap, (const char *)data + (size_t)i * from, row);
    }
    return out;
}

static void expect_same(struct rig *rig, const struct prepared *made, cmoe_device *dev,
                        const cmoe_weights *w, const cmoe_tensors *t, const char *what)
{
    call_reset_y(rig, &made->call);
    call_execute(rig, dev, &made->call.problem, w, NULL, t);
    for (int i = 0; t->y != made->call.tensors.y && i < T; i++) {
        memcpy(gen_y_row(&made->call, i), (const char *)t->y + (size_t)i * gap,
               (size_t)made->call.y_row);
    }
    const struct outcome out = call_judge(&made->call, made->kind, made->want, made->bound);
    if (out.kind != OUTCOME_OK) fail_with("%s: %s", what, out.why);
}

static void far_rows(struct rig *rig, const char *text)
{
    const cmoe_problem p = test_problem(text);
    struct gen_options options = call_options(&rig->guard, GEN_REAL, test_seed());
    options.plain = true;
    struct prepared made;
    expect_ok(call_prepare(rig, &p, &options, &made));
    const size_t x_row = cmoe_dtype_bytes((cmoe_dtype)p.in, p.hidden);
    cmoe_tensors t = made.call.tensors;
    void *const x = spread(t.x, x_row, x_row, T);
    void *const logits = t.logits ? spread(t.logits, E * 4, E * 4, T) : NULL;
    void *const y = sparse(T * gap);
    if (!x || (t.logits && !logits) || !y) skip();
    cmoe_device *const devices[] = {rig->ref, rig->cpu};
    for (int d = 0; d < 2; d++) {
        t.x = x;
        t.x_stride = (int64_t)gap;
        t.logits = logits;
        t.logits_stride = logits ? (int64_t)gap / 4 : 0;
        t.y = y;
        t.y_stride = (int64_t)gap;
        expect_same(rig, &made, devices[d], made.canonical, &t, "far rows of x, logits and y");
    }
    munmap(x, T * gap);
    if (logits) munmap(logits, T * gap);
    munmap(y, T * gap);
    call_done(&made);
}

/* Weight rows of half a gigabyte, in place: the last of 12 lies past 2^32. */
static void far_weights(struct rig *rig, const char *text)
{
    const cmoe_problem p = test_problem(text);
    struct gen_options options = call_options(&rig->guard, GEN_REAL, test_seed());
    options.plain = true;
    struct prepared made;
    expect_ok(call_prepare(rig, &p, &options, &made));
    const int rows1 = (int)cmoe_problem_rows1(&p), rows2 = p.hidden;
    const size_t apart = (size_t)1 << 29;
    cmoe_matrix gate_up[E], down[E];
    for (int e = 0; e < E; e++) {
        gate_up[e] = made.call.weights.gate_up[e];
        down[e] = made.call.weights.down[e];
    }
    struct {
        cmoe_matrix *m;
        int rows, cols;
    } far[] = {{&gate_up[1], rows1, p.hidden}, {&down[2], rows2, p.inter}};
    char *maps[2];
    for (int i = 0; i < 2; i++) {
        const size_t row = cmoe_dtype_bytes((cmoe_dtype)p.w.dtype, far[i].cols);
        maps[i] = sparse((size_t)far[i].rows * apart);
        if (!maps[i]) skip();
        for (int r = 0; r < far[i].rows; r++) {
            memcpy(maps[i] + (size_t)r * apart,
                   (const char *)far[i].m->data + (int64_t)r * far[i].m->row_stride, row);
        }
        far[i].m->data = maps[i];
        far[i].m->row_stride = (int64_t)apart;
    }
    cmoe_weights_desc desc = made.call.weights;
    desc.gate_up = gate_up;
    desc.down = down;
    cmoe_device *const devices[] = {rig->ref, rig->cpu};
    for (int d = 0; d < 2; d++) {
        cmoe_weights *w = NULL;
        expect_ok(cmoe_weights_create(devices[d], &p, &desc, &w));
        expect_same(rig, &made, devices[d], w, &made.call.tensors, "far rows of weights");
        cmoe_weights_destroy(w);
    }
    for (int i = 0; i < 2; i++) {
        munmap(maps[i], (size_t)far[i].rows * apart);
    }
    call_done(&made);
}

static void rows_of_activations(void **state)
{
    far_rows(*state, "t=5 e=3 k=2 h=48 i=32 scheme=bf16");
    far_rows(*state, "t=5 e=3 k=2 h=48 i=32 scheme=f32 rx renorm");
    far_rows(*state, "t=5 e=3 k=2 h=48 i=32 scheme=fp8-token");
}

static void rows_of_weights(void **state)
{
    far_weights(*state, "t=5 e=3 k=3 h=12 i=6 scheme=bf16");
    far_weights(*state, "t=5 e=3 k=3 h=12 i=6 scheme=fp8-token");
    far_weights(*state, "t=5 e=3 k=3 h=12 i=6 gate=interleaved scheme=int4-w4a16");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_of_activations),
        cmocka_unit_test(rows_of_weights),
    };
    return cmocka_run_group_tests(tests, rig_setup, rig_teardown);
}
