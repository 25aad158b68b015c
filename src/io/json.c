/* SPDX-License-Identifier: MIT
 * One pass over the brackets outside strings bounds what jansson will build; then jansson parses. */
#include "json.h"

#include "fail.h"

enum { FREE_CONTAINERS = 1024, BYTES_A_CONTAINER = 16 };

/* Position after the string that begins at text[i] == '"', or size if it does not end. */
static size_t skip_string(const char *text, size_t size, size_t i)
{
    for (i++; i < size && text[i] != '"'; i++) {
        if (text[i] == '\\') i++;
    }
    return i < size ? i + 1 : size;
}

static cmoe_status check_brackets(const char *text, size_t size, int depth, const char *what,
                                  size_t offset)
{
    const size_t limit = FREE_CONTAINERS + size / BYTES_A_CONTAINER;
    size_t containers = 0;
    int level = 0;
    for (size_t i = 0; i < size;) {
        if (text[i] == '"') {
            i = skip_string(text, size, i);
            continue;
        }
        if (text[i] == '{' || text[i] == '[') {
            if (++level > depth) {
                return CMOE_FAIL(CMOE_ERR_CORRUPT, "%s: nested deeper than %d at byte %zu", what,
                                 depth, offset + i);
            }
            if (++containers > limit) {
                return CMOE_FAIL(CMOE_ERR_CORRUPT,
                                 "%s: more than %zu objects and arrays in %zu bytes", what, limit,
                                 size);
            }
        } else if (text[i] == '}' || text[i] == ']') {
            level--;
        }
        i++;
    }
    return CMOE_OK;
}

cmoe_status cmoe__json_parse(const char *text, size_t size, int depth, const char *what,
                             size_t offset, json_t **out)
{
    json_error_t error = {0};
    CMOE_TRY(cmoe__check_not_pointer(text, size, what));
    CMOE_TRY(check_brackets(text, size, depth, what, offset));
    json_t *const root = json_loadb(text, size, JSON_REJECT_DUPLICATES, &error);
    /* Some of jansson's allocations fail without a word. */
    if (!root && (error.text[0] == '\0' || json_error_code(&error) == json_error_out_of_memory)) {
        return cmoe__fail_memory(size, what);
    }
    if (!root) {
        return CMOE_FAIL(CMOE_ERR_CORRUPT, "%s: %s at byte %zu", what, cmoe__quote(error.text).text,
                         offset + (size_t)error.position);
    }
    if (!json_is_object(root)) {
        json_decref(root);
        return CMOE_FAIL(CMOE_ERR_CORRUPT, "%s: not a JSON object", what);
    }
    *out = root;
    return CMOE_OK;
}
