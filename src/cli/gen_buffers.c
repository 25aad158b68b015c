/* SPDX-License-Identifier: MIT
 * A call's buffers: between guard bytes, outputs poisoned, inputs hashed so that a change is seen. */
#include "cli/gen_state.h"

#include <stdlib.h>
#include <string.h>

enum { GUARD_BYTES = 64, GUARD = 0xa5, POISON = 0xff };

struct gen_block {
    unsigned char *base; /* what malloc returned */
    unsigned char *data; /* aligned to 64 bytes, or 8 bytes past that */
    size_t size;
    uint64_t hash; /* inputs: of the data */
    bool input;
};

static uint64_t hash_bytes(const unsigned char *data, size_t size)
{
    uint64_t h = 0xcbf29ce484222325u;
    size_t i = 0;
    for (; i + 8 <= size; i += 8) {
        uint64_t word;
        memcpy(&word, data + i, sizeof word);
        h = (h ^ word) * 0x9e3779b97f4a7c15u;
        h ^= h >> 29;
    }
    for (; i < size; i++)
        h = (h ^ data[i]) * 0x100000001b3u;
    return h;
}

static void *add_block(struct gen_state *s, int64_t bytes, bool input)
{
    struct gen_call *call = s->call;
    if (s->options.alloc != NULL)
        return s->options.alloc(s->options.user, (size_t)(bytes > 0 ? bytes : 0), input);
    if (call->n_blocks == call->capacity) {
        const int capacity = call->capacity > 0 ? 2 * call->capacity : 32;
        struct gen_block *blocks = realloc(call->blocks, (size_t)capacity * sizeof call->blocks[0]);
        if (blocks == NULL) return NULL;
        call->blocks = blocks;
        call->capacity = capacity;
    }
    const size_t size = (size_t)(bytes > 0 ? bytes : 1);
    unsigned char *base = malloc(size + 3 * GUARD_BYTES);
    if (base == NULL) return NULL;
    /* Aligned for any element, and sometimes for no vector. */
    struct gen_rng rng = gen_rng_make(s->options.seed, (uint64_t)call->n_blocks + 100);
    const size_t off = s->loose && gen_chance(&rng, 2) ? 8 : 0;
    unsigned char *data = base + GUARD_BYTES;
    data += (GUARD_BYTES - (uintptr_t)data % GUARD_BYTES) % GUARD_BYTES + off;
    memset(base, GUARD, (size_t)(data - base));
    memset(data + size, GUARD, (size_t)(base + size + 3 * GUARD_BYTES - (data + size)));
    call->blocks[call->n_blocks++] =
        (struct gen_block){.base = base, .data = data, .size = size, .input = input};
    return data;
}

int64_t gen_row_stride(const struct gen_state *s, int64_t bytes)
{
    return s->options.aligned ? (bytes + 15) / 16 * 16 : bytes;
}

void *gen_input(struct gen_state *s, int64_t bytes)
{
    return add_block(s, bytes, true);
}

void *gen_output(struct gen_state *s, int64_t bytes)
{
    void *data = add_block(s, bytes, false);
    if (data != NULL && bytes > 0) memset(data, POISON, (size_t)bytes);
    return data;
}

void gen_seal_inputs(struct gen_call *call)
{
    for (int i = 0; i < call->n_blocks; i++) {
        struct gen_block *block = &call->blocks[i];
        if (block->input) block->hash = hash_bytes(block->data, block->size);
    }
}

void gen_call_free(struct gen_call *call)
{
    for (int i = 0; i < call->n_blocks; i++)
        free(call->blocks[i].base);
    free(call->blocks);
    free(call->y_before);
    free((void *)call->weights.gate_up);
    free((void *)call->weights.up);
    free((void *)call->weights.down);
    *call = (struct gen_call){.n_blocks = 0};
}

void gen_call_reset(struct gen_call *call)
{
    for (int i = 0; i < call->n_blocks; i++) {
        struct gen_block *block = &call->blocks[i];
        if (block->input) continue;
        if (block->data == call->tensors.y && call->y_before != NULL)
            memcpy(block->data, call->y_before, block->size);
        else
            memset(block->data, POISON, block->size);
    }
}

bool gen_span_at(const struct gen_call *call, int i, struct gen_span *out)
{
    if (i < 0 || i >= call->n_blocks) return false;
    const struct gen_block *b = &call->blocks[i];
    *out = (struct gen_span){.data = b->data, .size = b->size, .input = b->input};
    return true;
}

void *gen_y_row(const struct gen_call *call, int64_t r)
{
    const int64_t tight = call->y_block * call->y_row;
    const int64_t stride = call->tensors.y_stride > 0 ? call->tensors.y_stride : tight;
    return (unsigned char *)call->tensors.y + r / call->y_block * stride +
           r % call->y_block * call->y_row;
}

bool gen_y_row_counts(const struct gen_call *call, int64_t r)
{
    const int32_t capacity = call->problem.capacity;
    return capacity == 0 || r % capacity < call->tensors.expert_offsets[r / capacity];
}

static bool is_filled(const unsigned char *data, const unsigned char *end, unsigned char value)
{
    for (; data < end; data++)
        if (*data != value) return false;
    return true;
}

/* The gaps between the blocks of y that a stride leaves. */
static bool gaps_touched(const struct gen_call *call)
{
    if (call->y_before != NULL) return false;
    for (int64_t r = call->y_block; r < call->y_rows; r += call->y_block) {
        const unsigned char *end = gen_y_row(call, r);
        const unsigned char *gap = (unsigned char *)gen_y_row(call, r - 1) + call->y_row;
        if (!is_filled(gap, end, POISON)) return true;
    }
    return false;
}

const char *gen_call_damage(const struct gen_call *call)
{
    for (int i = 0; i < call->n_blocks; i++) {
        const struct gen_block *b = &call->blocks[i];
        if (!is_filled(b->base, b->data, GUARD)) return "wrote before the start of a buffer";
        const unsigned char *end = b->data + b->size;
        if (!is_filled(end, b->base + b->size + 3 * GUARD_BYTES, GUARD))
            return "wrote past the end of a buffer";
        if (b->input && b->hash != 0 && b->hash != hash_bytes(b->data, b->size))
            return "changed an input";
    }
    return gaps_touched(call) ? "wrote between the rows of y" : NULL;
}
