/* SPDX-License-Identifier: MIT
 * Buffers between inaccessible pages. Mappings are kept and used again, because a property run takes
 * a million of them. */
#include "harness.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { CANARY = 0xc3, WATCHED = 512 };

struct guard_buffer {
    unsigned char *pages; /* first accessible byte; one inaccessible page on either side */
    size_t size;          /* accessible bytes */
    unsigned char *data;
    size_t bytes;
    uint64_t hash;
    enum guard_use use;
    bool taken, frozen;
    unsigned char poison;
};

static size_t page_size(void)
{
    return (size_t)sysconf(_SC_PAGESIZE);
}

void guard_init(struct guard *g)
{
    memset(g, 0, sizeof *g);
}

static uint64_t hash(const unsigned char *data, size_t n)
{
    uint64_t h = UINT64_C(0xcbf29ce484222325);
    for (; n >= 8; n -= 8, data += 8) {
        uint64_t word;
        memcpy(&word, data, 8);
        h = (h ^ word) * UINT64_C(0x9e3779b97f4a7c15);
        h ^= h >> 29;
    }
    for (; n > 0; n--, data++) {
        h = (h ^ *data) * UINT64_C(0x100000001b3);
    }
    return h;
}

/* A free mapping of the size, or a new one. */
static struct guard_buffer *find(struct guard *g, size_t size)
{
    for (int i = 0; i < g->n; i++) {
        if (!g->buffers[i].taken && g->buffers[i].size == size) return &g->buffers[i];
    }
    if (g->n == g->capacity) {
        g->capacity = g->capacity ? 2 * g->capacity : 32;
        g->buffers = realloc(g->buffers, (size_t)g->capacity * sizeof *g->buffers);
        if (!g->buffers) abort();
    }
    const size_t page = page_size();
    unsigned char *const map = mmap(NULL, size + 2 * page, PROT_READ | PROT_WRITE,
                                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (map == MAP_FAILED || mprotect(map, page, PROT_NONE) != 0 ||
        mprotect(map + page + size, page, PROT_NONE) != 0) {
        perror("guard_alloc");
        abort();
    }
    struct guard_buffer *const b = &g->buffers[g->n++];
    *b = (struct guard_buffer){.pages = map + page, .size = size};
    return b;
}

/* The watched bytes before and after the data, inside its pages. */
static size_t before(const struct guard_buffer *b)
{
    const size_t room = (size_t)(b->data - b->pages);
    return room < WATCHED ? room : WATCHED;
}

static size_t after(const struct guard_buffer *b)
{
    const size_t room = (size_t)(b->pages + b->size - (b->data + b->bytes));
    return room < WATCHED ? room : WATCHED;
}

void *guard_alloc(struct guard *g, size_t bytes, size_t align, enum guard_use use)
{
    const size_t page = page_size();
    size_t size = page;
    while (size < bytes) {
        size *= 2;
    }
    struct guard_buffer *const b = find(g, size);
    b->taken = true;
    b->frozen = false;
    b->use = use;
    b->bytes = bytes;
    /* At the end: as close to the page after it as the alignment lets it. */
    const bool at_end = bytes == 0 || g->turn % 2 == 0;
    b->data = at_end ? b->pages + (size - bytes) / align * align : b->pages;
    b->poison = g->turn % 4 < 2 ? 0xff : 0x7f;
    g->turn++;
    memset(b->data - before(b), CANARY, before(b));
    memset(b->data + bytes, CANARY, after(b));
    memset(b->data, b->poison, bytes);
    return b->data;
}

static struct guard_buffer *owner(struct guard *g, const void *data)
{
    for (int i = 0; i < g->n; i++) {
        if (g->buffers[i].taken && g->buffers[i].data == data) return &g->buffers[i];
    }
    abort();
}

void guard_poison(struct guard *g, void *data)
{
    struct guard_buffer *const b = owner(g, data);
    memset(b->data, b->poison, b->bytes);
}

void guard_freeze(struct guard *g)
{
    for (int i = 0; i < g->n; i++) {
        struct guard_buffer *const b = &g->buffers[i];
        b->frozen = b->taken && b->use == GUARD_INPUT;
        if (b->frozen) b->hash = hash(b->data, b->bytes);
    }
}

static bool clean(const unsigned char *zone, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (zone[i] != CANARY) return false;
    }
    return true;
}

bool guard_check(const struct guard *g)
{
    for (int i = 0; i < g->n; i++) {
        const struct guard_buffer *const b = &g->buffers[i];
        if (!b->taken) continue;
        if (!clean(b->data - before(b), before(b)) || !clean(b->data + b->bytes, after(b))) {
            fprintf(stderr, "guard: something wrote around buffer %d of %zu bytes\n", i, b->bytes);
            return false;
        }
        if (b->frozen && hash(b->data, b->bytes) != b->hash) {
            fprintf(stderr, "guard: input buffer %d of %zu bytes was changed\n", i, b->bytes);
            return false;
        }
    }
    return true;
}

void guard_reset(struct guard *g)
{
    for (int i = 0; i < g->n; i++) {
        g->buffers[i].taken = false;
    }
}

void guard_end(struct guard *g)
{
    const size_t page = page_size();
    for (int i = 0; i < g->n; i++) {
        munmap(g->buffers[i].pages - page, g->buffers[i].size + 2 * page);
    }
    free(g->buffers);
    guard_init(g);
}
