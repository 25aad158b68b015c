/* SPDX-License-Identifier: MIT
 * What schemes cost: errors of weights by expert and of outputs by layer. */
#ifndef CMOE_CLI_ACCURACY_H
#define CMOE_CLI_ACCURACY_H

#include "cli/model.h"
#include "cli/session.h"

#include <stdio.h>

enum { ACCURACY_SCHEMES = 16 };

/* Sums over what was compared. */
struct cli_score {
    double signal, noise, dot, got, largest; /* squares of wanted, error, got; largest |error| */
};
void cli_score_add(struct cli_score *s, const float *want, const float *got, int64_t n);
void cli_score_merge(struct cli_score *s, const struct cli_score *other);
double cli_score_sqnr(const struct cli_score *s); /* dB; infinite when equal */
double cli_score_cosine(const struct cli_score *s);

struct cli_accuracy {
    int schemes, layers, experts;
    char names[ACCURACY_SCHEMES][64];
    int *index;                /* [layers] number in the model */
    struct cli_score *weights; /* [schemes, layers, experts] */
    struct cli_score *outputs; /* [schemes, layers] */
    int64_t *load;             /* [layers, experts] */
    float *amax;               /* [layers, experts] largest weight */
    int64_t tokens;
};

/* Schemes joined by '+'. `layer` < 0: all. x [tokens, hidden] f32. @return an exit code. */
int cli_accuracy_open(const struct cli_model *model, const char *schemes, int layer,
                      struct cli_accuracy *out);
int cli_accuracy_measure(struct cli_session *session, const struct cli_model *model, const float *x,
                         int64_t tokens, struct cli_accuracy *out);
void cli_accuracy_close(struct cli_accuracy *a);

/* All experts' weights of a layer under a scheme. */
struct cli_score cli_accuracy_layer(const struct cli_accuracy *a, int scheme, int layer);
/* An expert whose largest weight is more than 4 times the layer's median. */
bool cli_accuracy_outlier(const struct cli_accuracy *a, int layer, int expert);

/* One self-contained page. */
void cli_accuracy_html(const struct cli_accuracy *a, const char *title, FILE *out);

#endif
