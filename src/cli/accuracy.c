/* SPDX-License-Identifier: MIT
 * Quantise every expert and every layer under each scheme and compare with the checkpoint's values. */
#include "cli/accuracy.h"

#include "cli/args.h"
#include "cli/calibrate.h"
#include "cli/report.h"
#include "cli/router.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

void cli_score_add(struct cli_score *s, const float *want, const float *got, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        const double w = (double)want[i], g = (double)got[i], d = g - w;
        s->signal += w * w;
        s->noise += d * d;
        s->dot += w * g;
        s->got += g * g;
        if (!(fabs(d) <= s->largest)) s->largest = fabs(d);
    }
}

void cli_score_merge(struct cli_score *s, const struct cli_score *other)
{
    s->signal += other->signal;
    s->noise += other->noise;
    s->dot += other->dot;
    s->got += other->got;
    if (other->largest > s->largest) s->largest = other->largest;
}

double cli_score_sqnr(const struct cli_score *s)
{
    return 10 * log10(s->signal / s->noise);
}

double cli_score_cosine(const struct cli_score *s)
{
    return s->dot / sqrt(s->signal * s->got);
}

struct cli_score cli_accuracy_layer(const struct cli_accuracy *a, int scheme, int layer)
{
    struct cli_score sum = {0};
    for (int e = 0; e < a->experts; e++)
        cli_score_merge(&sum, &a->weights[(scheme * a->layers + layer) * a->experts + e]);
    return sum;
}

static int by_value(const void *left, const void *right)
{
    const float a = *(const float *)left, b = *(const float *)right;
    return (a > b) - (a < b);
}

bool cli_accuracy_outlier(const struct cli_accuracy *a, int layer, int expert)
{
    const float *row = a->amax + (int64_t)layer * a->experts;
    float *sorted = malloc((size_t)a->experts * sizeof *sorted);
    if (sorted == NULL) return false;
    memcpy(sorted, row, (size_t)a->experts * sizeof *sorted);
    qsort(sorted, (size_t)a->experts, sizeof *sorted, by_value);
    const float median = sorted[a->experts / 2];
    free(sorted);
    return row[expert] > 4 * median;
}

/* ---- tables ---- */

static int add_scheme(struct cli_accuracy *out, const cmoe_problem *base, const char *name,
                      size_t length)
{
    cmoe_problem p = *base;
    if (out->schemes == ACCURACY_SCHEMES || length >= sizeof out->names[0])
        return cli_fail(CLI_USAGE, "more than %d schemes, or a scheme longer than %d characters",
                        ACCURACY_SCHEMES, (int)sizeof out->names[0] - 1);
    char *copy = out->names[out->schemes++];
    memcpy(copy, name, length);
    if (cmoe_problem_scheme(&p, copy) != CMOE_OK)
        return cli_fail(CLI_USAGE, "%s", cmoe_last_error());
    return cli_problem_check(&p);
}

int cli_accuracy_open(const struct cli_model *model, const char *schemes, int layer,
                      struct cli_accuracy *out)
{
    const cmoe_model_config *c = &model->config;
    *out = (struct cli_accuracy){.experts = c->problem.experts};
    for (const char *at = schemes; *at != '\0';) {
        const size_t n = strcspn(at, "+");
        const int code = add_scheme(out, &c->problem, at, n);
        if (code != CLI_OK) return code;
        at += at[n] == '+' ? n + 1 : n;
    }
    out->index = calloc((size_t)c->layers, sizeof *out->index);
    if (out->index == NULL) return cli_fail(CLI_NO_MEMORY, "out of memory");
    for (int l = 0; l < c->layers; l++)
        if (cli_model_has_experts(c, l) && (layer < 0 || layer == l)) out->index[out->layers++] = l;
    if (out->layers == 0) return cli_fail(CLI_USAGE, "layer %d has no experts", layer);
    const size_t cells = (size_t)out->layers * (size_t)out->experts;
    out->weights = calloc((size_t)out->schemes * cells, sizeof *out->weights);
    out->outputs = calloc((size_t)out->schemes * (size_t)out->layers, sizeof *out->outputs);
    out->load = calloc(cells, sizeof *out->load);
    out->amax = calloc(cells, sizeof *out->amax);
    if (out->weights == NULL || out->outputs == NULL || out->load == NULL || out->amax == NULL)
        return cli_fail(CLI_NO_MEMORY, "out of memory");
    return CLI_OK;
}

void cli_accuracy_close(struct cli_accuracy *a)
{
    free(a->index);
    free(a->weights);
    free(a->outputs);
    free(a->load);
    free(a->amax);
    *a = (struct cli_accuracy){0};
}

/* ---- weights ---- */

/* A matrix in f32, its quantised form, and that decoded again. */
struct buffers {
    float *want, *got;
    void *codes, *scale;
    uint8_t *zero;
};

static cmoe_status compare_matrix(cmoe_format f, const struct buffers *b, int64_t rows,
                                  int64_t cols, struct cli_score *score)
{
    float global = 0;
    cmoe_status status =
        cmoe_quantize_weight(f, b->want, rows, cols, b->codes, b->scale, b->zero, &global);
    const cmoe_matrix m = {.data = b->codes, .scale = b->scale, .zero = b->zero, .global = &global};
    if (status == CMOE_OK) status = cmoe_dequantize_weight(f, &m, rows, cols, b->got);
    if (status == CMOE_OK) cli_score_add(score, b->want, b->got, rows * cols);
    return status;
}

static cmoe_status compare_weights(const cmoe_layer *layer, int at, const struct buffers *b,
                                   struct cli_accuracy *a)
{
    const int64_t n = (int64_t)layer->problem.inter * layer->problem.hidden;
    cmoe_status status = CMOE_OK;
    for (int e = 0; e < a->experts; e++) {
        for (int m = 0; m < 3 && status == CMOE_OK; m++) {
            const int64_t rows = m == 2 ? layer->problem.hidden : layer->problem.inter;
            status = cmoe_layer_decode(layer, e, m, b->want);
            float *amax = &a->amax[at * a->experts + e];
            for (int64_t i = 0; i < n; i++)
                *amax = fmaxf(*amax, fabsf(b->want[i]));
            for (int s = 0; s < a->schemes && status == CMOE_OK; s++) {
                cmoe_problem p = layer->problem;
                status = cmoe_problem_scheme(&p, a->names[s]);
                if (status == CMOE_OK)
                    status = compare_matrix(p.w, b, rows, n / rows,
                                            &a->weights[(s * a->layers + at) * a->experts + e]);
            }
        }
    }
    return status;
}

/* ---- outputs ---- */

struct input {
    float *x; /* [tokens, H], values that bf16 has */
    void *half;
    int64_t tokens;
    struct cli_router router;
    float *want, *got;        /* [tokens, H] */
    float x_scale, mid_scale; /* of a scheme with static scales */
};

static cmoe_status run_layer(struct cli_session *session, const cmoe_problem *p,
                             const cmoe_weights_desc *weights, const struct input *in, float *y,
                             int64_t *load)
{
    struct cli_job job = {0};
    const cmoe_tensors t = {
        .struct_size = sizeof t,
        .n_tokens = (int32_t)in->tokens,
        .x = p->in == CMOE_F32 ? (const void *)in->x : in->half,
        .router_w = in->router.w,
        .router_b = in->router.logit_bias,
        .route_bias = in->router.route_bias,
        .x_scale = p->x.fixed ? &in->x_scale : NULL,
        .mid_scale = p->mid.fixed ? &in->mid_scale : NULL,
        .y = y,
        .expert_load = load,
    };
    cmoe_status status = cli_job_open(session, p, weights, NULL, &job);
    if (status == CMOE_OK) status = cli_job_run(session, &job, &t);
    cli_job_close(&job);
    return status;
}

/* Static scales for a scheme: what the input itself needs. */
static cmoe_status calibrate(struct cli_session *session, const cmoe_problem *base,
                             const cmoe_weights_desc *own, const cmoe_problem *p, struct input *in)
{
    cmoe_observation seen = {.struct_size = sizeof seen};
    const cmoe_tensors t = {
        .struct_size = sizeof t,
        .n_tokens = (int32_t)in->tokens,
        .x = in->x,
        .router_w = in->router.w,
        .router_b = in->router.logit_bias,
        .route_bias = in->router.route_bias,
    };
    if (!p->x.fixed && !p->mid.fixed) return CMOE_OK;
    const cmoe_status status = cli_observe(session, base, own, &t, &seen);
    in->x_scale = cmoe_static_scale(p->x, seen.x_amax);
    in->mid_scale = cmoe_static_scale(p->mid, seen.mid_amax);
    return status;
}

static cmoe_status compare_outputs(struct cli_session *session, const cmoe_layer *layer, int at,
                                   struct input *in, struct cli_accuracy *a)
{
    cmoe_problem base = layer->problem;
    base.max_tokens = (int32_t)in->tokens;
    base.flags |= CMOE_ROUTE_FROM_X;
    base.in = base.y = CMOE_F32;
    base.x = base.mid = (cmoe_format){.dtype = CMOE_F32};
    const cmoe_weights_desc own = {
        .struct_size = sizeof own, .gate_up = layer->gate, .up = layer->up, .down = layer->down};
    cmoe_status status =
        run_layer(session, &base, &own, in, in->want, a->load + (int64_t)at * a->experts);
    for (int s = 0; s < a->schemes && status == CMOE_OK; s++) {
        cmoe_problem p = base;
        cmoe_quantized *q = NULL;
        status = cmoe_problem_scheme(&p, a->names[s]);
        p.y = CMOE_F32;
        if (status == CMOE_OK) status = calibrate(session, &base, &own, &p, in);
        if (status == CMOE_OK) status = cmoe_layer_quantize(layer, &p, &q);
        if (status == CMOE_OK)
            status = run_layer(session, &p, cmoe_quantized_desc(q), in, in->got, NULL);
        if (status == CMOE_OK)
            cli_score_add(&a->outputs[s * a->layers + at], in->want, in->got,
                          in->tokens * base.hidden);
        cmoe_quantized_free(q);
    }
    return status;
}

static cmoe_status measure_layers(struct cli_session *session, const struct cli_model *model,
                                  struct input *in, const struct buffers *b, struct cli_accuracy *a)
{
    struct cli_progress progress = {.what = "accuracy: layer", .start = cli_now()};
    cmoe_status status = CMOE_OK;
    for (int l = 0; l < a->layers && status == CMOE_OK; l++) {
        cmoe_layer layer;
        cli_progress_show(&progress, l, a->layers);
        status = cmoe_layer_open(model->checkpoint, &model->config, a->index[l], &layer);
        if (status != CMOE_OK) break;
        status = cli_router_read(&layer, &in->router);
        if (status == CMOE_OK) status = compare_weights(&layer, l, b, a);
        if (status == CMOE_OK) status = compare_outputs(session, &layer, l, in, a);
        cli_router_free(&in->router);
        cmoe_layer_free(&layer);
    }
    cli_progress_end(&progress);
    return status;
}

int cli_accuracy_measure(struct cli_session *session, const struct cli_model *model, const float *x,
                         int64_t tokens, struct cli_accuracy *out)
{
    const cmoe_problem *p = &model->config.problem;
    const size_t n = (size_t)p->inter * (size_t)p->hidden, t = (size_t)(tokens * p->hidden);
    const struct buffers b = {
        .want = malloc(n * sizeof(float)),
        .got = malloc(n * sizeof(float)),
        .codes = malloc(n * sizeof(float) + 64),
        .scale = malloc(n * sizeof(float) + 64),
        .zero = malloc(n + 64),
    };
    struct input in = {
        .x = malloc(t * sizeof(float)),
        .half = malloc(t * sizeof(uint16_t)),
        .tokens = tokens,
        .want = malloc(t * sizeof(float)),
        .got = malloc(t * sizeof(float)),
    };
    int code = CLI_OK;
    out->tokens = tokens;
    if (!b.want || !b.got || !b.codes || !b.scale || !b.zero || !in.x || !in.half || !in.want ||
        !in.got) {
        code = cli_fail(CLI_NO_MEMORY, "out of memory");
    } else {
        cmoe_status status = cmoe_convert(CMOE_BF16, in.half, CMOE_F32, x, (int64_t)t);
        if (status == CMOE_OK)
            status = cmoe_convert(CMOE_F32, in.x, CMOE_BF16, in.half, (int64_t)t);
        if (status == CMOE_OK) status = measure_layers(session, model, &in, &b, out);
        if (status != CMOE_OK) code = cli_fail_status(status, NULL);
    }
    void *const all[] = {b.want, b.got, b.codes, b.scale, b.zero, in.x, in.half, in.want, in.got};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        free(all[i]);
    return code;
}
