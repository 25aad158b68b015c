/* SPDX-License-Identifier: MIT
 * cmoe-lm-demo: continue a text, then say how fast that was and which experts did the work. */
#include "lm.h"

#include <ctype.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static const char usage[] =
    "usage: cmoe-lm-demo [--model DIR] [--prompt TEXT] [--tokens N] [--temp T] [--seed S]\n"
    "                    [--scheme S] [--device cpu|ref|cuda:N]\n"
    "Continues TEXT by N bytes at temperature T (0: the likeliest byte every time), the experts "
    "of\n"
    "the model in DIR being quantised to scheme S. Without --device they run on a GPU if there is "
    "one.\n";

static double seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* The next byte: the likeliest, or one drawn at a temperature. */
static int sample(float *logits, int n, double temperature, uint64_t *random)
{
    int best = 0;
    for (int i = 1; i < n; i++)
        best = logits[i] > logits[best] ? i : best;
    if (temperature <= 0) return best;
    softmax(logits, n, (float)(1 / temperature));
    *random = *random * 6364136223846793005U + 1442695040888963407U;
    double left = (double)(*random >> 11) * 0x1p-53;
    for (int i = 0; i < n; i++)
        if ((left -= (double)logits[i]) < 0) return i;
    return best;
}

static void generate(struct lm_experts *e, const char *prompt, int tokens, double temperature,
                     uint64_t seed)
{
    const int length = (int)strlen(prompt), vocab = e->lm->config.vocab;
    if (tokens > LM_CONTEXT - length)
        ok(cmoe_set_error(CMOE_ERR_INVALID, "Prompt and text may have %d bytes.", LM_CONTEXT));
    struct lm_state s;
    state_open(&s, e->lm);
    lm_forward(e, &s, (const unsigned char *)prompt, length);
    const double start = seconds();
    float *logits = s.logits + (int64_t)(length - 1) * vocab; /* of the last byte */
    fputs(prompt, stdout);
    for (int i = 0; i < tokens; i++, logits = s.logits) {
        const unsigned char byte = (unsigned char)sample(logits, vocab, temperature, &seed);
        putchar(isprint(byte) || byte == '\n' ? byte : '?');
        fflush(stdout);
        lm_forward(e, &s, &byte, 1);
    }
    printf("\n\n%d tokens, %.0f tokens/s, experts on %s%s\n", tokens, tokens / (seconds() - start),
           e->info.name, e->info.host ? "" : " (--device cpu: on the CPU)");
    state_close(&s);
}

/* A column for each expert: how many of the tokens it got, up to 1.5 times the mean. */
static void print_loads(const struct lm_experts *e, int64_t tokens)
{
    const int experts = e->problem.experts, rows = 6;
    for (int i = 0; i < e->lm->config.layers * rows; i++) {
        const int l = i / rows, row = rows - i % rows;
        printf(row == rows ? "\nlayer %d |" : row == 4 ? "   mean |" : "        |", l);
        for (int x = 0; x < experts; x++) {
            const int64_t mean = tokens * e->problem.topk, load = e->layers[l].load[x] * experts;
            fputs(load * 4 >= mean * row ? " ##" : "   ", stdout);
        }
        putchar('\n');
    }
}

static double number(const char *text)
{
    char *end;
    const double value = strtod(text, &end);
    if (end == text || *end || !(value >= 0 && value <= 1e9))
        ok(cmoe_set_error(CMOE_ERR_INVALID, "\"%s\" is not a number from 0 to 1e9.", text));
    return value;
}

int main(int argc, char **argv)
{
    static const struct option options[] = {
        {"model", 1, NULL, 'm'},  {"prompt", 1, NULL, 'p'}, {"tokens", 1, NULL, 'n'},
        {"temp", 1, NULL, 't'},   {"seed", 1, NULL, 'r'},   {"scheme", 1, NULL, 's'},
        {"device", 1, NULL, 'd'}, {"help", 0, NULL, 'h'},   {NULL, 0, NULL, 0},
    };
    const char *value[] = {['m'] = "models/tiny-moe",
                           ['p'] = "And the children of Israel",
                           ['n'] = "200",
                           ['t'] = "0.7",
                           ['r'] = "1",
                           ['s'] = "bf16"};
    for (int c; (c = getopt_long(argc, argv, "", options, NULL)) != -1; value[c] = optarg) {
        if (c != 'h' && c != '?') continue;
        fputs(usage, c == 'h' ? stdout : stderr);
        return c == 'h' ? 0 : 1;
    }
    const int tokens = (int)number(value['n']);
    struct lm lm;
    struct lm_experts experts;
    lm_load(&lm, value['m']);
    experts_open(&experts, &lm, value['s'], value['d']);
    generate(&experts, value['p'], tokens, number(value['t']), (uint64_t)number(value['r']));
    print_loads(&experts, (int64_t)strlen(value['p']) + tokens);
    experts_close(&experts);
    lm_unload(&lm);
    return 0;
}
