/* SPDX-License-Identifier: MIT
 * The report of cmoe accuracy as one page: SVG drawn here, no scripts, fonts or files beside it. */
#include "cli/accuracy.h"

#include <math.h>

enum { WIDTH = 860, BAR = 22, LEFT = 200, CELL = 14, BINS = 24, HEIGHT = 160 };

static void escape(const char *text, FILE *out)
{
    for (; *text != '\0'; text++) {
        if (*text == '<')
            fputs("&lt;", out);
        else if (*text == '&')
            fputs("&amp;", out);
        else
            fputc(*text, out);
    }
}

static double limited(double sqnr)
{
    return isfinite(sqnr) ? fmax(0, fmin(sqnr, 80)) : 80;
}

/* Output error of all layers by scheme: a bar of its SQNR. */
static void bars(const struct cli_accuracy *a, FILE *out)
{
    fprintf(out, "<h2>Output SQNR by scheme</h2><svg width='%d' height='%d'>", WIDTH,
            a->schemes * BAR + 4);
    for (int s = 0; s < a->schemes; s++) {
        struct cli_score sum = {0};
        for (int l = 0; l < a->layers; l++)
            cli_score_merge(&sum, &a->outputs[s * a->layers + l]);
        const double sqnr = cli_score_sqnr(&sum);
        const int y = s * BAR;
        fprintf(out, "<text x='0' y='%d'>", y + 15);
        escape(a->names[s], out);
        fprintf(out,
                "</text><rect x='%d' y='%d' width='%.1f' height='%d' fill='#47a'><title>%.2f dB"
                "</title></rect><text x='%.1f' y='%d'>%.1f dB</text>",
                LEFT, y + 3, limited(sqnr) * 7, BAR - 6, sqnr, LEFT + limited(sqnr) * 7 + 6, y + 15,
                sqnr);
    }
    fputs("</svg>\n", out);
}

/* Layers by experts: dark is a low SQNR within the scheme's own range. */
static void heat(const struct cli_accuracy *a, int s, FILE *out)
{
    const struct cli_score *cells = a->weights + (int64_t)s * a->layers * a->experts;
    const int64_t n = (int64_t)a->layers * a->experts;
    double low = 80, high = 0;
    for (int64_t i = 0; i < n; i++) {
        low = fmin(low, limited(cli_score_sqnr(&cells[i])));
        high = fmax(high, limited(cli_score_sqnr(&cells[i])));
    }
    fputs("<h3>", out);
    escape(a->names[s], out);
    fprintf(out, ": %.1f to %.1f dB</h3><svg width='%d' height='%d'>", low, high,
            a->experts * CELL + 40, a->layers * CELL);
    for (int64_t i = 0; i < n; i++) {
        const double sqnr = limited(cli_score_sqnr(&cells[i]));
        const double share = high > low ? (sqnr - low) / (high - low) : 1;
        const int layer = (int)(i / a->experts), expert = (int)(i % a->experts);
        if (expert == 0)
            fprintf(out, "<text x='0' y='%d'>%d</text>", layer * CELL + 11, a->index[layer]);
        fprintf(out,
                "<rect x='%d' y='%d' width='%d' height='%d' fill='hsl(210,60%%,%.0f%%)'><title>"
                "layer %d expert %d: %.2f dB</title></rect>",
                40 + expert * CELL, layer * CELL, CELL - 1, CELL - 1, 20 + 70 * share,
                a->index[layer], expert, sqnr);
    }
    fputs("</svg>\n", out);
}

/* How many experts got how many slots. */
static void histogram(const struct cli_accuracy *a, FILE *out)
{
    const int64_t n = (int64_t)a->layers * a->experts;
    int64_t most = 1, counts[BINS] = {0}, tallest = 1;
    for (int64_t i = 0; i < n; i++)
        if (a->load[i] > most) most = a->load[i];
    for (int64_t i = 0; i < n; i++) {
        int64_t *const bin = &counts[a->load[i] * (BINS - 1) / most];
        if (++*bin > tallest) tallest = *bin;
    }
    fprintf(out, "<h2>Load: experts by slots of %lld tokens</h2><svg width='%d' height='%d'>",
            (long long)a->tokens, WIDTH, HEIGHT + 20);
    for (int b = 0; b < BINS; b++) {
        const double height = (double)counts[b] * HEIGHT / (double)tallest;
        fprintf(out,
                "<rect x='%d' y='%.1f' width='24' height='%.1f' fill='#7a4'><title>from %lld "
                "slots: %lld experts</title></rect>",
                b * 28, HEIGHT - height, height, (long long)(b * most / (BINS - 1)),
                (long long)counts[b]);
    }
    fprintf(out, "<text x='0' y='%d'>0</text><text x='%d' y='%d'>%lld</text></svg>\n", HEIGHT + 15,
            (BINS - 1) * 28, HEIGHT + 15, (long long)most);
}

static void table(const struct cli_accuracy *a, FILE *out)
{
    fputs("<h2>By layer</h2><table><tr><th>scheme<th>layer<th>weights dB<th>largest error<th>cosine"
          "<th>output dB<th>largest error<th>cosine</tr>\n",
          out);
    for (int s = 0; s < a->schemes; s++) {
        for (int l = 0; l < a->layers; l++) {
            const struct cli_score w = cli_accuracy_layer(a, s, l);
            const struct cli_score *y = &a->outputs[s * a->layers + l];
            fputs("<tr><td>", out);
            escape(a->names[s], out);
            fprintf(out, "<td>%d<td>%.2f<td>%.3g<td>%.6f<td>%.2f<td>%.3g<td>%.6f</tr>\n",
                    a->index[l], cli_score_sqnr(&w), w.largest, cli_score_cosine(&w),
                    cli_score_sqnr(y), y->largest, cli_score_cosine(y));
        }
    }
    fputs("</table>\n", out);
}

void cli_accuracy_html(const struct cli_accuracy *a, const char *title, FILE *out)
{
    fputs("<!DOCTYPE html><html lang='en'><meta charset='utf-8'><title>cmoe accuracy</title>"
          "<style>body{font:14px sans-serif;margin:2em;max-width:60em}text{font:12px sans-serif}"
          "td,th{padding:2px 10px;text-align:right}</style>\n<h1>",
          out);
    escape(title, out);
    fputs("</h1>\n", out);
    bars(a, out);
    fputs("<h2>Weight SQNR: layers by experts</h2>\n", out);
    for (int s = 0; s < a->schemes; s++)
        heat(a, s, out);
    histogram(a, out);
    table(a, out);
    fputs("</html>\n", out);
}
