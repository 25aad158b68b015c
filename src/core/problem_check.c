/* SPDX-License-Identifier: MIT
 * Which problems are refused: the rows of refusals.def in order, and the conditions they share. */
#include "core/problem_check.h"

#include "core/fail.h"
#include "core/keys.h"
#include "core/size.h"

#include <math.h>

enum {
    MAX_EXPERTS = 1 << 20,
    MAX_BLOCK_M = 1024,
    MAX_PACKED_SLOTS = 254, /* 8 bits, and one value past the last slot for padding */
    MAX_PACKED_TOKENS = (1 << 24) - 1,
};

static const uint32_t known_flags = 0
#define FLAG(name, text, bit) | 1U << (bit)
#include <cmoe/types.def>
#undef FLAG
    ;

static const uint32_t router_flags = CMOE_RENORMALIZE | CMOE_TOPK_FIRST | CMOE_ROUTE_BIAS |
                                     CMOE_GROUP_SUM2 | CMOE_HASH | CMOE_ROUTE_FROM_X |
                                     CMOE_SHARED_SIGMOID;

static bool has(const cmoe_problem *p, enum cmoe_flag flag)
{
    return (p->flags & (uint32_t)flag) != 0;
}

/* Name of a field that is outside its enumeration, or NULL. */
static const char *bad_enum(const cmoe_problem *p)
{
    const struct {
        const char *name;
        int value, count;
    } fields[] = {
        {"router", p->router, CMOE_ROUTER_COUNT},
        {"act", p->act, CMOE_ACTIVATION_COUNT},
        {"gate", p->gate, CMOE_GATE_COUNT},
        {"weight_on", p->weight_on, CMOE_WEIGHT_ON_COUNT},
        {"first", p->first, CMOE_STAGE_COUNT},
        {"last", p->last, CMOE_STAGE_COUNT},
        {"sort_format", p->sort_format, CMOE_SORT_FORMAT_COUNT},
        {"x.dtype", p->x.dtype, CMOE_DTYPE_COUNT},
        {"w.dtype", p->w.dtype, CMOE_DTYPE_COUNT},
        {"mid.dtype", p->mid.dtype, CMOE_DTYPE_COUNT},
        {"x.scaling", p->x.scaling, CMOE_SCALING_COUNT},
        {"w.scaling", p->w.scaling, CMOE_SCALING_COUNT},
        {"mid.scaling", p->mid.scaling, CMOE_SCALING_COUNT},
        {"x.rounding", p->x.rounding, CMOE_ROUNDING_COUNT},
        {"w.rounding", p->w.rounding, CMOE_ROUNDING_COUNT},
        {"mid.rounding", p->mid.rounding, CMOE_ROUNDING_COUNT},
        {"x.mx_rounding", p->x.mx_rounding, CMOE_MX_ROUNDING_COUNT},
        {"w.mx_rounding", p->w.mx_rounding, CMOE_MX_ROUNDING_COUNT},
        {"mid.mx_rounding", p->mid.mx_rounding, CMOE_MX_ROUNDING_COUNT},
    };
    for (size_t i = 0; i < sizeof fields / sizeof fields[0]; i++) {
        if (fields[i].value >= fields[i].count) return fields[i].name;
    }
    return NULL;
}

static bool reserved_set(const cmoe_problem *p)
{
    return p->reserved[0] || p->reserved[1] || p->x.reserved || p->x.reserved2 || p->w.reserved ||
           p->w.reserved2 || p->mid.reserved || p->mid.reserved2;
}

/* Name of a number that is NaN or infinite, or NULL. */
static const char *not_finite(const cmoe_problem *p)
{
    const struct {
        const char *name;
        float value;
    } fields[] = {
        {"renorm_eps (eps)", p->renorm_eps},       {"route_scale (scale)", p->route_scale},
        {"shared_weight (shw)", p->shared_weight}, {"act_limit (limit)", p->act_limit},
        {"act_alpha (alpha)", p->act_alpha},       {"act_beta (beta)", p->act_beta},
        {"act_lbeta (lbeta)", p->act_lbeta},       {"accumulate (acc)", p->accumulate},
    };
    for (size_t i = 0; i < sizeof fields / sizeof fields[0]; i++) {
        if (!isfinite(fields[i].value)) return fields[i].name;
    }
    return NULL;
}

/* A map may repeat experts, so it is bound only by the limit on experts. */
static int32_t most_local(const cmoe_problem *p)
{
    return has(p, CMOE_EXPERT_MAP) ? MAX_EXPERTS : p->experts - p->expert_first;
}

static bool is_padded(const cmoe_problem *p)
{
    return p->sort_format == CMOE_SORT_PACKED || p->sort_format == CMOE_SORT_FLAT;
}

static int32_t group_size(const cmoe_problem *p)
{
    return p->experts / p->groups;
}

static bool accumulates(const cmoe_problem *p)
{
    return p->accumulate < 0 || p->accumulate > 0;
}

/* --- formats -------------------------------------------------------------------------------- */

static bool is_float(uint8_t dtype)
{
    return dtype == CMOE_F32 || dtype == CMOE_F16 || dtype == CMOE_BF16;
}

static bool is_integer(uint8_t dtype)
{
    return dtype == CMOE_I8 || dtype == CMOE_U8 || dtype == CMOE_I4 || dtype == CMOE_U4;
}

/* Scalings that go with each element type, a bit each; 0: the operand has no such type. */
enum {
    NONE = 1 << CMOE_SCALE_NONE,
    TENSOR = 1 << CMOE_SCALE_TENSOR,
    TOKEN = 1 << CMOE_SCALE_TOKEN,
    SMOOTH = 1 << CMOE_SCALE_SMOOTH,
    CHANNEL = 1 << CMOE_SCALE_CHANNEL,
    BLOCK = 1 << CMOE_SCALE_BLOCK,
    GROUP = 1 << CMOE_SCALE_GROUP,
    MX = 1 << CMOE_SCALE_MX,
    NV = 1 << CMOE_SCALE_NV,
};

static const uint16_t activation_pairs[CMOE_DTYPE_COUNT] = {
    [CMOE_F32] = NONE,
    [CMOE_F16] = NONE,
    [CMOE_BF16] = NONE,
    [CMOE_E4M3] = TENSOR | TOKEN | SMOOTH | GROUP | MX,
    [CMOE_E4M3FNUZ] = TENSOR | TOKEN | SMOOTH | GROUP | MX,
    [CMOE_E5M2] = TENSOR | TOKEN | SMOOTH | GROUP | MX,
    [CMOE_I8] = TENSOR | TOKEN | SMOOTH | GROUP,
    [CMOE_E2M1] = MX | NV,
};

static const uint16_t weight_pairs[CMOE_DTYPE_COUNT] = {
    [CMOE_F32] = NONE,
    [CMOE_F16] = NONE,
    [CMOE_BF16] = NONE,
    [CMOE_E4M3] = TENSOR | CHANNEL | BLOCK | GROUP | MX,
    [CMOE_E4M3FNUZ] = TENSOR | CHANNEL | BLOCK | GROUP | MX,
    [CMOE_E5M2] = TENSOR | CHANNEL | BLOCK | GROUP | MX,
    [CMOE_I8] = TENSOR | CHANNEL | GROUP,
    [CMOE_U8] = TENSOR | CHANNEL | GROUP,
    [CMOE_I4] = CHANNEL | GROUP,
    [CMOE_U4] = CHANNEL | GROUP,
    [CMOE_E2M1] = MX | NV,
};

static bool format_exists(cmoe_format f, const uint16_t *pairs)
{
    return (pairs[f.dtype] >> f.scaling & 1) != 0;
}

static bool bad_group(cmoe_format f)
{
    const bool width = f.group == 16 || f.group == 32 || f.group == 64 || f.group == 128;
    return f.scaling == CMOE_SCALE_GROUP ? !width : f.group != 0;
}

static bool bad_scale(cmoe_format f, bool weight)
{
    if (f.scale_dtype == CMOE_NONE) return false;
    if (f.scaling == CMOE_SCALE_NONE) return true;
    if (f.scaling == CMOE_SCALE_MX) return f.scale_dtype != CMOE_E8M0;
    if (f.scaling == CMOE_SCALE_NV) return f.scale_dtype != CMOE_E4M3;
    if (f.scaling == CMOE_SCALE_GROUP && weight) return !is_float(f.scale_dtype);
    return f.scale_dtype != CMOE_F32;
}

static bool bad_zero(cmoe_format f)
{
    const bool can = (f.dtype == CMOE_U4 || f.dtype == CMOE_U8) &&
                     (f.scaling == CMOE_SCALE_GROUP || f.scaling == CMOE_SCALE_CHANNEL);
    return f.zero > 1 || (f.zero && !can);
}

static bool bad_fixed(cmoe_format f)
{
    const bool can = f.scaling == CMOE_SCALE_TENSOR || f.scaling == CMOE_SCALE_NV;
    return f.fixed > 1 || (f.fixed && !can);
}

static bool bad_rounding(cmoe_format f)
{
    if (f.rounding == CMOE_ROUND_TRUNCATE) return !is_integer(f.dtype);
    if (f.rounding == CMOE_ROUND_HALF_AWAY) return !is_integer(f.dtype) && f.dtype != CMOE_E2M1;
    return false;
}

static bool bad_mx_rounding(cmoe_format f)
{
    return f.mx_rounding != CMOE_MX_UP && f.scaling != CMOE_SCALE_MX;
}

/* A format's text by value, for messages. */
struct spelling {
    char text[64];
};

static struct spelling spell(cmoe_format f)
{
    struct spelling s = {""};
    cmoe__format_print(f, s.text, sizeof s.text);
    return s;
}

/* --- products ------------------------------------------------------------------------------- */

static int64_t row_count(const cmoe_problem *p)
{
    if (p->capacity > 0) return (int64_t)cmoe_problem_local_experts(p) * p->capacity;
    return (int64_t)p->max_tokens * cmoe_problem_slots(p);
}

static int64_t padded_rows(const cmoe_problem *p)
{
    return row_count(p) + (int64_t)cmoe_problem_local_experts(p) * (p->block_m - 1);
}

static int64_t widest_row(const cmoe_problem *p)
{
    return cmoe__max64(cmoe_problem_rows1(p), p->hidden);
}

/* Whether count * rows * columns elements of `size` bytes stay below half the address space: what
 * is left keeps every sum of a few such products representable. */
static bool product_fits(int64_t count, int64_t rows, int64_t columns, size_t size)
{
    size_t bytes;
    return cmoe__mul_size((size_t)count, (size_t)rows, &bytes) &&
           cmoe__mul_size(bytes, (size_t)columns, &bytes) && cmoe__mul_size(bytes, size, &bytes) &&
           bytes <= (size_t)PTRDIFF_MAX / 4;
}

static bool rows_fit(const cmoe_problem *p)
{
    return product_fits(1, row_count(p), widest_row(p), sizeof(float));
}

static bool weights_fit(const cmoe_problem *p)
{
    return product_fits(cmoe_problem_local_experts(p), cmoe_problem_rows1(p), p->hidden,
                        sizeof(float));
}

cmoe_status cmoe__problem_check(const cmoe_problem *p, const char **id)
{
#define REFUSAL(name, status, condition, ...)                                                      \
    if (condition) {                                                                               \
        *id = #name;                                                                               \
        return CMOE_FAIL(status, __VA_ARGS__);                                                     \
    }
#include "core/refusals.def"
#undef REFUSAL
    *id = NULL;
    return CMOE_OK;
}

cmoe_status cmoe_problem_check(const cmoe_problem *p)
{
    const char *id;
    if (!p) return CMOE_FAIL(CMOE_ERR_INVALID, "The argument p is NULL.");
    return cmoe__problem_check(p, &id);
}
