/* SPDX-License-Identifier: MIT
 * Static activation scales of a checkpoint: each expert's matrix may have one of its own for its
 * input. A layer has one for x and one for mid; of several the largest loses no range. */
#include "fail.h"
#include "family.h"
#include "layer.h"

#include <math.h>
#include <stdio.h>

/* The scale of MODULE's input into *scale if it is larger; nvfp4 stores the divisor. */
static cmoe_status take(const struct cmoe_reading *r, const char *module, const char *suffix,
                        float *scale)
{
    const cmoe_tensor_info *t = NULL;
    const float *value = NULL;
    CMOE_TRY(cmoe__tensor_need(r, module, suffix, &t));
    CMOE_TRY(cmoe__tensor_f32(r, t, 1, &value));
    const float v = r->format.scaling == CMOE_SCALE_NV ? 1 / *value : *value;
    if (!(v > 0) || !isfinite(v)) {
        return CMOE_FAIL(CMOE_ERR_CORRUPT, "tensor %s is %g; a scale is positive and finite",
                         cmoe__quote(t->name).text, (double)*value);
    }
    if (v > *scale) *scale = v;
    return CMOE_OK;
}

cmoe_status cmoe__activation_scales(struct cmoe_reading *r, const struct cmoe_family *f,
                                    const char *block)
{
    const char *const names[] = {f->gate, f->up, f->down};
    const char *const suffix =
        r->format.scaling == CMOE_SCALE_NV ? ".input_global_scale" : ".input_scale";
    char module[224];
    snprintf(module, sizeof module, "%s.experts.0.%s", block, names[0]);
    if (!cmoe__tensor_find(r, module, suffix)) return CMOE_OK;
    for (int32_t e = 0; e < r->layer->problem.experts; e++) {
        for (int m = 0; m < 3; m++) {
            snprintf(module, sizeof module, "%s.experts.%d.%s", block, e, names[m]);
            float *const scale = m == 2 ? &r->layer->mid_scale : &r->layer->x_scale;
            CMOE_TRY(take(r, module, suffix, scale));
        }
    }
    return CMOE_OK;
}
