/* SPDX-License-Identifier: MIT
 * Published packings of 4-bit weights [rows outputs, cols inputs].
 *
 * They differ in three things only: what a word is (a byte or 32 bits), along which dimension its
 * nibbles run, and in which order. A table says so and one loop walks every packing. */
#include "core/fail.h"
#include "core/size.h"
#include <cmoe/convert.h>
#include <stdbool.h>
#include <string.h>

/* `block` elements along one dimension fill block / 2 bytes; nibble j of them holds element
 * order[j]. Blocks follow each other along the inner dimension of the packed matrix. */
struct packing {
    const char *name;
    int block;
    bool along_rows;    /* the elements of a block are consecutive rows (outputs) */
    bool columns_outer; /* packed matrix [cols.., rows..] instead of [rows.., cols..] */
    uint8_t order[32];
};

#define SEQUENTIAL                                                                                 \
    {                                                                                              \
        0, 1, 2, 3, 4, 5, 6, 7                                                                     \
    }
#define EVEN_THEN_ODD                                                                              \
    {                                                                                              \
        0, 2, 4, 6, 1, 3, 5, 7                                                                     \
    }

static const struct packing packings[] = {
    [CMOE_PACK_NIBBLE] = {.name = "nibble", .block = 2, .order = {0, 1}},
    [CMOE_PACK_GPTQ] = {.name = "gptq", .block = 8, .columns_outer = true, .order = SEQUENTIAL},
    [CMOE_PACK_AWQ] = {.name = "awq",
                       .block = 8,
                       .along_rows = true,
                       .columns_outer = true,
                       .order = EVEN_THEN_ODD},
    [CMOE_PACK_COMPRESSED] = {.name = "compressed", .block = 8, .order = SEQUENTIAL},
    [CMOE_PACK_GGUF] = {.name = "gguf",
                        .block = 32,
                        .order = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                  8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31}},
    [CMOE_PACK_AITER_I4] = {.name = "aiter-i4", .block = 8, .order = {0, 4, 1, 5, 2, 6, 3, 7}},
    [CMOE_PACK_AITER_U32] = {.name = "aiter-u32", .block = 8, .order = EVEN_THEN_ODD},
};

static cmoe_status check(cmoe_packing packing, const void *src, int64_t rows, int64_t cols,
                         const void *dst)
{
    if ((unsigned)packing >= sizeof packings / sizeof packings[0])
        return CMOE_FAIL(CMOE_ERR_INVALID, "packing %d is none of the %zu there are", (int)packing,
                         sizeof packings / sizeof packings[0]);
    if (rows < 0 || cols < 0)
        return CMOE_FAIL(CMOE_ERR_INVALID, "a matrix of %lld x %lld nibbles has a negative size",
                         (long long)rows, (long long)cols);
    const struct packing *const p = &packings[packing];
    const int64_t along = p->along_rows ? rows : cols;
    if (along % p->block != 0)
        return CMOE_FAIL(CMOE_ERR_INVALID, "packing %s needs a multiple of %d %s, not %lld",
                         p->name, p->block, p->along_rows ? "rows" : "columns", (long long)along);
    size_t elements;
    if (!cmoe__mul_size((size_t)rows, (size_t)cols, &elements))
        return CMOE_FAIL(CMOE_ERR_OVERFLOW, "a matrix of %lld x %lld nibbles does not fit",
                         (long long)rows, (long long)cols);
    if (elements > 0 && (!src || !dst))
        return CMOE_FAIL(CMOE_ERR_INVALID, "%s is NULL", src ? "dst" : "src");
    return CMOE_OK;
}

/* Elements of block (r, c), a block index along the packed dimension and an element index along
 * the other one: position of the first and step to the next in row-major [rows, cols]. */
struct block {
    int64_t first, step;
    int64_t byte; /* offset of the block in the packed matrix */
};

static struct block block_at(const struct packing *p, int64_t rows, int64_t cols, int64_t r,
                             int64_t c)
{
    const int64_t packed_rows = p->along_rows ? rows / p->block : rows;
    const int64_t packed_cols = p->along_rows ? cols : cols / p->block;
    const int64_t index = p->columns_outer ? c * packed_rows + r : r * packed_cols + c;
    return (struct block){
        .first = p->along_rows ? r * p->block * cols + c : r * cols + c * p->block,
        .step = p->along_rows ? cols : 1,
        .byte = index * (p->block / 2),
    };
}

/* A 32-bit word of eight nibbles is stored in the machine's byte order, as its tensors are. */
static int byte_in_block(const struct packing *p, int i)
{
    const uint32_t one = 1;
    uint8_t low;
    memcpy(&low, &one, 1);
    const bool words = p->block == 8 && p != &packings[CMOE_PACK_AITER_I4];
    return words && low == 0 ? 3 - i : i;
}

cmoe_status cmoe_pack4(cmoe_packing packing, const uint8_t *src, int64_t rows, int64_t cols,
                       void *dst)
{
    CMOE_TRY(check(packing, src, rows, cols, dst));
    const struct packing *const p = &packings[packing];
    uint8_t *const out = dst;
    for (int64_t r = 0; r < (p->along_rows ? rows / p->block : rows); r++) {
        for (int64_t c = 0; c < (p->along_rows ? cols : cols / p->block); c++) {
            const struct block b = block_at(p, rows, cols, r, c);
            for (int i = 0; i < p->block / 2; i++) {
                const int low = src[b.first + p->order[2 * i] * b.step] & 15;
                const int high = src[b.first + p->order[2 * i + 1] * b.step] & 15;
                out[b.byte + byte_in_block(p, i)] = (uint8_t)(low | high << 4);
            }
        }
    }
    return CMOE_OK;
}

cmoe_status cmoe_unpack4(cmoe_packing packing, const void *src, int64_t rows, int64_t cols,
                         uint8_t *dst)
{
    CMOE_TRY(check(packing, src, rows, cols, dst));
    const struct packing *const p = &packings[packing];
    const uint8_t *const in = src;
    for (int64_t r = 0; r < (p->along_rows ? rows / p->block : rows); r++) {
        for (int64_t c = 0; c < (p->along_rows ? cols : cols / p->block); c++) {
            const struct block b = block_at(p, rows, cols, r, c);
            for (int i = 0; i < p->block / 2; i++) {
                const int byte = in[b.byte + byte_in_block(p, i)];
                dst[b.first + p->order[2 * i] * b.step] = (uint8_t)(byte & 15);
                dst[b.first + p->order[2 * i + 1] * b.step] = (uint8_t)(byte >> 4);
            }
        }
    }
    return CMOE_OK;
}
