/* SPDX-License-Identifier: MIT
 * Numbers in text under the "C" locale, whatever the process has chosen: the thread takes that
 * locale for one call and puts its own back. */
#include "core/locale.h"

#include <locale.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

bool cmoe__parse_int32(const char *text, size_t length, int32_t *out)
{
    const bool negative = length > 0 && text[0] == '-';
    int64_t value = 0;
    if (length == (size_t)negative) return false;
    for (size_t i = negative; i < length; i++) {
        if (text[i] < '0' || text[i] > '9') return false;
        value = value * 10 + (text[i] - '0');
        if (value > (int64_t)INT32_MAX + negative) return false;
    }
    *out = (int32_t)(negative ? -value : value);
    return true;
}

bool cmoe__parse_float(const char *text, float *out)
{
    /* strtof would also take blanks, "inf" and hexadecimal. */
    for (const char *c = text; *c; c++) {
        const bool digit = *c >= '0' && *c <= '9';
        if (!digit && *c != '+' && *c != '-' && *c != '.' && *c != 'e' && *c != 'E') return false;
    }
    const locale_t plain = newlocale(LC_ALL_MASK, "C", (locale_t)0);
    const locale_t own = uselocale(plain);
    char *end;
    *out = strtof(text, &end);
    uselocale(own);
    if (plain) freelocale(plain);
    return end != text && !*end && isfinite(*out);
}

void cmoe__print_float(float value, char *buf, size_t len)
{
    const locale_t plain = newlocale(LC_ALL_MASK, "C", (locale_t)0);
    const locale_t own = uselocale(plain);
    for (int digits = 1; digits <= 9; digits++) {
        snprintf(buf, len, "%.*g", digits, (double)value);
        if (strtof(buf, NULL) == value) break;
    }
    uselocale(own);
    if (plain) freelocale(plain);
}
