/* SPDX-License-Identifier: MIT
 * Numbers in text, read and written the same under every locale. */
#ifndef CMOE_CORE_LOCALE_H
#define CMOE_CORE_LOCALE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* text[0..length) as a decimal integer, optional minus; false when it is not one or too large. */
bool cmoe__parse_int32(const char *text, size_t length, int32_t *out);
/* The whole of `text` as a finite number. */
bool cmoe__parse_float(const char *text, float *out);
/* Shortest of at most 9 digits that reads back as the same number; 0 and -0 are told apart. */
void cmoe__print_float(float value, char *buf, size_t len);

#endif
