/* SPDX-License-Identifier: MIT
 * Layout of packed panels of quantised weights, and filling them. What lies where: panel.h.
 *
 * Scales are stored in their own type where groups have their own; those of a whole channel, tensor
 * or block become f32. */
#include "backends/cpu/panel.h"

#include "backends/cpu/run.h"
#include "core/format.h"
#include "core/numeric.h"
#include "core/size.h"
#include <stdio.h>
#include <string.h>

static bool code_of(int dtype, enum cmoe_cpu_code *out)
{
    switch ((cmoe_dtype)dtype) {
    case CMOE_I8:
    case CMOE_U8:
        *out = CMOE_CPU_CODE_I8;
        return true;
    case CMOE_E4M3:
        *out = CMOE_CPU_CODE_E4M3;
        return true;
    case CMOE_E4M3FNUZ:
        *out = CMOE_CPU_CODE_E4M3FNUZ;
        return true;
    case CMOE_E5M2:
        *out = CMOE_CPU_CODE_E5M2;
        return true;
    case CMOE_I4:
    case CMOE_U4:
        *out = CMOE_CPU_CODE_U4;
        return true;
    case CMOE_E2M1:
        *out = CMOE_CPU_CODE_E2M1;
        return true;
    case CMOE_NONE:
    case CMOE_F32:
    case CMOE_F16:
    case CMOE_BF16:
    case CMOE_E8M0:
    case CMOE_I32:
    case CMOE_I64:
    case CMOE_DTYPE_COUNT:
        break;
    }
    return false;
}

const struct cmoe_packing_format *cmoe__cpu_panel_format(cmoe_format w)
{
    enum cmoe_cpu_code code;
    if (!code_of(w.dtype, &code)) return NULL;
    switch (code) {
    case CMOE_CPU_CODE_I8:
        return &cmoe__cpu_p32_i8;
    case CMOE_CPU_CODE_E4M3:
    case CMOE_CPU_CODE_E4M3FNUZ:
    case CMOE_CPU_CODE_E5M2:
        return &cmoe__cpu_p32_f8;
    case CMOE_CPU_CODE_U4:
        return &cmoe__cpu_p32_u4;
    case CMOE_CPU_CODE_E2M1:
        break;
    }
    return &cmoe__cpu_p32_mx4;
}

static cmoe_dtype scale_type(cmoe_format w)
{
    const bool grouped =
        w.scaling == CMOE_SCALE_GROUP || w.scaling == CMOE_SCALE_MX || w.scaling == CMOE_SCALE_NV;
    return grouped ? cmoe__format_scale_dtype(w) : CMOE_F32;
}

void cmoe__cpu_panel_layout(const cmoe_problem *p, int matrix, struct cmoe_cpu_panel *out)
{
    const int64_t k =
        matrix == 1 ? (int64_t)p->hidden - p->hidden_pad : (int64_t)p->inter - p->inter_pad;
    struct cmoe_cpu_panel l = {.scale = scale_type(p->w),
                               .zero = p->w.zero != 0,
                               .global = p->w.scaling == CMOE_SCALE_NV,
                               .step = 1,
                               .unit = CMOE_CPU_PANEL,
                               .k = k};
    (void)code_of(p->w.dtype, &l.code);
    if (l.code == CMOE_CPU_CODE_I8) l.step = 4;
    if (l.code == CMOE_CPU_CODE_U4 || l.code == CMOE_CPU_CODE_E2M1) l.step = 8;
    if (l.step > 1) l.unit = 4 * CMOE_CPU_PANEL;
    l.sums = l.code == CMOE_CPU_CODE_I8;
    l.span = cmoe__min64(cmoe__format_span(p->w, k), cmoe__round_up(k, l.step));
    l.span = cmoe__round_up(l.span, l.step);
    l.head = l.global || l.sums ? 4 * CMOE_CPU_PANEL : 0;
    l.scales = CMOE_CPU_PANEL * (cmoe_dtype_bits(l.scale) / 8 + (l.zero ? 1 : 0));
    l.group = l.scales + l.span / l.step * l.unit;
    const int64_t tail = k % l.span;
    l.bytes = l.head + k / l.span * l.group;
    if (tail) l.bytes += l.scales + cmoe__ceil_div(tail, l.step) * l.unit;
    *out = l;
}

/* --- filling -------------------------------------------------------------------------------- */

struct column {
    const struct cmoe_cpu_panel *l;
    cmoe_format f;
    struct cmoe_row row;
    int at; /* column of the panel */
};

/* Scale and zero point of group g. */
static void put_scale(const struct column *c, int64_t g, uint8_t *group)
{
    const size_t size = (size_t)cmoe_dtype_bits(c->l->scale) / 8;
    uint8_t *const scale = group + (size_t)c->at * size;
    if (c->row.scale) {
        memcpy(scale, (const uint8_t *)c->row.scale + (size_t)g * size, size);
    } else {
        const float one = 1.0f;
        memcpy(scale, &one, size);
    }
    if (c->l->zero)
        group[CMOE_CPU_PANEL * size + (size_t)c->at] =
            (uint8_t)(c->row.zero[g] ^ (c->f.dtype == CMOE_U8 ? 0x80 : 0));
}

/* k's [first, first + n) of a column, one group, to units at dst: bytes, then 4-bit codes. Signs of u8
 * and i4 codes are flipped. @return the sum of the codes */
static int64_t put_bytes(const struct column *c, int64_t first, int64_t n, uint8_t *dst)
{
    const int64_t stride = c->row.col_stride ? c->row.col_stride : 1;
    const int64_t unit = c->l->unit, step = c->l->step;
    const uint8_t *from = (const uint8_t *)c->row.codes + first * stride;
    const uint8_t flip = c->f.dtype == CMOE_U8 ? 0x80 : 0;
    int64_t sum = 0;
    dst += step * c->at;
    for (int64_t i = 0; i < n; i += step, dst += unit)
        for (int64_t j = 0; j < step && i + j < n; j++, from += stride) {
            dst[j] = *from ^ flip;
            sum += (int8_t)dst[j];
        }
    return sum;
}

static void put_nibbles(const struct column *c, int64_t first, int64_t n, uint8_t *dst)
{
    const uint8_t *const from = (const uint8_t *)c->row.codes;
    const int flip = c->f.dtype == CMOE_I4 ? 8 : 0;
    dst += 4 * c->at;
    for (int64_t i = 0; i < n; i += 8, dst += c->l->unit)
        for (int64_t j = 0; j < 8 && i + j < n; j++) {
            const int64_t at = first + i + j;
            const int code = (from[at / 2] >> at % 2 * 4 & 15) ^ flip;
            dst[j % 4] |= (uint8_t)(code << j / 4 * 4);
        }
}

static void put_column(const struct column *c, uint8_t *panel)
{
    const struct cmoe_cpu_panel *const l = c->l;
    uint8_t *group = panel + l->head;
    int64_t sum = 0;
    for (int64_t first = 0, g = 0; first < l->k; first += l->span, g++, group += l->group) {
        const int64_t n = cmoe__min64(l->span, l->k - first);
        put_scale(c, g, group);
        if (l->step == 8)
            put_nibbles(c, first, n, group + l->scales);
        else
            sum += put_bytes(c, first, n, group + l->scales);
    }
    const int32_t offset = (int32_t)(-128 * sum); /* read only where K is small enough */
    if (l->sums) memcpy(panel + 4 * c->at, &offset, sizeof offset);
    if (l->global) memcpy(panel + 4 * c->at, &c->row.global, sizeof c->row.global);
}

static void pack(const cmoe_weights *w, int matrix, int expert, int64_t first, int64_t end,
                 void *dst)
{
    struct cmoe_cpu_panel l;
    uint8_t *at = dst;
    cmoe__cpu_panel_layout(&w->p, matrix, &l);
    memset(dst, 0, (size_t)((end - first) * l.bytes));
    for (int64_t panel = first; panel < end; panel++, at += l.bytes)
        for (int j = 0; j < CMOE_CPU_PANEL; j++) {
            struct column c = {.l = &l, .f = w->p.w, .at = j};
            const int64_t n = cmoe__cpu_p32_row(&w->p, matrix, panel, j);
            if (n < 0) continue;
            cmoe__weights_row(w, matrix, expert, n, &c.row);
            put_column(&c, at);
        }
}

static size_t panel_bytes(const cmoe_problem *p, int matrix)
{
    struct cmoe_cpu_panel l;
    cmoe__cpu_panel_layout(p, matrix, &l);
    return (size_t)l.bytes;
}

static bool is_held(const cmoe_problem *p, const struct cmoe_packing_format *format,
                    const char *types, char *why, size_t len)
{
    if (cmoe__cpu_panel_format(p->w) == format) return true;
    snprintf(why, len, "%s holds %s weights, not %s", format->name, types,
             cmoe_dtype_name((cmoe_dtype)p->w.dtype));
    return false;
}

static bool holds_i8(const cmoe_problem *p, int matrix, char *why, size_t len)
{
    (void)matrix;
    return is_held(p, &cmoe__cpu_p32_i8, "i8 and u8", why, len);
}

static bool holds_f8(const cmoe_problem *p, int matrix, char *why, size_t len)
{
    (void)matrix;
    return is_held(p, &cmoe__cpu_p32_f8, "e4m3, e4m3fnuz and e5m2", why, len);
}

static bool holds_u4(const cmoe_problem *p, int matrix, char *why, size_t len)
{
    (void)matrix;
    return is_held(p, &cmoe__cpu_p32_u4, "i4 and u4", why, len);
}

static bool holds_mx4(const cmoe_problem *p, int matrix, char *why, size_t len)
{
    (void)matrix;
    return is_held(p, &cmoe__cpu_p32_mx4, "e2m1", why, len);
}

const struct cmoe_packing_format cmoe__cpu_p32_i8 = {.name = "p32_i8",
                                                     .holds = holds_i8,
                                                     .panels = cmoe__cpu_p32_panels,
                                                     .panel_bytes = panel_bytes,
                                                     .pack = pack};
const struct cmoe_packing_format cmoe__cpu_p32_f8 = {.name = "p32_f8",
                                                     .holds = holds_f8,
                                                     .panels = cmoe__cpu_p32_panels,
                                                     .panel_bytes = panel_bytes,
                                                     .pack = pack};
const struct cmoe_packing_format cmoe__cpu_p32_u4 = {.name = "p32_u4",
                                                     .holds = holds_u4,
                                                     .panels = cmoe__cpu_p32_panels,
                                                     .panel_bytes = panel_bytes,
                                                     .pack = pack};
const struct cmoe_packing_format cmoe__cpu_p32_mx4 = {.name = "p32_mx4",
                                                      .holds = holds_mx4,
                                                      .panels = cmoe__cpu_p32_panels,
                                                      .panel_bytes = panel_bytes,
                                                      .pack = pack};
