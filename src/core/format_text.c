/* SPDX-License-Identifier: MIT
 * The spelling of formats: dtype[/scaling[:suffix]...], as in "bf16", "e4m3/g128", "u4/g64:zp:bf16"
 * or "e2m1/mx32:even". */
#include "core/keys.h"

#include <stdio.h>
#include <string.h>

/* A type that scales are in when the format does not say: naming it changes nothing. */
static cmoe_dtype default_scale(uint8_t scaling)
{
    if (scaling == CMOE_SCALE_MX) return CMOE_E8M0;
    if (scaling == CMOE_SCALE_NV) return CMOE_E4M3;
    return CMOE_F32;
}

static bool is(const char *text, size_t length, const char *word)
{
    return strlen(word) == length && memcmp(text, word, length) == 0;
}

static bool parse_scaling(cmoe_format *f, const char *text, size_t length)
{
    static const uint16_t groups[] = {16, 32, 64, 128};
    for (size_t i = 0; i < sizeof groups / sizeof groups[0]; i++) {
        char name[8];
        snprintf(name, sizeof name, "%s%d", cmoe__scaling_names[CMOE_SCALE_GROUP], groups[i]);
        if (!is(text, length, name)) continue;
        f->scaling = CMOE_SCALE_GROUP;
        f->group = groups[i];
        return true;
    }
    const int scaling = cmoe__name_find(cmoe__scaling_names, text, length);
    if (scaling < 0 || scaling == CMOE_SCALE_GROUP) return false;
    f->scaling = (uint8_t)scaling;
    return true;
}

static bool parse_suffix(cmoe_format *f, const char *text, size_t length)
{
    if (is(text, length, "zp")) {
        f->zero = 1;
        return true;
    }
    if (is(text, length, "static")) {
        f->fixed = 1;
        return true;
    }
    const int rounding = cmoe__name_find(cmoe__rounding_names, text, length);
    const int mx_rounding = cmoe__name_find(cmoe__mx_rounding_names, text, length);
    const int scale = cmoe__name_find(cmoe__dtype_names, text, length);
    if (rounding >= 0) {
        f->rounding = (uint8_t)rounding;
    } else if (mx_rounding >= 0) {
        f->mx_rounding = (uint8_t)mx_rounding;
    } else if (scale >= 0) {
        f->scale_dtype = (uint8_t)(scale == (int)default_scale(f->scaling) ? CMOE_NONE : scale);
    } else {
        return false;
    }
    return true;
}

bool cmoe__format_parse(cmoe_format *out, const char *text, size_t length, char *why,
                        size_t why_size)
{
    cmoe_format f = {0};
    const char *const end = text + length;
    const char *const slash = memchr(text, '/', length);
    const size_t dtype_length = slash ? (size_t)(slash - text) : length;
    const int dtype = cmoe__name_find(cmoe__dtype_names, text, dtype_length);
    if (dtype < 0) {
        snprintf(why, why_size, "there is no element type \"%.*s\"", (int)dtype_length, text);
        return false;
    }
    f.dtype = (uint8_t)dtype;
    const char *part = slash ? slash + 1 : end;
    for (bool scaling = true; slash && part <= end; scaling = false) {
        const char *const colon = memchr(part, ':', (size_t)(end - part));
        const size_t n = (size_t)((colon ? colon : end) - part);
        if (scaling && !parse_scaling(&f, part, n)) {
            snprintf(why, why_size,
                     "there is no scaling \"%.*s\"; there are none, tensor, token, smooth, "
                     "channel, b128, g16, g32, g64, g128, mx32 and nv16",
                     (int)(n < 24 ? n : 24), part);
            return false;
        }
        if (!scaling && !parse_suffix(&f, part, n)) {
            snprintf(why, why_size,
                     "there is no suffix \"%.*s\"; there are zp, static, a scale's type, a "
                     "rounding and an mx rounding",
                     (int)(n < 24 ? n : 24), part);
            return false;
        }
        part += n + 1;
    }
    *out = f;
    return true;
}

static const char *name_of(const char *const *names, int value)
{
    for (int i = 0; names[i]; i++) {
        if (i == value) return names[i];
    }
    return "?";
}

int cmoe__format_print(cmoe_format f, char *buf, size_t len)
{
    const bool scale = f.scale_dtype != CMOE_NONE && f.scale_dtype != default_scale(f.scaling);
    const bool suffixes = f.zero || f.fixed || scale || f.rounding || f.mx_rounding;
    char group[8] = "";
    if (f.scaling == CMOE_SCALE_GROUP) snprintf(group, sizeof group, "%d", f.group);
    const bool scaled = f.scaling != CMOE_SCALE_NONE || suffixes;
    return snprintf(buf, len, "%s%s%s%s%s%s%s%s%s%s%s%s", name_of(cmoe__dtype_names, f.dtype),
                    scaled ? "/" : "", scaled ? name_of(cmoe__scaling_names, f.scaling) : "", group,
                    f.zero ? ":zp" : "", f.fixed ? ":static" : "", scale ? ":" : "",
                    scale ? name_of(cmoe__dtype_names, f.scale_dtype) : "", f.rounding ? ":" : "",
                    f.rounding ? name_of(cmoe__rounding_names, f.rounding) : "",
                    f.mx_rounding ? ":" : "",
                    f.mx_rounding ? name_of(cmoe__mx_rounding_names, f.mx_rounding) : "");
}
