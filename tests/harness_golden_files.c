/* SPDX-License-Identifier: MIT
 * Reading tests/golden: manifests, and arrays of four-byte elements. An own reader of .npy, so that
 * these tests need nothing but libcmoe. */
#include "harness_golden.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static FILE *open_file(const char *path)
{
    FILE *const f = fopen(path, "rb");
    if (!f) fail_with("%s cannot be opened", path);
    return f;
}

static bool kind_of(const char *word, enum golden_kind *kind)
{
    static const char *const words[] = {
        [GOLDEN_LAYER] = "layer",       [GOLDEN_ROUTER] = "router",
        [GOLDEN_HF_LAYER] = "hf-layer", [GOLDEN_HF_ROUTER] = "hf-router",
        [GOLDEN_ROWS] = "rows",         [GOLDEN_MATRIX] = "matrix",
    };
    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++) {
        *kind = (enum golden_kind)i;
        if (strcmp(words[i], word) == 0) return true;
    }
    return false;
}

static bool parse_line(const char *line, struct golden_case *c)
{
    char kind[16];
    long long seed, offset, count;
    const int fields = sscanf(line, "%15s %95s %lld %lld %lld %15s | %255[^\n]", kind, c->name,
                              &seed, &offset, &count, c->inputs, c->problem);
    c->seed = (uint64_t)seed;
    c->offset = offset;
    c->count = count;
    return fields == 7 && kind_of(kind, &c->kind);
}

void golden_read(const char *path, struct golden_list *out)
{
    FILE *const f = open_file(path);
    char line[512];
    while (fgets(line, sizeof line, f)) {
        if (line[0] == '#') continue;
        struct golden_case c;
        if (!parse_line(line, &c)) fail_with("%s: not a golden case: %s", path, line);
        if (out->n % 256 == 0) {
            out->cases = realloc(out->cases, ((size_t)out->n + 256) * sizeof c);
            assert_non_null(out->cases);
        }
        out->cases[out->n++] = c;
    }
    fclose(f);
}

void golden_free(struct golden_list *list)
{
    free(list->cases);
    *list = (struct golden_list){0};
}

void *golden_array(const char *path, int64_t *count)
{
    FILE *const f = open_file(path);
    uint8_t head[10];
    assert_int_equal(fread(head, 1, sizeof head, f), sizeof head);
    assert_memory_equal(head, "\x93NUMPY\x01\x00", 8);
    const long data = (long)sizeof head + head[8] + 256L * head[9];
    assert_int_equal(fseek(f, 0, SEEK_END), 0);
    const long bytes = ftell(f) - data;
    assert_true(bytes > 0 && bytes % 4 == 0);
    assert_int_equal(fseek(f, data, SEEK_SET), 0);
    void *const out = malloc((size_t)bytes);
    assert_non_null(out);
    assert_int_equal(fread(out, 1, (size_t)bytes, f), (size_t)bytes);
    fclose(f);
    *count = bytes / 4;
    return out;
}
