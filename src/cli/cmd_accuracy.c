/* SPDX-License-Identifier: MIT
 * cmoe accuracy: what schemes would cost a checkpoint, before any of them is chosen. */
#include "cli/accuracy.h"
#include "cli/commands.h"
#include "cli/npy.h"
#include "cli/report.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { WORST = 10, TOKENS = 64 };
static const char default_schemes[] =
    "fp8-block+fp8-token+int8-w8a8+int4-w4a16+mxfp4-w4a16+nvfp4-w4a16";

/* Rows of --input as f32, else normal noise of deviation 1. @return an exit code. */
static int read_x(const struct cli_args *args, int64_t hidden, float **x, int64_t *tokens)
{
    const char *path = cli_args_value(args, "input");
    cmoe_array a = {.data = NULL};
    int64_t rows = TOKENS;
    if (path != NULL) {
        const int code = cli_npy_read(path, &a);
        if (code != CLI_OK) return code;
        rows = a.ndim > 0 && a.shape[a.ndim - 1] == hidden ? 1 : 0;
        for (int d = 0; d < a.ndim - 1; d++)
            rows *= a.shape[d];
    }
    const int64_t n = rows * hidden;
    int code = CLI_OK;
    *x = malloc((size_t)(n > 0 ? n : 1) * sizeof **x);
    *tokens = rows;
    if (rows < 1 || rows > 1 << 20)
        code = cli_fail(CLI_BAD_DATA, "%s is not 1 to 2^20 rows of %lld columns", path,
                        (long long)hidden);
    else if (*x == NULL)
        code = cli_fail(CLI_NO_MEMORY, "out of memory");
    else if (path != NULL && cmoe_convert(CMOE_F32, *x, a.dtype, a.data, n) != CMOE_OK)
        code = cli_fail(CLI_BAD_DATA, "%s does not hold floating point numbers", path);
    uint64_t state = 1;
    for (int64_t i = 0; code == CLI_OK && path == NULL && i < n; i++) {
        /* The sum of twelve uniform numbers is close enough to normal. */
        double sum = -6;
        for (int j = 0; j < 12; j++) {
            state = state * 6364136223846793005u + 1442695040888963407u;
            sum += (double)(state >> 11) * 0x1p-53;
        }
        (*x)[i] = (float)sum;
    }
    cmoe_array_free(&a);
    return code;
}

static void print_layers(const struct cli_accuracy *a)
{
    static const char *const headings[] = {"scheme", "layer",     "weights dB", "largest",
                                           "cosine", "output dB", "largest",    "cosine"};
    struct cli_table table = {.columns = 8,
                              .numeric = {false, true, true, true, true, true, true, true}};
    for (int c = 0; c < table.columns; c++)
        cli_table_cell(&table, "%s", headings[c]);
    for (int s = 0; s < a->schemes; s++) {
        for (int l = 0; l < a->layers; l++) {
            const struct cli_score w = cli_accuracy_layer(a, s, l);
            const struct cli_score *y = &a->outputs[s * a->layers + l];
            cli_table_cell(&table, "%s", a->names[s]);
            cli_table_cell(&table, "%d", a->index[l]);
            cli_table_cell(&table, "%.2f", cli_score_sqnr(&w));
            cli_table_cell(&table, "%.3g", w.largest);
            cli_table_cell(&table, "%.6f", cli_score_cosine(&w));
            cli_table_cell(&table, "%.2f", cli_score_sqnr(y));
            cli_table_cell(&table, "%.3g", y->largest);
            cli_table_cell(&table, "%.6f", cli_score_cosine(y));
        }
    }
    cli_table_print(&table, false);
    cli_table_free(&table);
}

/* Index of the expert with the lowest SQNR that `taken` does not have, or -1. */
static int64_t next_worst(const struct cli_accuracy *a, const int64_t *taken, int n)
{
    const int64_t count = (int64_t)a->schemes * a->layers * a->experts;
    int64_t worst = -1;
    for (int64_t i = 0; i < count; i++) {
        bool seen = false;
        for (int j = 0; j < n; j++)
            seen = seen || taken[j] == i;
        const double sqnr = cli_score_sqnr(&a->weights[i]);
        if (!seen && (worst < 0 || sqnr < cli_score_sqnr(&a->weights[worst]))) worst = i;
    }
    return worst;
}

static void print_worst(const struct cli_accuracy *a)
{
    int64_t worst[WORST];
    printf("\nworst experts\n");
    for (int n = 0; n < WORST; n++) {
        worst[n] = next_worst(a, worst, n);
        if (worst[n] < 0) return;
        const struct cli_score *w = &a->weights[worst[n]];
        const int64_t layer = worst[n] / a->experts % a->layers;
        printf("  %-20s layer %d expert %lld: %.2f dB, largest error %.3g, cosine %.6f\n",
               a->names[worst[n] / a->experts / a->layers], a->index[layer],
               (long long)(worst[n] % a->experts), cli_score_sqnr(w), w->largest,
               cli_score_cosine(w));
    }
}

static void print_experts(const struct cli_accuracy *a)
{
    int64_t dead = 0, outliers = 0;
    for (int l = 0; l < a->layers; l++) {
        for (int e = 0; e < a->experts; e++) {
            const bool idle = a->load[(int64_t)l * a->experts + e] == 0;
            const bool outlier = cli_accuracy_outlier(a, l, e);
            dead += idle;
            outliers += outlier;
            if (outlier)
                printf("outlier: layer %d expert %d, largest weight %.3g\n", a->index[l], e,
                       (double)a->amax[(int64_t)l * a->experts + e]);
        }
    }
    printf("\n%lld experts were given none of the %lld tokens; %lld have weights more than 4 times "
           "their layer's median\n",
           (long long)dead, (long long)a->tokens, (long long)outliers);
}

static int write_html(const struct cli_args *args, const struct cli_accuracy *a)
{
    const char *path = cli_args_value(args, "html");
    char partial[4096];
    if (path == NULL) return CLI_OK;
    const int n = snprintf(partial, sizeof partial, "%s.partial", path);
    FILE *out = n > 0 && (size_t)n < sizeof partial ? fopen(partial, "w") : NULL;
    if (out == NULL) return cli_fail(CLI_NO_OUTPUT, "cannot create %s: %s", path, strerror(errno));
    cli_accuracy_html(a, args->positional, out);
    const bool failed = fflush(out) != 0 || ferror(out) != 0;
    if (fclose(out) != 0 || failed || rename(partial, path) != 0) {
        const int error = errno;
        (void)remove(partial);
        return cli_fail(CLI_NO_OUTPUT, "cannot write %s: %s", path, strerror(error));
    }
    return CLI_OK;
}

static void print_json(const struct cli_accuracy *a)
{
    struct cli_json json = {.out = stdout};
    for (int s = 0; s < a->schemes; s++) {
        for (int l = 0; l < a->layers; l++) {
            const struct cli_score w = cli_accuracy_layer(a, s, l);
            const struct cli_score *y = &a->outputs[s * a->layers + l];
            cli_json_open(&json, NULL, '{');
            cli_json_string(&json, "scheme", a->names[s]);
            cli_json_int(&json, "layer", a->index[l]);
            cli_json_double(&json, "weights_sqnr", cli_score_sqnr(&w));
            cli_json_double(&json, "weights_max", w.largest);
            cli_json_double(&json, "weights_cosine", cli_score_cosine(&w));
            cli_json_double(&json, "output_sqnr", cli_score_sqnr(y));
            cli_json_double(&json, "output_max", y->largest);
            cli_json_double(&json, "output_cosine", cli_score_cosine(y));
            cli_json_open(&json, "experts_sqnr", '[');
            for (int e = 0; e < a->experts; e++)
                cli_json_double(&json, NULL,
                                cli_score_sqnr(&a->weights[(s * a->layers + l) * a->experts + e]));
            cli_json_close(&json, ']');
            cli_json_close(&json, '}');
            cli_json_end(&json);
        }
    }
}

static int measure(const struct cli_args *args, struct cli_session *session,
                   const struct cli_model *model)
{
    const char *schemes = cli_args_value(args, "scheme");
    int64_t layer = -1, tokens = 0;
    float *x = NULL;
    struct cli_accuracy a = {0};
    int code = cli_args_int(args, "layer", 0, INT32_MAX, &layer);
    if (code == CLI_OK) code = read_x(args, model->config.problem.hidden, &x, &tokens);
    if (code == CLI_OK)
        code =
            cli_accuracy_open(model, schemes != NULL ? schemes : default_schemes, (int)layer, &a);
    if (code == CLI_OK) code = cli_accuracy_measure(session, model, x, tokens, &a);
    if (code == CLI_OK) code = write_html(args, &a);
    if (code == CLI_OK && cli_args_given(args, "json")) {
        print_json(&a);
    } else if (code == CLI_OK) {
        print_layers(&a);
        print_worst(&a);
        print_experts(&a);
    }
    free(x);
    cli_accuracy_close(&a);
    return code;
}

static int run(const struct cli_args *args)
{
    struct cli_model model;
    struct cli_session session;
    int code = cli_model_open(args->positional, &model);
    if (code != CLI_OK) return code;
    if (!model.has_config)
        code = cli_fail(CLI_BAD_DATA, "%s has no config.json next to it", args->positional);
    if (code == CLI_OK) {
        code = cli_session_open(&session);
        if (code == CLI_OK)
            code = cli_session_host_device(&session, cli_args_value(args, "device"));
        if (code == CLI_OK) code = measure(args, &session, &model);
        code = cli_session_close(&session, code);
    }
    cli_model_close(&model);
    return code;
}

static const struct cli_option options[] = {
    {"scheme", "A+B", "schemes to compare (default: six of 8 and 4 bits)"},
    {"layer", "N", "only this layer (default: all with experts)"},
    {"input", "FILE.npy", "hidden states before the layer, [tokens, hidden] (default: noise)"},
    {"html", "FILE", "write a report with plots, too"},
    {"device", "NAME", "ref or cpu"},
    {"json", NULL, "print one JSON object a scheme and layer"},
    {NULL, NULL, NULL},
};

const struct cli_command cli_accuracy = {
    .name = "accuracy",
    .summary = "Say what schemes cost a checkpoint's weights and outputs",
    .positional = "DIR|FILE",
    .options = options,
    .run = run,
};
