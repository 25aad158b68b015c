/* SPDX-License-Identifier: MIT
 * The layouts of quantised matrices: DeepSeek's fp8 blocks and those of compressed-tensors. */
#include "export.h"

#include "fail.h"

#include <cmoe/convert.h>
#include <stdbool.h>
#include <string.h>

static bool is_int(cmoe_format f)
{
    return f.dtype == CMOE_I8 || f.dtype == CMOE_U8 || f.dtype == CMOE_I4 || f.dtype == CMOE_U4;
}

const char *cmoe__export_layout(cmoe_format f)
{
    const bool row = f.scaling == CMOE_SCALE_CHANNEL || f.scaling == CMOE_SCALE_TENSOR;
    if (f.scaling == CMOE_SCALE_NONE) return "plain";
    if (f.dtype == CMOE_E4M3 && f.scaling == CMOE_SCALE_BLOCK) return "fp8";
    if (f.dtype == CMOE_E4M3 && row) return "float-quantized";
    if (f.dtype == CMOE_E4M3 && f.scaling == CMOE_SCALE_MX) return "mxfp8-quantized";
    if (f.dtype == CMOE_E2M1 && f.scaling == CMOE_SCALE_MX) return "mxfp4-pack-quantized";
    if (f.dtype == CMOE_E2M1 && f.scaling == CMOE_SCALE_NV) return "nvfp4-pack-quantized";
    if (f.dtype == CMOE_I8 && row) return "int-quantized";
    return is_int(f) && f.scaling != CMOE_SCALE_TENSOR ? "pack-quantized" : NULL;
}

static int64_t groups(const struct cmoe_export *m)
{
    return m->format.scaling == CMOE_SCALE_GROUP ? (m->cols + m->format.group - 1) / m->format.group
                                                 : 1;
}

/* Words of packed codes a row, and of packed zero points a column of groups. */
static int64_t words(int bits, int64_t n)
{
    return (n * bits + 31) / 32;
}

size_t cmoe__export_scratch(cmoe_format f, int64_t rows, int64_t cols)
{
    const int bits = cmoe_dtype_bits((cmoe_dtype)f.dtype);
    return (size_t)(rows + 32) * (size_t)words(bits, cols + 32) * 4 + (size_t)cols;
}

static cmoe_status put(struct cmoe_shard *s, const char *module, const char *suffix,
                       const char *dtype, int64_t a, int64_t b, const void *data, size_t element)
{
    char name[320];
    const int64_t shape[] = {a, b < 0 ? 1 : b};
    snprintf(name, sizeof name, "%s%s", module, suffix);
    return cmoe__shard_tensor(s, name, dtype, b < 0 ? 1 : 2, shape, data,
                              (size_t)a * (size_t)shape[1] * element);
}

/* Element (r, c) of codes as an unsigned number with the middle added. */
static uint32_t code_at(const struct cmoe_export *m, int64_t r, int64_t c)
{
    const cmoe_dtype dtype = (cmoe_dtype)m->format.dtype;
    if (cmoe_dtype_bits(dtype) == 8) {
        const uint8_t code = m->codes[r * m->cols + c];
        return dtype == CMOE_I8 ? code ^ 0x80u : code;
    }
    const uint8_t byte = m->codes[r * ((m->cols + 1) / 2) + c / 2];
    const uint32_t nibble = c % 2 ? byte >> 4 : byte & 15u;
    return dtype == CMOE_I4 ? nibble ^ 8u : nibble;
}

static void set_bits(uint8_t *out, int64_t word, int shift, uint32_t value)
{
    for (int bit = shift; value; bit++, value >>= 1)
        out[4 * word + bit / 8] |= (uint8_t)((value & 1u) << (bit % 8));
}

static cmoe_status export_packed(struct cmoe_shard *s, const char *module,
                                 const struct cmoe_export *m)
{
    const int bits = cmoe_dtype_bits((cmoe_dtype)m->format.dtype), per = 32 / bits;
    const int64_t row = words(bits, m->cols), n = groups(m);
    const int64_t shape[] = {m->rows, m->cols};
    const cmoe_dtype type = (cmoe_dtype)m->format.scale_dtype;
    const bool half = type == CMOE_BF16 || type == CMOE_F16;
    if (m->codes) {
        memset(m->scratch, 0, (size_t)(m->rows * row) * 4);
        for (int64_t r = 0; r < m->rows; r++)
            for (int64_t c = 0; c < m->cols; c++)
                set_bits(m->scratch, r * row + c / per, (int)(c % per) * bits, code_at(m, r, c));
    }
    CMOE_TRY(put(s, module, ".weight_shape", "I64", 2, -1, shape, sizeof shape[0]));
    CMOE_TRY(put(s, module, ".weight_packed", "I32", m->rows, row, m->scratch, 4));
    CMOE_TRY(put(s, module, ".weight_scale", half ? (type == CMOE_BF16 ? "BF16" : "F16") : "F32",
                 m->rows, n, m->scale, half ? 2 : 4));
    if (!m->format.zero) return CMOE_OK;
    const int64_t height = words(bits, m->rows);
    if (m->codes) {
        memset(m->scratch, 0, (size_t)(height * n) * 4);
        for (int64_t r = 0; r < m->rows; r++)
            for (int64_t g = 0; g < n; g++)
                set_bits(m->scratch, r / per * n + g, (int)(r % per) * bits, m->zero[r * n + g]);
    }
    return put(s, module, ".weight_zero_point", "I32", height, n, m->scratch, 4);
}

static cmoe_status export_fp4(struct cmoe_shard *s, const char *module, const struct cmoe_export *m)
{
    const bool nv = m->format.scaling == CMOE_SCALE_NV;
    const float divisor = 1 / m->global;
    CMOE_TRY(put(s, module, ".weight_packed", "U8", m->rows, (m->cols + 1) / 2, m->codes, 1));
    if (!nv) {
        return put(s, module, ".weight_scale", "U8", m->rows, (m->cols + 31) / 32, m->scale, 1);
    }
    CMOE_TRY(put(s, module, ".weight_scale", "F8_E4M3", m->rows, (m->cols + 15) / 16, m->scale, 1));
    return put(s, module, ".weight_global_scale", "F32", 1, -1, &divisor, 4);
}

/* One byte or more an element, with its scales beside it. */
static cmoe_status export_plain(struct cmoe_shard *s, const char *module,
                                const struct cmoe_export *m)
{
    static const char *const names[CMOE_DTYPE_COUNT] = {
        [CMOE_F32] = "F32",      [CMOE_F16] = "F16", [CMOE_BF16] = "BF16",
        [CMOE_E4M3] = "F8_E4M3", [CMOE_I8] = "I8",
    };
    const size_t element = (size_t)cmoe_dtype_bits((cmoe_dtype)m->format.dtype) / 8;
    CMOE_TRY(
        put(s, module, ".weight", names[m->format.dtype], m->rows, m->cols, m->codes, element));
    switch ((cmoe_scaling)m->format.scaling) {
    case CMOE_SCALE_BLOCK:
        return put(s, module, ".weight_scale_inv", "F32", (m->rows + 127) / 128,
                   (m->cols + 127) / 128, m->scale, 4);
    case CMOE_SCALE_TENSOR:
        return put(s, module, ".weight_scale", "F32", 1, -1, m->scale, 4);
    case CMOE_SCALE_CHANNEL:
        return put(s, module, ".weight_scale", "F32", m->rows, 1, m->scale, 4);
    case CMOE_SCALE_MX:
        return put(s, module, ".weight_scale", "U8", m->rows, (m->cols + 31) / 32, m->scale, 1);
    case CMOE_SCALE_NONE:
    case CMOE_SCALE_TOKEN:
    case CMOE_SCALE_SMOOTH:
    case CMOE_SCALE_GROUP:
    case CMOE_SCALE_NV:
    case CMOE_SCALING_COUNT:
        break;
    }
    return CMOE_OK;
}

cmoe_status cmoe__export_matrix(struct cmoe_shard *s, const char *module,
                                const struct cmoe_export *m)
{
    if (m->input > 0) {
        const bool nv = m->format.scaling == CMOE_SCALE_NV;
        const float value = nv ? 1 / m->input : m->input;
        CMOE_TRY(
            put(s, module, nv ? ".input_global_scale" : ".input_scale", "F32", 1, -1, &value, 4));
    }
    if (strcmp(cmoe__export_layout(m->format), "pack-quantized") == 0)
        return export_packed(s, module, m);
    return m->format.dtype == CMOE_E2M1 ? export_fp4(s, module, m) : export_plain(s, module, m);
}

/* weights of a config group of compressed-tensors. */
static json_t *weight_config(cmoe_format f)
{
    static const char *const strategies[CMOE_SCALING_COUNT] = {
        [CMOE_SCALE_TENSOR] = "tensor",   [CMOE_SCALE_CHANNEL] = "channel",
        [CMOE_SCALE_GROUP] = "group",     [CMOE_SCALE_MX] = "group",
        [CMOE_SCALE_NV] = "tensor_group",
    };
    const int size = f.scaling == CMOE_SCALE_MX ? 32 : f.scaling == CMOE_SCALE_NV ? 16 : f.group;
    json_t *const w =
        json_pack("{s:i, s:s, s:s, s:b, s:b}", "num_bits", cmoe_dtype_bits((cmoe_dtype)f.dtype),
                  "type", is_int(f) ? "int" : "float", "strategy", strategies[f.scaling],
                  "symmetric", !f.zero, "dynamic", 0);
    if (size) json_object_set_new(w, "group_size", json_integer(size));
    if (f.scaling == CMOE_SCALE_MX)
        json_object_set_new(w, "scale_dtype", json_string("torch.uint8"));
    return w;
}

/* input_activations of a config group: scales of a tensor or of each token; NULL for others. */
static json_t *input_config(cmoe_format x)
{
    const bool nv = x.scaling == CMOE_SCALE_NV;
    if (x.scaling != CMOE_SCALE_TENSOR && x.scaling != CMOE_SCALE_TOKEN && !(nv && x.fixed))
        return NULL;
    json_t *const a =
        json_pack("{s:i, s:s, s:s, s:b}", "num_bits", cmoe_dtype_bits((cmoe_dtype)x.dtype), "type",
                  is_int(x) ? "int" : "float", "strategy",
                  nv                               ? "tensor_group"
                  : x.scaling == CMOE_SCALE_TENSOR ? "tensor"
                                                   : "token",
                  "symmetric", 1);
    json_object_set_new(a, "dynamic", nv ? json_string("local") : json_boolean(!x.fixed));
    if (nv) json_object_set_new(a, "group_size", json_integer(16));
    return a;
}

json_t *cmoe__export_config(cmoe_format f, cmoe_format x)
{
    const char *const layout = cmoe__export_layout(f);
    if (strcmp(layout, "plain") == 0) return NULL;
    if (strcmp(layout, "fp8") == 0) {
        return json_pack("{s:s, s:s, s:[i, i], s:s, s:[s, s]}", "quant_method", "fp8", "fmt",
                         "e4m3", "weight_block_size", 128, 128, "activation_scheme", "dynamic",
                         "modules_to_not_convert", "lm_head", "self_attn");
    }
    return json_pack("{s:s, s:s, s:s, s:[s], s:{s:{s:[s], s:o, s:o*}}}", "quant_method",
                     "compressed-tensors", "format", layout, "quantization_status", "compressed",
                     "ignore", "lm_head", "config_groups", "group_0", "targets",
                     "re:.*\\.experts\\..*", "weights", weight_config(f), "input_activations",
                     input_config(x));
}
