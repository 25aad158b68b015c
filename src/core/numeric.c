/* SPDX-License-Identifier: MIT
 * Elements in memory: codes and values of contiguous rows, whatever their alignment. */
#include "core/numeric.h"
#include "core/float_bits.h"
#include <float.h>

uint32_t cmoe__load_code(cmoe_dtype dtype, const void *row, int64_t i)
{
    const uint8_t *const bytes = row;
    const int bits = cmoe_dtype_bits(dtype);
    if (bits == 4) return (uint32_t)(bytes[i / 2] >> 4 * (i & 1)) & 15U;
    if (bits == 8) return bytes[i];
    if (bits == 16) {
        uint16_t code;
        memcpy(&code, bytes + 2 * i, sizeof code);
        return code;
    }
    uint32_t code;
    memcpy(&code, bytes + 4 * i, sizeof code);
    return code;
}

void cmoe__store_code(cmoe_dtype dtype, void *row, int64_t i, uint32_t code)
{
    uint8_t *const bytes = row;
    const int bits = cmoe_dtype_bits(dtype);
    if (bits == 4) {
        const int shift = 4 * (int)(i & 1);
        bytes[i / 2] = (uint8_t)((bytes[i / 2] & (0xf0 >> shift)) | (int)(code & 15U) << shift);
    } else if (bits == 8) {
        bytes[i] = (uint8_t)code;
    } else if (bits == 16) {
        const uint16_t half = (uint16_t)code;
        memcpy(bytes + 2 * i, &half, sizeof half);
    } else {
        memcpy(bytes + 4 * i, &code, sizeof code);
    }
}

void cmoe__append_code(cmoe_dtype dtype, void *row, int64_t i, uint32_t code)
{
    uint8_t *const bytes = row;
    const int bits = cmoe_dtype_bits(dtype);
    if (bits == 8)
        bytes[i] = (uint8_t)code;
    else if (bits == 4)
        bytes[i / 2] = (uint8_t)(i % 2 ? bytes[i / 2] | (code & 15U) << 4 : code & 15U);
    else
        cmoe__store_code(dtype, row, i, code);
}

float cmoe__load(cmoe_dtype dtype, const void *row, int64_t i)
{
    return cmoe__decode(dtype, cmoe__load_code(dtype, row, i));
}

void cmoe__store(cmoe_dtype dtype, void *row, int64_t i, float v)
{
    cmoe__store_code(dtype, row, i, cmoe__encode(dtype, v, CMOE_ROUND_NEAREST_EVEN));
}

void cmoe__load_row(cmoe_dtype dtype, const void *row, int64_t n, float *out)
{
    const uint8_t *const bytes = row;
    if (n <= 0) return;
    if (dtype == CMOE_F32) {
        memcpy(out, row, (size_t)n * sizeof *out);
    } else if (dtype == CMOE_F16 || dtype == CMOE_BF16) {
        for (int64_t i = 0; i < n; i++) {
            uint16_t code;
            memcpy(&code, bytes + 2 * i, sizeof code);
            out[i] = dtype == CMOE_F16 ? cmoe__f16_to_f32(code) : cmoe__bf16_to_f32(code);
        }
    } else {
        for (int64_t i = 0; i < n; i++)
            out[i] = cmoe__load(dtype, row, i);
    }
}

void cmoe__store_row(cmoe_dtype dtype, void *row, int64_t n, const float *v)
{
    if (n <= 0) return;
    if (dtype == CMOE_F32) {
        memcpy(row, v, (size_t)n * sizeof *v);
        return;
    }
    for (int64_t i = 0; i < n; i++)
        cmoe__append_code(dtype, row, i, cmoe__encode(dtype, v[i], CMOE_ROUND_NEAREST_EVEN));
}

float cmoe__dtype_max(cmoe_dtype dtype)
{
    static const float max[CMOE_DTYPE_COUNT] = {
        [CMOE_F32] = FLT_MAX,   [CMOE_F16] = 65504.0F,    [CMOE_BF16] = 0x1.fep127F,
        [CMOE_E4M3] = 448.0F,   [CMOE_E4M3FNUZ] = 240.0F, [CMOE_E5M2] = 57344.0F,
        [CMOE_E8M0] = 0x1p127F, [CMOE_I8] = 127.0F,       [CMOE_U8] = 255.0F,
        [CMOE_I4] = 7.0F,       [CMOE_U4] = 15.0F,        [CMOE_E2M1] = 6.0F,
    };
    return (unsigned)dtype < CMOE_DTYPE_COUNT ? max[dtype] : 0;
}

float cmoe__amax(const float *v, int64_t n)
{
    uint32_t max = 0;
    for (int64_t i = 0; i < n; i++) {
        const uint32_t magnitude = cmoe__f32_magnitude(v[i]);
        max = magnitude > max ? magnitude : max;
    }
    return cmoe__f32_from_bits(max);
}
