/* SPDX-License-Identifier: MIT
 * cmoe inspect: what a checkpoint is, and whether its layers are complete. Headers only, unless
 * --deep asks for statistics of scales and weights. */
#include "cli/commands.h"
#include "cli/model.h"
#include "cli/report.h"

#include <stdlib.h>
#include <string.h>

enum { EXAMPLES = 5, FILES = 1024 };

/* ---- tensors by name ---- */

/* Last parts of names that the readers of experts know. */
static const char *const known_parts[] = {
    "weight",
    "bias",
    "weight_scale",
    "weight_scale_inv",
    "weight_packed",
    "weight_shape",
    "weight_zero_point",
    "weight_g_idx",
    "weight_global_scale",
    "input_scale",
    "input_global_scale",
    "qweight",
    "qzeros",
    "scales",
    "g_idx",
    "gate_up_proj",
    "down_proj",
    "gate_up_proj_bias",
    "down_proj_bias",
    "gate_up_proj_blocks",
    "gate_up_proj_scales",
    "down_proj_blocks",
    "down_proj_scales",
};

struct tensors {
    int64_t count, files;
    double bytes, expert_bytes, shared_bytes;
    int64_t unknown; /* tensors of experts that no reader knows */
    const char *examples[EXAMPLES];
};

static bool is_known(const char *name)
{
    const char *dot = strrchr(name, '.');
    for (size_t i = 0; i < sizeof known_parts / sizeof known_parts[0]; i++)
        if (dot != NULL && strcmp(dot + 1, known_parts[i]) == 0) return true;
    return false;
}

/* Shards: tensors of one share the name's address. Past FILES they are not told apart. */
static void count_file(const char *file, const char **seen, int64_t *n)
{
    for (int64_t i = *n - 1; i >= 0; i--)
        if (seen[i] == file) return;
    if (*n < FILES) seen[(*n)++] = file;
}

static void count_tensors(const cmoe_checkpoint *c, struct tensors *out)
{
    const char *seen[FILES];
    *out = (struct tensors){.count = cmoe_checkpoint_count(c)};
    for (int64_t i = 0; i < out->count; i++) {
        const cmoe_tensor_info *t = cmoe_checkpoint_at(c, i);
        count_file(t->file, seen, &out->files);
        out->bytes += (double)t->bytes;
        if (strstr(t->name, "shared_expert") != NULL || strstr(t->name, "_shexp") != NULL) {
            out->shared_bytes += (double)t->bytes;
        } else if (strstr(t->name, ".experts.") != NULL || strstr(t->name, "_exps.") != NULL) {
            out->expert_bytes += (double)t->bytes;
            if (is_known(t->name)) continue;
            if (out->unknown < EXAMPLES) out->examples[out->unknown] = t->name;
            out->unknown++;
        }
    }
}

/* ---- layers ---- */

struct layers {
    int checked, complete;
    char problem[CMOE_PROBLEM_TEXT];
    bool converted; /* opening a layer copies its experts */
    double expert_bytes;
    char missing[EXAMPLES][512];
    int failures;
};

/* Numbers of the scales of a matrix, widened. */
static int64_t scale_count(cmoe_format f, int64_t rows, int64_t cols)
{
    size_t bytes = 0;
    if (cmoe_format_bytes(f, rows, cols, NULL, &bytes, NULL) != CMOE_OK) return 0;
    const bool byte = f.scaling == CMOE_SCALE_MX || f.scaling == CMOE_SCALE_NV;
    const bool half = f.scale_dtype == CMOE_BF16 || f.scale_dtype == CMOE_F16;
    return (int64_t)bytes / (byte ? 1 : half ? 2 : 4);
}

static float scale_at(cmoe_format f, const void *scales, int64_t i)
{
    const uint8_t *bytes = scales;
    if (f.scaling == CMOE_SCALE_MX) return cmoe_decode(CMOE_E8M0, bytes[i]);
    if (f.scaling == CMOE_SCALE_NV) return cmoe_decode(CMOE_E4M3, bytes[i]);
    if (f.scale_dtype == CMOE_BF16 || f.scale_dtype == CMOE_F16) {
        uint16_t half;
        memcpy(&half, bytes + 2 * i, sizeof half);
        return cmoe_decode((cmoe_dtype)f.scale_dtype, half);
    }
    float value;
    memcpy(&value, bytes + 4 * i, sizeof value);
    return value;
}

static void add_scales(const cmoe_problem *p, const cmoe_matrix *m, int64_t rows, int64_t cols,
                       struct cli_range *range)
{
    const int64_t n = m->scale != NULL ? scale_count(p->w, rows, cols) : 0;
    for (int64_t i = 0; i < n; i++) {
        const float value = scale_at(p->w, m->scale, i);
        cli_range_add(range, &value, 1);
    }
}

/* Scales and decoded weights of all experts. @return an exit code. */
static int measure(const cmoe_layer *layer, struct cli_range *scales, struct cli_range *weights)
{
    const cmoe_problem *p = &layer->problem;
    const int64_t first = layer->up != NULL ? p->inter : 2 * (int64_t)p->inter;
    const int64_t n = (int64_t)p->inter * p->hidden;
    float *values = malloc((size_t)n * sizeof *values);
    cmoe_status status = CMOE_OK;
    if (values == NULL) return cli_fail(CLI_NO_MEMORY, "out of memory");
    for (int e = 0; e < p->experts && status == CMOE_OK; e++) {
        add_scales(p, &layer->gate[e], first, p->hidden, scales);
        if (layer->up != NULL) add_scales(p, &layer->up[e], first, p->hidden, scales);
        add_scales(p, &layer->down[e], p->hidden, p->inter, scales);
        for (int m = 0; m < 3 && status == CMOE_OK; m++) {
            status = cmoe_layer_decode(layer, e, m, values);
            if (status == CMOE_OK) cli_range_add(weights, values, n);
        }
    }
    free(values);
    return status == CMOE_OK ? CLI_OK : cli_fail_status(status, NULL);
}

static void table_row(struct cli_table *table, int layer, const char *what,
                      const struct cli_range *r)
{
    if (r->count + r->nans == 0) return;
    cli_table_cell(table, "%d", layer);
    cli_table_cell(table, "%s", what);
    cli_table_cell(table, "%.4g", r->min);
    cli_table_cell(table, "%.4g", r->max);
    cli_table_cell(table, "%lld", (long long)r->zeros);
    cli_table_cell(table, "%lld", (long long)r->nans);
}

static int check_layer(const struct cli_model *model, int index, struct layers *out,
                       struct cli_table *deep)
{
    cmoe_layer layer;
    int code = CLI_OK;
    const cmoe_status status = cmoe_layer_open(model->checkpoint, &model->config, index, &layer);
    out->checked++;
    if (status != CMOE_OK) {
        if (out->failures < EXAMPLES)
            snprintf(out->missing[out->failures], sizeof out->missing[0], "%s", cmoe_last_error());
        out->failures++;
        return status == CMOE_ERR_NO_MEMORY ? cli_fail_status(status, NULL) : CLI_OK;
    }
    out->complete++;
    out->expert_bytes = cli_model_expert_bytes(&layer.problem);
    out->converted = (double)layer.owned_bytes > out->expert_bytes;
    cmoe_problem_print(&layer.problem, out->problem, sizeof out->problem);
    if (deep != NULL) {
        struct cli_range scales = {0}, weights = {0};
        code = measure(&layer, &scales, &weights);
        table_row(deep, index, "scales", &scales);
        table_row(deep, index, "weights", &weights);
    }
    cmoe_layer_free(&layer);
    return code;
}

static int check_layers(const struct cli_model *model, bool all, struct layers *out,
                        struct cli_table *deep)
{
    *out = (struct layers){.checked = 0};
    struct cli_progress progress = {.what = "inspect: layer", .start = cli_now()};
    for (int l = 0; l < model->config.layers; l++) {
        if (!cli_model_has_experts(&model->config, l)) continue;
        if (out->converted && !all) break;
        cli_progress_show(&progress, l, model->config.layers);
        const int code = check_layer(model, l, out, deep);
        if (code != CLI_OK) return code;
    }
    cli_progress_end(&progress);
    return CLI_OK;
}

/* ---- output ---- */

static void print_size(const char *what, double bytes, const char *note)
{
    if (bytes >= 10485760.0)
        printf("%-13s %.1f MiB%s\n", what, bytes / 1048576.0, note);
    else
        printf("%-13s %.0f bytes%s\n", what, bytes, note);
}

static void print_text(const struct cli_model *model, const struct tensors *t,
                       const struct layers *layers, const struct cli_table *deep)
{
    const cmoe_model_config *c = &model->config;
    printf("%-13s %s\n", "family", c->model_type);
    printf("%-13s %s\n", "quantization", c->quantization[0] != '\0' ? c->quantization : "none");
    printf("%-13s %d, %d with experts, from layer %d on\n", "layers", c->layers,
           cli_model_moe_layers(c), c->dense_layers);
    printf("%-13s %s\n", "problem",
           layers->complete > 0 ? layers->problem : "no layer is complete");
    printf("%-13s %lld in %lld files\n", "tensors", (long long)t->count, (long long)t->files);
    print_size("bytes", t->bytes, "");
    print_size("experts", t->expert_bytes, "");
    if (t->shared_bytes > 0)
        print_size("shared", t->shared_bytes, ", not part of the routed layer");
    if (layers->complete > 0)
        print_size("an expert", layers->expert_bytes,
                   layers->converted ? ", converted when opened" : ", read in place");
    printf("%-13s %d of %d checked%s\n", "complete", layers->complete, layers->checked,
           layers->checked < cli_model_moe_layers(c) ? " (--deep checks all)" : "");
    for (int i = 0; i < layers->failures && i < EXAMPLES; i++)
        printf("%-13s %s\n", "missing", layers->missing[i]);
    if (t->unknown > 0) printf("%-13s %lld\n", "unknown", (long long)t->unknown);
    for (int64_t i = 0; i < t->unknown && i < EXAMPLES; i++)
        printf("%-13s %s\n", "", t->examples[i]);
    if (deep != NULL) cli_table_print(deep, false);
}

static void print_json(const struct cli_model *model, const struct tensors *t,
                       const struct layers *layers)
{
    const cmoe_model_config *c = &model->config;
    struct cli_json json = {.out = stdout};
    cli_json_open(&json, NULL, '{');
    cli_json_string(&json, "family", c->model_type);
    cli_json_string(&json, "quantization", c->quantization);
    cli_json_int(&json, "layers", c->layers);
    cli_json_int(&json, "moe_layers", cli_model_moe_layers(c));
    cli_json_string(&json, "problem", layers->complete > 0 ? layers->problem : NULL);
    cli_json_int(&json, "tensors", t->count);
    cli_json_int(&json, "files", t->files);
    cli_json_double(&json, "bytes", t->bytes);
    cli_json_double(&json, "routed_bytes", t->expert_bytes);
    cli_json_double(&json, "shared_bytes", t->shared_bytes);
    cli_json_double(&json, "expert_bytes", layers->expert_bytes);
    cli_json_bool(&json, "mapped", !layers->converted);
    cli_json_int(&json, "checked", layers->checked);
    cli_json_int(&json, "complete", layers->complete);
    cli_json_open(&json, "missing", '[');
    for (int i = 0; i < layers->failures && i < EXAMPLES; i++)
        cli_json_string(&json, NULL, layers->missing[i]);
    cli_json_close(&json, ']');
    cli_json_int(&json, "unknown", t->unknown);
    cli_json_close(&json, '}');
    cli_json_end(&json);
}

static void print_bare(const struct tensors *t)
{
    printf("%-13s %lld in %lld files\n", "tensors", (long long)t->count, (long long)t->files);
    print_size("bytes", t->bytes, "");
    printf("%-13s none next to the file: family and geometry are not known\n", "config.json");
}

static int inspect(const struct cli_args *args, const struct cli_model *model)
{
    struct tensors t;
    struct layers layers;
    const bool deep = cli_args_given(args, "deep");
    struct cli_table table = {.columns = 6, .numeric = {true, false, true, true, true, true}};
    static const char *const headings[] = {"layer", "of", "min", "max", "zeros", "nan"};
    count_tensors(model->checkpoint, &t);
    if (!model->has_config) {
        print_bare(&t);
        return CLI_OK;
    }
    for (int i = 0; i < table.columns; i++)
        cli_table_cell(&table, "%s", headings[i]);
    int code = check_layers(model, deep, &layers, deep ? &table : NULL);
    if (code == CLI_OK && cli_args_given(args, "json"))
        print_json(model, &t, &layers);
    else if (code == CLI_OK)
        print_text(model, &t, &layers, deep ? &table : NULL);
    cli_table_free(&table);
    if (code == CLI_OK && layers.failures > 0)
        code = cli_fail(CLI_BAD_DATA, "%d of %d layers cannot be read: %s", layers.failures,
                        layers.checked, layers.missing[0]);
    return code;
}

static int run(const struct cli_args *args)
{
    struct cli_model model;
    int code = cli_model_open(args->positional, &model);
    if (code != CLI_OK) return code;
    code = inspect(args, &model);
    cli_model_close(&model);
    return code;
}

static const struct cli_option options[] = {
    {"deep", NULL, "read all weights: statistics of scales and decoded weights a layer"},
    {"json", NULL, "print one JSON object"},
    {NULL, NULL, NULL},
};

const struct cli_command cli_inspect = {
    .name = "inspect",
    .summary = "Say what a checkpoint is and whether its layers are complete",
    .positional = "DIR|FILE",
    .options = options,
    .run = run,
};
