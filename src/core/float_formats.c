/* SPDX-License-Identifier: MIT
 * Every element type to and from binary floating point.
 *
 * One encoder serves all float formats: a double is split into sign, exponent and significand, the
 * significand is shifted to the target's grid with one rounding, and the code is assembled so that
 * a carry walks into the exponent by itself. Decoding is a table for 8- and 4-bit types. */
#include "core/float_bits.h"
#include "core/numeric.h"
#include <math.h>

/* clang-format off */
#define CODES4(value, c)   value((c)), value((c) + 1), value((c) + 2), value((c) + 3)
#define CODES16(value, c)  CODES4(value, c), CODES4(value, (c) + 4), CODES4(value, (c) + 8), \
                           CODES4(value, (c) + 12)
#define CODES64(value, c)  CODES16(value, c), CODES16(value, (c) + 16), CODES16(value, (c) + 32), \
                           CODES16(value, (c) + 48)
#define CODES256(value)    CODES64(value, 0), CODES64(value, 64), CODES64(value, 128), \
                           CODES64(value, 192)
/* clang-format on */

/* Magnitude of a code with m mantissa bits and n exponent bits, in units of the smallest subnormal:
 * (mantissa + hidden bit) << (exponent - 1). All values are exact floats. */
#define UNITS(c, m, n)                                                                             \
    ((float)((((c) >> (m)) & ((1 << (n)) - 1) ? 1 << (m) : 0) + ((c) & ((1 << (m)) - 1))) *        \
     (float)(1U << (((c) >> (m)) & ((1 << (n)) - 1) ? (((c) >> (m)) & ((1 << (n)) - 1)) - 1 : 0)))
#define SIGNED(c, magnitude) ((c)&0x80 ? -(magnitude) : (magnitude))

#define E4M3_VALUE(c)     SIGNED(c, ((c)&0x7f) == 0x7f ? NAN : UNITS(c, 3, 4) / 0x1p9F)
#define E4M3FNUZ_VALUE(c) ((c) == 0x80 ? NAN : SIGNED(c, UNITS(c, 3, 4) / 0x1p10F))
#define E5M2_VALUE(c)                                                                              \
    SIGNED(c, ((c)&0x7f) > 0x7c ? NAN : ((c)&0x7f) == 0x7c ? INFINITY : UNITS(c, 2, 5) / 0x1p16F)

static const float e4m3_values[256] = {CODES256(E4M3_VALUE)};
static const float e4m3fnuz_values[256] = {CODES256(E4M3FNUZ_VALUE)};
static const float e5m2_values[256] = {CODES256(E5M2_VALUE)};
static const float e2m1_values[16] = {0.0F,  0.5F,  1.0F,  1.5F,  2.0F,  3.0F,  4.0F,  6.0F,
                                      -0.0F, -0.5F, -1.0F, -1.5F, -2.0F, -3.0F, -4.0F, -6.0F};

/* Float formats by dtype; bits 0: not one. */
static const struct float_format {
    uint8_t bits, mantissa;
    int16_t bias;
    uint32_t max; /* code that larger magnitudes take: the largest finite one, or infinity */
    uint32_t nan; /* 0: the type has none */
} float_formats[CMOE_DTYPE_COUNT] = {
    [CMOE_F32] = {.bits = 32, .mantissa = 23, .bias = 127, .max = CMOE_F32_INF, .nan = 0x7fc00000},
    [CMOE_F16] = {.bits = 16, .mantissa = 10, .bias = 15, .max = 0x7c00, .nan = 0x7e00},
    [CMOE_BF16] = {.bits = 16, .mantissa = 7, .bias = 127, .max = 0x7f80, .nan = 0x7fc0},
    [CMOE_E4M3] = {.bits = 8, .mantissa = 3, .bias = 7, .max = 0x7e, .nan = 0x7f},
    [CMOE_E4M3FNUZ] = {.bits = 8, .mantissa = 3, .bias = 8, .max = 0x7f, .nan = 0x80},
    [CMOE_E5M2] = {.bits = 8, .mantissa = 2, .bias = 15, .max = 0x7b, .nan = 0x7f},
    [CMOE_E2M1] = {.bits = 4, .mantissa = 1, .bias = 1, .max = 7},
};

static const struct int_format {
    int16_t low, high;
    uint16_t mask; /* 0: not an integer element type */
} int_formats[CMOE_DTYPE_COUNT] = {
    [CMOE_I8] = {.low = -127, .high = 127, .mask = 0xff},
    [CMOE_U8] = {.low = 0, .high = 255, .mask = 0xff},
    [CMOE_I4] = {.low = -8, .high = 7, .mask = 0xf},
    [CMOE_U4] = {.low = 0, .high = 15, .mask = 0xf},
};

double cmoe__f32_to_f64(float v)
{
    return cmoe__f32_widen(v);
}

/* significand / 2^shift for a 53-bit significand and shift >= 1. */
static uint64_t shift_round(uint64_t significand, int shift, cmoe_rounding rounding)
{
    if (shift > 54) /* below half of the last place */
        return 0;
    const uint64_t kept = significand >> shift;
    const uint64_t rest = significand & ((UINT64_C(1) << shift) - 1);
    const uint64_t half = UINT64_C(1) << (shift - 1);
    switch (rounding) {
    case CMOE_ROUND_TRUNCATE:
        return kept;
    case CMOE_ROUND_HALF_AWAY:
        return kept + (rest >= half);
    case CMOE_ROUND_NEAREST_EVEN:
    case CMOE_ROUNDING_COUNT:
        break;
    }
    return kept + (rest > half || (rest == half && (kept & 1)));
}

static uint32_t encode_float(const struct float_format *format, uint64_t bits,
                             cmoe_rounding rounding)
{
    const uint32_t sign = (uint32_t)(bits >> 63) << (format->bits - 1);
    const uint64_t fraction = bits & ((UINT64_C(1) << 52) - 1);
    const int field = (int)(bits >> 52) & 0x7ff;
    if (field == 0x7ff && fraction) {
        /* The 16- and 32-bit types keep what fits of the payload, quieted. */
        const uint64_t payload = format->bits >= 16 ? fraction >> (52 - format->mantissa) : 0;
        return format->nan ? sign | format->nan | (uint32_t)payload : 0;
    }
    if (field == 0) return format->nan == 0x80 ? 0 : sign;
    const int exponent = field - 1023 + format->bias; /* biased, of the target */
    const int bounded = exponent < 1 ? 1 : exponent;
    const uint64_t rounded = shift_round(fraction | (UINT64_C(1) << 52),
                                         52 - format->mantissa + bounded - exponent, rounding);
    const uint64_t code = ((uint64_t)(bounded - 1) << format->mantissa) + rounded;
    const uint32_t magnitude = code > format->max ? format->max : (uint32_t)code;
    return magnitude == 0 && format->nan == 0x80 ? 0 : sign | magnitude;
}

int32_t cmoe__round_to_int(double v, cmoe_rounding rounding)
{
    const uint64_t bits = cmoe__f64_bits(v);
    const uint64_t fraction = bits & ((UINT64_C(1) << 52) - 1);
    const int exponent = ((int)(bits >> 52) & 0x7ff) - 1023;
    if (exponent == 1024 && fraction) return 0;
    int32_t value = INT16_MAX;
    if (exponent < 15)
        value = (int32_t)shift_round(fraction | (UINT64_C(1) << 52), 52 - exponent, rounding);
    value = value > INT16_MAX ? INT16_MAX : value;
    return bits >> 63 ? -value : value;
}

/* The power of two nearest to v (1.5 goes up); NaN where there is none. */
static uint32_t encode_e8m0(uint64_t bits)
{
    const int exponent = (int)((bits + (UINT64_C(1) << 51)) >> 52) - 1023 + 127;
    if (bits > UINT64_C(0x7ff) << 52) /* negative or NaN */
        return 255;
    return exponent < 0 ? 0 : exponent > 254 ? 254 : (uint32_t)exponent;
}

uint32_t cmoe__encode_f64(cmoe_dtype dtype, double v, cmoe_rounding rounding)
{
    const uint64_t bits = cmoe__f64_bits(v);
    if ((unsigned)dtype >= CMOE_DTYPE_COUNT) return 0;
    const struct int_format integer = int_formats[dtype];
    if (integer.mask) {
        const int32_t value = cmoe__round_to_int(v, rounding);
        const int32_t bounded = value < integer.low    ? integer.low
                                : value > integer.high ? integer.high
                                                       : value;
        return (uint32_t)bounded & integer.mask;
    }
    if (dtype == CMOE_E8M0) return encode_e8m0(bits);
    if (float_formats[dtype].bits == 0) return 0;
    const bool away = dtype == CMOE_E2M1 && rounding == CMOE_ROUND_HALF_AWAY;
    return encode_float(&float_formats[dtype], bits,
                        away ? CMOE_ROUND_HALF_AWAY : CMOE_ROUND_NEAREST_EVEN);
}

uint32_t cmoe__encode(cmoe_dtype dtype, float v, cmoe_rounding rounding)
{
    if (dtype == CMOE_F32) return cmoe__f32_bits(v);
    return cmoe__encode_f64(dtype, cmoe__f32_widen(v), rounding);
}

float cmoe__f64_to_f32(double v)
{
    const uint64_t bits = cmoe__f64_bits(v);
    const uint64_t magnitude = bits & ~(UINT64_C(1) << 63);
    const uint64_t low = UINT64_C(0x381) << 52, high = UINT64_C(0x47e) << 52; /* 2^-126, 2^127 */
    if (magnitude - low < high - low) { /* cannot leave the normal range: the common case */
        const uint64_t rebased = magnitude - ((uint64_t)(1023 - 127) << 52);
        const uint64_t odd = (rebased >> 29) & 1;
        const uint64_t rounded = (rebased + ((UINT64_C(1) << 28) - 1) + odd) >> 29;
        return cmoe__f32_from_bits((uint32_t)(bits >> 63) << 31 | (uint32_t)rounded);
    }
    return cmoe__f32_from_bits(
        encode_float(&float_formats[CMOE_F32], bits, CMOE_ROUND_NEAREST_EVEN));
}

/* A double quotient of floats is never subnormal, is exact wherever the true one is a float or the
 * middle of two, and is otherwise nearer to the true one than that is to any such middle (2^-52
 * against 2^-49): rounding it again gives the float nearest to a / b, however it was rounded. */
float cmoe__div_f32(float a, float b)
{
    if (cmoe__f32_isnan(a)) return a;
    const float q = cmoe__f64_to_f32(cmoe__f32_widen(a) / cmoe__f32_widen(b));
    return cmoe__f32_isnan(q) ? cmoe__f32_from_bits(CMOE_F32_NAN) : q;
}

/* The double product is exact. */
float cmoe__mul_f32(float a, float b)
{
    if (cmoe__f32_isnan(a)) return a;
    const float q = cmoe__f64_to_f32(cmoe__f32_widen(a) * cmoe__f32_widen(b));
    return cmoe__f32_isnan(q) ? cmoe__f32_from_bits(CMOE_F32_NAN) : q;
}

float cmoe__f16_to_f32(uint16_t code)
{
    const uint32_t sign = (uint32_t)(code >> 15) << 31;
    const uint32_t magnitude = code & 0x7fffU;
    if (magnitude >= 0x7c00) return cmoe__f32_from_bits(sign | CMOE_F32_INF | magnitude << 13);
    if (magnitude >= 0x0400)
        return cmoe__f32_from_bits(sign | ((magnitude << 13) + ((127U - 15U) << 23)));
    if (magnitude == 0) return cmoe__f32_from_bits(sign);
    const uint32_t top = 31U - (uint32_t)__builtin_clz(magnitude); /* magnitude * 2^-24 */
    return cmoe__f32_from_bits(sign | (127U - 24U + top) << 23 |
                               (magnitude ^ 1U << top) << (23U - top));
}

uint16_t cmoe__f32_to_f16(float v)
{
    return (uint16_t)cmoe__encode(CMOE_F16, v, CMOE_ROUND_NEAREST_EVEN);
}

float cmoe__bf16_to_f32(uint16_t code)
{
    return cmoe__f32_from_bits((uint32_t)code << 16);
}

uint16_t cmoe__f32_to_bf16(float v)
{
    const uint32_t bits = cmoe__f32_bits(v);
    if (cmoe__f32_isnan(v)) return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

/* Codes sign-extended; every int8 has a value although -128 is never encoded. */
static float decode_int(cmoe_dtype dtype, uint32_t code)
{
    const int32_t value = (int32_t)(code & int_formats[dtype].mask);
    const int32_t half = (int_formats[dtype].mask + 1) / 2;
    return (float)(int_formats[dtype].low < 0 && value >= half ? value - 2 * half : value);
}

const float *cmoe__decode_table(cmoe_dtype dtype)
{
    return dtype == CMOE_E4M3       ? e4m3_values
           : dtype == CMOE_E4M3FNUZ ? e4m3fnuz_values
           : dtype == CMOE_E5M2     ? e5m2_values
           : dtype == CMOE_E2M1     ? e2m1_values
                                    : NULL;
}

float cmoe__decode(cmoe_dtype dtype, uint32_t code)
{
    switch (dtype) {
    case CMOE_F32:
        return cmoe__f32_from_bits(code);
    case CMOE_F16:
        return cmoe__f16_to_f32((uint16_t)code);
    case CMOE_BF16:
        return cmoe__bf16_to_f32((uint16_t)code);
    case CMOE_E4M3:
        return e4m3_values[code & 0xff];
    case CMOE_E4M3FNUZ:
        return e4m3fnuz_values[code & 0xff];
    case CMOE_E5M2:
        return e5m2_values[code & 0xff];
    case CMOE_E8M0: /* 2^-127 is subnormal */
        code &= 0xff;
        return cmoe__f32_from_bits(code == 255 ? CMOE_F32_NAN : code ? code << 23 : 0x00400000);
    case CMOE_I8:
    case CMOE_U8:
    case CMOE_I4:
    case CMOE_U4:
        return decode_int(dtype, code);
    case CMOE_E2M1:
        return e2m1_values[code & 15];
    case CMOE_NONE:
    case CMOE_I32:
    case CMOE_I64:
    case CMOE_DTYPE_COUNT:
        break;
    }
    return 0;
}
