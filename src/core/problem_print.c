/* SPDX-License-Identifier: MIT
 * Problems to their canonical line, and the line's hash. */
#include "core/attr.h"
#include "core/keys.h"
#include "core/locale.h"

#include <assert.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

struct writer {
    char *buf;
    size_t size, used; /* used: what a large enough buffer would hold */
};

static void put(struct writer *w, const char *format, ...) CMOE_PRINTF(2, 3);

static void put(struct writer *w, const char *format, ...)
{
    char *const at = w->used < w->size ? w->buf + w->used : NULL;
    va_list args;
    va_start(args, format);
    const int n = vsnprintf(at, at ? w->size - w->used : 0, format, args);
    va_end(args);
    if (n > 0) w->used += (size_t)n;
}

static const char *name_or_number(const char *const *names, int value, char number[8])
{
    for (int i = 0; names[i]; i++) {
        if (i == value) return names[i];
    }
    snprintf(number, 8, "?%d", value);
    return number;
}

static void put_key(struct writer *w, const cmoe_problem *p, const struct cmoe_key *key)
{
    const char *const field = (const char *)p + key->offset;
    char text[64];
    switch (key->kind) {
    case CMOE_KEY_INT: {
        int32_t number;
        memcpy(&number, field, sizeof number);
        snprintf(text, sizeof text, "%d", number);
        break;
    }
    case CMOE_KEY_FLOAT: {
        float number;
        memcpy(&number, field, sizeof number);
        cmoe__print_float(number, text, sizeof text);
        break;
    }
    case CMOE_KEY_NAME: {
        char number[8];
        snprintf(text, sizeof text, "%s",
                 name_or_number(key->names, *(const uint8_t *)field, number));
        break;
    }
    case CMOE_KEY_FORMAT: {
        cmoe_format format;
        memcpy(&format, field, sizeof format);
        cmoe__format_print(format, text, sizeof text);
        break;
    }
    case CMOE_KEY_GROUPS:
        snprintf(text, sizeof text, "%d/%d", p->groups, p->groups_kept);
        break;
    case CMOE_KEY_STAGES: {
        char first[8], last[8];
        snprintf(text, sizeof text, "%s%s%s", name_or_number(cmoe__stage_names, p->first, first),
                 p->first == p->last ? "" : "..",
                 p->first == p->last ? "" : name_or_number(cmoe__stage_names, p->last, last));
        break;
    }
    }
    put(w, "%s%s=%s", w->used ? " " : "", key->name, text);
}

/* By their spelling: a format may say the type of its scales or leave it at the same default. */
static bool same_format(const void *x, const void *y)
{
    cmoe_format a, b;
    char text_a[64], text_b[64];
    memcpy(&a, x, sizeof a);
    memcpy(&b, y, sizeof b);
    cmoe__format_print(a, text_a, sizeof text_a);
    cmoe__format_print(b, text_b, sizeof text_b);
    return strcmp(text_a, text_b) == 0;
}

static bool same(const cmoe_problem *a, const cmoe_problem *b, const struct cmoe_key *key)
{
    const char *const x = (const char *)a + key->offset, *const y = (const char *)b + key->offset;
    switch (key->kind) {
    case CMOE_KEY_INT:
    case CMOE_KEY_FLOAT:
        return memcmp(x, y, 4) == 0;
    case CMOE_KEY_NAME:
        return *x == *y;
    case CMOE_KEY_FORMAT:
        return same_format(x, y);
    case CMOE_KEY_GROUPS:
        return a->groups == b->groups && a->groups_kept == b->groups_kept;
    case CMOE_KEY_STAGES:
        return a->first == b->first && a->last == b->last;
    }
    return false;
}

static void put_line(struct writer *w, const cmoe_problem *p, bool with_tokens)
{
    cmoe_problem defaults;
    cmoe_problem_init(&defaults);
    for (const struct cmoe_key *key = cmoe__keys; key->name; key++) {
        const bool tokens =
            key->kind == CMOE_KEY_INT && key->offset == offsetof(cmoe_problem, max_tokens);
        if (tokens ? !with_tokens : !key->always && same(p, &defaults, key)) continue;
        put_key(w, p, key);
    }
    for (const struct cmoe_flag_name *f = cmoe__flag_names; f->name; f++) {
        if (p->flags & f->flag) put(w, " %s", f->name);
    }
}

int cmoe_problem_print(const cmoe_problem *p, char *buf, size_t len)
{
    struct writer w = {.buf = buf, .size = buf ? len : 0};
    if (w.size > 0) buf[0] = '\0';
    if (!p) return 0;
    put_line(&w, p, true);
    return (int)w.used;
}

uint64_t cmoe_problem_hash(const cmoe_problem *p)
{
    char line[CMOE_PROBLEM_TEXT] = "";
    struct writer w = {.buf = line, .size = sizeof line};
    if (!p) return 0;
    put_line(&w, p, false);
    assert(w.used < sizeof line);
    uint64_t hash = 0xcbf29ce484222325U;
    for (size_t i = 0; i < w.used && i < sizeof line - 1; i++) {
        hash = (hash ^ (unsigned char)line[i]) * 0x100000001b3U;
    }
    return hash;
}
