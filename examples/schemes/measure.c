/* SPDX-License-Identifier: MIT
 * Perplexity and logit error. Both run the model as generation does: every MoE layer goes through
 * the scheme's own plan. */
#include "measure.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The first `size` bytes of DIR/name, or all if there are fewer; 0-terminated, the caller's. */
static unsigned char *read_text(const struct lm *lm, const char *name, size_t size, size_t *length)
{
    unsigned char *const text = zeroed((int64_t)size + 1, 1);
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", lm->dir, name);
    FILE *const file = fopen(path, "rb");
    *length = file ? fread(text, 1, size, file) : 0;
    if (file) fclose(file);
    if (*length == 0) ok(cmoe_set_error(CMOE_ERR_IO, "%s cannot be read, or is empty.", path));
    return text;
}

/* -log of the probability that softmax(logits) gives to `byte`. */
static double surprise(const float *logits, int n, int byte)
{
    double sum = 0;
    for (int i = 0; i < n; i++)
        sum += exp((double)logits[i] - (double)logits[byte]);
    return log(sum);
}

double perplexity(struct lm_experts *e, int windows)
{
    const int vocab = e->lm->config.vocab;
    const size_t size = (size_t)windows * LM_CONTEXT + 1; /* the last window's last target */
    size_t length;
    unsigned char *const text = read_text(e->lm, "heldout.txt", size, &length);
    if (length < size) {
        ok(cmoe_set_error(CMOE_ERR_INVALID, "%s/heldout.txt has no %d windows of %d bytes.",
                          e->lm->dir, windows, LM_CONTEXT));
    }
    struct lm_state s;
    state_open(&s, e->lm);
    double sum = 0;
    for (const unsigned char *from = text; from + 1 < text + size; from += LM_CONTEXT) {
        s.n = 0;
        lm_forward(e, &s, from, LM_CONTEXT);
        for (int t = 0; t < LM_CONTEXT; t++) {
            sum += surprise(s.logits + (int64_t)t * vocab, vocab, from[t + 1]);
        }
    }
    state_close(&s);
    free(text);
    return exp(sum / (double)(size - 1));
}

/* The error on one prompt of n bytes. */
static double prompt_error(struct lm_experts *e, struct lm_state *s, const unsigned char *prompt,
                           int n, int number, int step)
{
    const int vocab = e->lm->config.vocab;
    char path[4096];
    cmoe_array want;
    snprintf(path, sizeof path, "%s/logits-%d.npy", e->lm->dir, number);
    ok(cmoe_npy_read(path, &want));
    if (want.dtype != CMOE_F32 || want.bytes != sizeof(float) * (size_t)n * (size_t)vocab) {
        ok(cmoe_set_error(CMOE_ERR_CORRUPT, "%s is not a float32 array [%d, %d].", path, n, vocab));
    }
    const float *reference = want.data;
    double worst = 0;
    for (s->n = 0; s->n < n;) {
        const int at = s->n, count = n - at < step ? n - at : step;
        lm_forward(e, s, prompt + at, count);
        for (int i = 0; i < count * vocab; i++) {
            const double error = fabs((double)s->logits[i] - (double)*reference++);
            if (!(error <= worst)) worst = error; /* a NaN stays */
        }
    }
    cmoe_array_free(&want);
    return worst;
}

double logit_error(struct lm_experts *e, int step)
{
    size_t length;
    unsigned char *const text = read_text(e->lm, "prompts.txt", 1 << 16, &length);
    struct lm_state s;
    state_open(&s, e->lm);
    double worst = 0;
    const unsigned char *line = text;
    for (int number = 0; line < text + length; number++) {
        const int n = (int)strcspn((const char *)line, "\n");
        const double error = prompt_error(e, &s, line, n, number, step);
        if (!(error <= worst)) worst = error;
        line += n + 1;
    }
    state_close(&s);
    free(text);
    return worst;
}
