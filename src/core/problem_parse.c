/* SPDX-License-Identifier: MIT
 * Problem strings to problems.
 *
 * Words are separated by blanks or commas. Only scheme=NAME:option,option keeps its commas: a
 * comma there is followed by another option unless a '=' comes before the next separator. */
#include "core/fail.h"
#include "core/keys.h"
#include "core/locale.h"

#include <stdio.h>
#include <string.h>

/* Longest word that can mean anything; longer ones are refused. */
enum { WORD_BYTES = 128 };

/* A list of names for a message, "a, b or c". */
static void join(const char *const *names, char *buf, size_t size)
{
    size_t used = 0;
    buf[0] = '\0';
    for (int i = 0; names[i] && used < size; i++) {
        const char *const before = i == 0 ? "" : names[i + 1] ? ", " : " or ";
        const int n = snprintf(buf + used, size - used, "%s%s", before, names[i]);
        used += n > 0 ? (size_t)n : 0;
    }
}

static cmoe_status parse_name(uint8_t *out, const struct cmoe_key *key, const char *value)
{
    const int i = cmoe__name_find(key->names, value, strlen(value));
    if (i < 0) {
        char choices[256];
        join(key->names, choices, sizeof choices);
        return CMOE_FAIL(CMOE_ERR_INVALID, "\"%s\" is no value of %s; it is one of %s.", value,
                         key->name, choices);
    }
    *out = (uint8_t)i;
    return CMOE_OK;
}

static cmoe_status parse_groups(cmoe_problem *p, const char *value)
{
    const char *const slash = strchr(value, '/');
    const size_t length = slash ? (size_t)(slash - value) : strlen(value);
    int32_t groups, kept = 0;
    const bool ok = cmoe__parse_int32(value, length, &groups) &&
                    (slash ? cmoe__parse_int32(slash + 1, strlen(slash + 1), &kept) : groups == 0);
    if (!ok) {
        return CMOE_FAIL(CMOE_ERR_INVALID,
                         "\"groups=%s\" is not understood; write groups=GROUPS/KEPT, as in "
                         "groups=8/4, or groups=0.",
                         value);
    }
    p->groups = groups;
    p->groups_kept = kept;
    return CMOE_OK;
}

static cmoe_status parse_stages(cmoe_problem *p, const char *value)
{
    const char *const dots = strstr(value, "..");
    const size_t length = dots ? (size_t)(dots - value) : strlen(value);
    const int first = cmoe__name_find(cmoe__stage_names, value, length);
    const int last = dots ? cmoe__name_find(cmoe__stage_names, dots + 2, strlen(dots + 2)) : first;
    if (first < 0 || last < 0) {
        char choices[128];
        join(cmoe__stage_names, choices, sizeof choices);
        return CMOE_FAIL(CMOE_ERR_INVALID,
                         "\"stages=%s\" is not understood; write stages=FIRST..LAST with stages "
                         "out of %s.",
                         value, choices);
    }
    p->first = (uint8_t)first;
    p->last = (uint8_t)last;
    return CMOE_OK;
}

static cmoe_status parse_value(cmoe_problem *p, const struct cmoe_key *key, const char *value)
{
    char *const field = (char *)p + key->offset;
    const size_t length = strlen(value);
    switch (key->kind) {
    case CMOE_KEY_INT: {
        int32_t number;
        if (!cmoe__parse_int32(value, length, &number)) {
            return CMOE_FAIL(CMOE_ERR_INVALID, "\"%s=%s\" is not a 32-bit integer.", key->name,
                             value);
        }
        memcpy(field, &number, sizeof number);
        return CMOE_OK;
    }
    case CMOE_KEY_FLOAT: {
        float number;
        if (!cmoe__parse_float(value, &number)) {
            return CMOE_FAIL(CMOE_ERR_INVALID, "\"%s=%s\" is not a finite number.", key->name,
                             value);
        }
        memcpy(field, &number, sizeof number);
        return CMOE_OK;
    }
    case CMOE_KEY_NAME:
        return parse_name((uint8_t *)field, key, value);
    case CMOE_KEY_FORMAT: {
        cmoe_format format;
        char why[160];
        if (!cmoe__format_parse(&format, value, length, why, sizeof why)) {
            return CMOE_FAIL(CMOE_ERR_INVALID, "\"%s=%s\" is not understood: %s.", key->name, value,
                             why);
        }
        memcpy(field, &format, sizeof format);
        return CMOE_OK;
    }
    case CMOE_KEY_GROUPS:
        return parse_groups(p, value);
    case CMOE_KEY_STAGES:
        return parse_stages(p, value);
    }
    return CMOE_OK;
}

/* "word", "word=1" or "word=0" of a flag; false when the word is no flag. */
static bool parse_flag(cmoe_problem *p, const char *word, const char *value, cmoe_status *status)
{
    for (const struct cmoe_flag_name *f = cmoe__flag_names; f->name; f++) {
        if (strcmp(f->name, word) != 0) continue;
        *status = CMOE_OK;
        if (!value || strcmp(value, "1") == 0) {
            p->flags |= f->flag;
        } else if (strcmp(value, "0") == 0) {
            p->flags &= ~f->flag;
        } else {
            *status = CMOE_FAIL(CMOE_ERR_INVALID,
                                "\"%s=%s\" is not understood; a flag is set by its name or =1 and "
                                "cleared by =0.",
                                word, value);
        }
        return true;
    }
    return false;
}

/* One word, cut at its '='. `value` is NULL without one. */
static cmoe_status parse_word(cmoe_problem *p, const char *word, const char *value)
{
    cmoe_status status;
    if (parse_flag(p, word, value, &status)) return status;
    if (value) {
        if (strcmp(word, "scheme") == 0) return cmoe_problem_scheme(p, value);
        if (strcmp(word, "model") == 0) return cmoe_problem_model(p, value);
        if (strcmp(word, "router") == 0) return cmoe_problem_router(p, value);
    }
    for (const struct cmoe_key *key = cmoe__keys; key->name; key++) {
        if (strcmp(key->name, word) != 0) continue;
        if (value) return parse_value(p, key, value);
        return CMOE_FAIL(CMOE_ERR_INVALID, "The word \"%s\" needs a value: %s=...", word, word);
    }
    return CMOE_FAIL(CMOE_ERR_INVALID, "The word \"%s%s%s\" is not understood: there is no %s %s.",
                     word, value ? "=" : "", value ? value : "", value ? "key" : "flag", word);
}

/* Bytes of the word that starts at `text`. */
static size_t word_length(const char *text)
{
    static const char separators[] = " \t\r\n,";
    size_t n = strcspn(text, separators);
    if (strncmp(text, "scheme=", 7) != 0 || !memchr(text, ':', n)) return n;
    while (text[n] == ',') {
        const size_t more = strcspn(text + n + 1, separators);
        if (more == 0 || memchr(text + n + 1, '=', more)) break;
        n += 1 + more;
    }
    return n;
}

cmoe_status cmoe_problem_parse(cmoe_problem *p, const char *text)
{
    if (!p || !text) {
        return CMOE_FAIL(CMOE_ERR_INVALID, "The argument %s is NULL.", p ? "text" : "p");
    }
    cmoe_problem parsed = *p;
    for (;;) {
        text += strspn(text, " \t\r\n,");
        if (!*text) break;
        const size_t n = word_length(text);
        char word[WORD_BYTES];
        if (n >= sizeof word) {
            return CMOE_FAIL(CMOE_ERR_INVALID,
                             "The word \"%.40s...\" is not understood: it has %zu bytes, and none "
                             "has more than %d.",
                             text, n, WORD_BYTES - 1);
        }
        memcpy(word, text, n);
        word[n] = '\0';
        char *value = strchr(word, '=');
        if (value) *value++ = '\0';
        CMOE_TRY(parse_word(&parsed, word, value));
        text += n;
    }
    *p = parsed;
    return CMOE_OK;
}
