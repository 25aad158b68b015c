/* SPDX-License-Identifier: MIT
 * Formats: which combinations exist, what shares a scale, how many bytes there are. */
#include "core/format.h"
#include "core/fail.h"
#include "core/size.h"
#include <cmoe/convert.h>

/* What an element type can be, as bits. */
enum { ELEMENT = 1, SCALED = 2, ACTIVATION = 4, MX = 8, NV = 16, ZERO = 32, INTEGER = 64 };

static const uint8_t abilities[CMOE_DTYPE_COUNT] = {
    [CMOE_F32] = ELEMENT | ACTIVATION,
    [CMOE_F16] = ELEMENT | ACTIVATION,
    [CMOE_BF16] = ELEMENT | ACTIVATION,
    [CMOE_E4M3] = ELEMENT | ACTIVATION | SCALED | MX,
    [CMOE_E4M3FNUZ] = ELEMENT | ACTIVATION | SCALED | MX,
    [CMOE_E5M2] = ELEMENT | ACTIVATION | SCALED | MX,
    [CMOE_I8] = ELEMENT | ACTIVATION | SCALED | INTEGER,
    [CMOE_U8] = ELEMENT | SCALED | ZERO | INTEGER,
    [CMOE_I4] = ELEMENT | ACTIVATION | SCALED | INTEGER,
    [CMOE_U4] = ELEMENT | SCALED | ZERO | INTEGER,
    [CMOE_E2M1] = ELEMENT | ACTIVATION | SCALED | MX | NV,
};

static const char *const scaling_names[CMOE_SCALING_COUNT] = {
#define SCALING(name, text) [CMOE_SCALE_##name] = text,
#include <cmoe/types.def>
#undef SCALING
};

/* What the element type must be able to do under a scaling; 0: not for this kind of tensor. */
static int needed(cmoe_scaling scaling, bool weight)
{
    switch (scaling) {
    case CMOE_SCALE_NONE:
        return ELEMENT;
    case CMOE_SCALE_TENSOR:
    case CMOE_SCALE_GROUP:
        return SCALED;
    case CMOE_SCALE_TOKEN:
    case CMOE_SCALE_SMOOTH:
        return weight ? 0 : SCALED;
    case CMOE_SCALE_CHANNEL:
    case CMOE_SCALE_BLOCK:
        return weight ? SCALED : 0;
    case CMOE_SCALE_MX:
        return MX;
    case CMOE_SCALE_NV:
        return NV;
    case CMOE_SCALING_COUNT:
        break;
    }
    return 0;
}

static cmoe_status check_scale_dtype(cmoe_format f, bool weight)
{
    const bool small = f.scale_dtype == CMOE_BF16 || f.scale_dtype == CMOE_F16;
    if (f.scale_dtype == CMOE_NONE || (small && weight && f.scaling == CMOE_SCALE_GROUP))
        return CMOE_OK;
    const cmoe_format plain = {.dtype = f.dtype, .scaling = f.scaling};
    if (f.scale_dtype == cmoe__format_scale_dtype(plain)) return CMOE_OK;
    return CMOE_FAIL(CMOE_ERR_INVALID, "scaling %s has no scales of type %s",
                     scaling_names[f.scaling], cmoe_dtype_name((cmoe_dtype)f.scale_dtype));
}

static cmoe_status check_rounding(cmoe_format f)
{
    if (f.rounding >= CMOE_ROUNDING_COUNT)
        return CMOE_FAIL(CMOE_ERR_INVALID, "rounding %d is none of the %d there are", f.rounding,
                         CMOE_ROUNDING_COUNT);
    if (f.mx_rounding >= CMOE_MX_ROUNDING_COUNT)
        return CMOE_FAIL(CMOE_ERR_INVALID, "mx_rounding %d is none of the %d there are",
                         f.mx_rounding, CMOE_MX_ROUNDING_COUNT);
    if (f.rounding == CMOE_ROUND_NEAREST_EVEN || (abilities[f.dtype] & INTEGER) ||
        (f.rounding == CMOE_ROUND_HALF_AWAY && f.dtype == CMOE_E2M1))
        return CMOE_OK;
    return CMOE_FAIL(CMOE_ERR_INVALID, "%s codes are rounded to nearest even only",
                     cmoe_dtype_name((cmoe_dtype)f.dtype));
}

cmoe_status cmoe__format_check(cmoe_format f, bool weight)
{
    const char *const what = weight ? "weights" : "activations";
    if (f.dtype >= CMOE_DTYPE_COUNT || !(abilities[f.dtype] & ELEMENT))
        return CMOE_FAIL(CMOE_ERR_INVALID, "dtype %s is not an element type of %s",
                         cmoe_dtype_name((cmoe_dtype)f.dtype), what);
    const char *const name = cmoe_dtype_name((cmoe_dtype)f.dtype);
    if (!weight && !(abilities[f.dtype] & ACTIVATION))
        return CMOE_FAIL(CMOE_ERR_INVALID, "dtype %s is for weights only", name);
    if (f.scaling >= CMOE_SCALING_COUNT)
        return CMOE_FAIL(CMOE_ERR_INVALID, "scaling %d is none of the %d there are", f.scaling,
                         CMOE_SCALING_COUNT);
    const int need = needed((cmoe_scaling)f.scaling, weight);
    if (need == 0)
        return CMOE_FAIL(CMOE_ERR_INVALID, "scaling %s is not for %s", scaling_names[f.scaling],
                         what);
    if (!(abilities[f.dtype] & need))
        return CMOE_FAIL(CMOE_ERR_INVALID, "dtype %s has no scaling %s", name,
                         scaling_names[f.scaling]);
    const bool group = f.group == 16 || f.group == 32 || f.group == 64 || f.group == 128;
    if (f.scaling == CMOE_SCALE_GROUP ? !group : f.group != 0)
        return CMOE_FAIL(CMOE_ERR_INVALID,
                         "group is %d under scaling %s: g takes 16, 32, 64 or 128, the others 0",
                         f.group, scaling_names[f.scaling]);
    const bool zeros = f.scaling == CMOE_SCALE_GROUP || f.scaling == CMOE_SCALE_CHANNEL;
    if (f.zero && !(weight && zeros && (abilities[f.dtype] & ZERO)))
        return CMOE_FAIL(CMOE_ERR_INVALID,
                         "zero points need weights of type u4 or u8 scaled by group or channel, "
                         "not %s of type %s scaled by %s",
                         what, name, scaling_names[f.scaling]);
    if (f.fixed && (weight || (f.scaling != CMOE_SCALE_TENSOR && f.scaling != CMOE_SCALE_NV)))
        return CMOE_FAIL(CMOE_ERR_INVALID,
                         "a static scale needs activations scaled by tensor or nv16, not %s "
                         "scaled by %s",
                         what, scaling_names[f.scaling]);
    CMOE_TRY(check_scale_dtype(f, weight));
    return check_rounding(f);
}

int64_t cmoe__format_span(cmoe_format f, int64_t cols)
{
    switch ((cmoe_scaling)f.scaling) {
    case CMOE_SCALE_BLOCK:
        return 128;
    case CMOE_SCALE_GROUP:
        return f.group;
    case CMOE_SCALE_MX:
        return 32;
    case CMOE_SCALE_NV:
        return 16;
    case CMOE_SCALE_NONE:
    case CMOE_SCALE_TENSOR:
    case CMOE_SCALE_TOKEN:
    case CMOE_SCALE_SMOOTH:
    case CMOE_SCALE_CHANNEL:
    case CMOE_SCALING_COUNT:
        break;
    }
    return cols;
}

cmoe_dtype cmoe__format_scale_dtype(cmoe_format f)
{
    if (f.scaling == CMOE_SCALE_NONE) return CMOE_NONE;
    if (f.scaling == CMOE_SCALE_MX) return CMOE_E8M0;
    if (f.scaling == CMOE_SCALE_NV) return CMOE_E4M3;
    return f.scale_dtype == CMOE_NONE ? CMOE_F32 : (cmoe_dtype)f.scale_dtype;
}

int64_t cmoe__format_row_scales(cmoe_format f, int64_t cols)
{
    if (f.scaling == CMOE_SCALE_NONE || cols <= 0) return 0;
    return cmoe__ceil_div(cols, cmoe__format_span(f, cols));
}

int cmoe__format_zero_point(cmoe_dtype dtype)
{
    return dtype == CMOE_U4 ? 8 : dtype == CMOE_U8 ? 128 : 0;
}

cmoe_status cmoe_format_bytes(cmoe_format f, int64_t rows, int64_t cols, size_t *codes,
                              size_t *scales, size_t *zeros)
{
    const bool activation =
        f.scaling == CMOE_SCALE_TOKEN || f.scaling == CMOE_SCALE_SMOOTH || f.fixed;
    CMOE_TRY(cmoe__format_check(f, !activation));
    if (rows < 0 || cols < 0)
        return CMOE_FAIL(CMOE_ERR_INVALID, "a matrix of %lld x %lld elements has a negative size",
                         (long long)rows, (long long)cols);
    const size_t row_codes = cmoe_dtype_bytes((cmoe_dtype)f.dtype, cols);
    const size_t row_scales = (size_t)cmoe__format_row_scales(f, cols);
    const size_t scale_bytes = cmoe_dtype_bytes(cmoe__format_scale_dtype(f), 1);
    size_t scale_rows = (size_t)rows;
    if (f.scaling == CMOE_SCALE_TENSOR)
        scale_rows = 1;
    else if (f.scaling == CMOE_SCALE_BLOCK)
        scale_rows = (size_t)(rows / 128 + (rows % 128 != 0));
    size_t n_codes, n_scales, n_zeros = 0;
    if (row_codes == SIZE_MAX || !cmoe__mul_size(row_codes, (size_t)rows, &n_codes) ||
        !cmoe__mul_size(scale_rows, row_scales, &n_scales) ||
        !cmoe__mul_size(n_scales, scale_bytes, &n_scales) ||
        (f.zero && !cmoe__mul_size((size_t)rows, row_scales, &n_zeros)))
        return CMOE_FAIL(CMOE_ERR_OVERFLOW,
                         "a matrix of %lld x %lld elements of type %s does not fit",
                         (long long)rows, (long long)cols, cmoe_dtype_name((cmoe_dtype)f.dtype));
    if (codes) *codes = n_codes;
    if (scales) *scales = n_scales;
    if (zeros) *zeros = n_zeros;
    return CMOE_OK;
}
