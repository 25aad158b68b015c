/* SPDX-License-Identifier: MIT
 * Any call: bytes choose a problem, a device, a partial plan and a token count, and then are its
 * tensors: ids, maps, counts, lists, logits, codes and scales of any value. Whatever they hold,
 * every buffer has exactly the described size, so an access outside is seen by the sanitizers. */
#include <cmoe/cmoe.h>

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct input {
    const uint8_t *data;
    size_t size, at;
    void *blocks[256];
    int n;
};

/* The next byte; past the end they repeat, mixed with the position. */
static uint8_t next(struct input *in)
{
    if (in->size == 0) return 0;
    const uint8_t b = in->data[in->at % in->size];
    const size_t lap = in->at++ / in->size;
    return (uint8_t)(b ^ (lap * 29));
}

static int below(struct input *in, int n)
{
    return next(in) % n;
}

/* A block of exactly `bytes`, filled from the input or poisoned. */
static void *block(struct input *in, size_t bytes, int fill)
{
    uint8_t *const p = malloc(bytes ? bytes : 1);
    if (!p) abort();
    in->blocks[in->n++] = p;
    for (size_t i = 0; i < bytes; i++) {
        p[i] = fill ? next(in) : 0xff;
    }
    return p;
}

/* Ids: mostly near the valid range, sometimes any 32 bits. */
static int32_t *hostile(struct input *in, size_t n, int near)
{
    int32_t *const p = block(in, n * 4, 0);
    for (size_t i = 0; i < n; i++) {
        const uint8_t kind = next(in);
        p[i] = kind & 0x80 ? (int32_t)((uint32_t)next(in) << 24 | (uint32_t)next(in) << 16 | kind)
                           : kind % (near + 3) - 1;
    }
    return p;
}

static const char *const schemes[] = {
    "f32",
    "bf16",
    "f16",
    "fp8-tensor",
    "fp8-token",
    "fp8-block",
    "int8-w8a8",
    "int8-smooth",
    "int4-w4a16",
    "mxfp4-w4a4",
    "nvfp4-w4a4",
    "mxfp4-w4a8",
    "int8-w8a16:g32,zp",
    "nvfp4-w4a16",
};

static int draw_problem(struct input *in, cmoe_problem *p)
{
    cmoe_problem_init(p);
    p->max_tokens = below(in, 9);
    p->hidden = 1 + below(in, 40);
    p->inter = 1 + below(in, 40);
    p->experts = 1 + below(in, 6);
    p->topk = below(in, p->experts + 1);
    p->shared = below(in, 8) == 0;
    p->router = (uint8_t)below(in, CMOE_ROUTER_COUNT);
    p->act = (uint8_t)below(in, CMOE_ACTIVATION_COUNT);
    p->gate = (uint8_t)below(in, CMOE_GATE_COUNT);
    p->weight_on = (uint8_t)below(in, CMOE_WEIGHT_ON_COUNT);
    if (cmoe_problem_scheme(p, schemes[below(in, sizeof schemes / sizeof schemes[0])])) return 0;
    p->flags = (uint32_t)next(in) | (uint32_t)next(in) << 8 | (uint32_t)(next(in) & 7) << 16;
    p->flags &= ~(uint32_t)CMOE_BLOCK_JOINT;
    p->expert_count = below(in, 4) ? 0 : 1 + below(in, p->experts);
    p->first = (uint8_t)below(in, CMOE_STAGE_COMBINE + 1);
    p->last = (uint8_t)(p->first + below(in, CMOE_STAGE_COMBINE + 1 - p->first));
    p->sort_format = (uint8_t)below(in, CMOE_SORT_FORMAT_COUNT);
    p->block_m = 1 + below(in, 9);
    if (p->sort_format == CMOE_SORT_BATCHED) p->capacity = 1 + below(in, 5);
    return cmoe_problem_check(p) == CMOE_OK;
}

/* One matrix an expert; codes, scales and zero points are any bytes. */
static cmoe_matrix *matrices(struct input *in, const cmoe_problem *p, int64_t rows, int64_t cols)
{
    const int n = cmoe_problem_local_experts(p);
    cmoe_matrix *const m = block(in, (size_t)n * sizeof *m, 0);
    size_t codes, scales, zeros;
    if (cmoe_format_bytes(p->w, rows, cols, &codes, &scales, &zeros) != CMOE_OK) abort();
    /* gate and up have block grids of their own */
    size_t half;
    if (cmoe_format_bytes(p->w, rows / 2, cols, NULL, &half, NULL) != CMOE_OK) abort();
    if (rows == 2 * p->inter && p->gate == CMOE_GATE_SPLIT && p->w.scaling == CMOE_SCALE_BLOCK) {
        scales = 2 * half;
    }
    for (int e = 0; e < n; e++) {
        m[e] = (cmoe_matrix){.data = block(in, codes, 1),
                             .scale = block(in, scales, 1),
                             .zero = p->w.zero ? block(in, zeros, 1) : NULL,
                             .global = block(in, 4, 1),
                             .bias = block(in, (size_t)rows * 4, 1),
                             .smooth = block(in, (size_t)cols * 4, 1)};
    }
    return m;
}

static void draw_tensors(struct input *in, const cmoe_problem *p, cmoe_tensors *t)
{
    const size_t slots = (size_t)cmoe_problem_slots(p), ids = (size_t)(p->experts + p->shared);
    const size_t local = (size_t)cmoe_problem_local_experts(p), cap = (size_t)p->capacity;
    const size_t T = (size_t)p->max_tokens, rows = cap ? local * cap : T * slots;
    const size_t x_rows = cap ? rows : (T > rows ? T : rows);
    const size_t H = (size_t)p->hidden, I = (size_t)p->inter;
    const size_t list = (size_t)cmoe_sort_capacity(p, p->max_tokens), bm = (size_t)p->block_m;
    *t = (cmoe_tensors){.struct_size = sizeof *t, .n_tokens = below(in, p->max_tokens + 1)};
    if (cap) t->n_tokens = 1;
    t->logits = block(in, T * ids * 4, 1);
    t->router_w = block(in, ids * H * 4, 1);
    t->route_bias = block(in, ids * 4, 1);
    t->hash_table = hostile(in, 3 * (size_t)p->topk, (int)ids);
    t->vocab = 3;
    t->token_ids = block(in, T * 8, 1);
    t->topk_ids = hostile(in, T * slots, (int)ids);
    t->topk_weights = block(in, T * slots * 4, 1);
    t->expert_map = hostile(in, ids, (int)local);
    t->x = block(in, x_rows * H * 4, 1);
    t->x_scale = block(in, x_rows * H * 4 + 4, 1);
    t->x_global = block(in, x_rows * 4 + 4, 1);
    t->mid_scale = block(in, 4, 1);
    t->sorted_ids = hostile(in, list > T ? list : T, (int)(T * slots));
    t->expert_offsets = hostile(in, local + 1, 5);
    t->block_experts = hostile(in, list / bm + 1, (int)local);
    t->num_valid = hostile(in, 2, (int)list);
    t->xq = block(in, x_rows * H * 4, 0);
    t->xq_scale = block(in, x_rows * H * 4 + 4, 0);
    t->xq_global = block(in, x_rows * 4 + 4, 0);
    t->gate_up = block(in, rows * 2 * I * 4, 1);
    t->mid = block(in, rows * I * 4, 1);
    t->mid_q = block(in, rows * I * 4, 1);
    t->mid_q_scale = block(in, rows * I * 4 + 4, 1);
    t->mid_q_global = block(in, rows * 4 + 4, 1);
    t->z = block(in, rows * H * 4, 1);
    t->y = block(in, (rows > T ? rows : T) * H * 4, 1);
    t->expert_load = block(in, local * 8, 0);
    memset(t->expert_load, 0, local * 8);
}

static void run(struct input *in, cmoe_device *dev, const cmoe_problem *p, cmoe_tensors *t)
{
    cmoe_weights *w = NULL;
    cmoe_plan *plan = NULL;
    const cmoe_weights_desc desc = {.struct_size = sizeof desc,
                                    .gate_up = matrices(in, p, cmoe_problem_rows1(p), p->hidden),
                                    .down = matrices(in, p, p->hidden, p->inter)};
    if (cmoe_weights_create(dev, p, &desc, &w) == CMOE_OK &&
        cmoe_plan_create(dev, p, w, NULL, &plan) == CMOE_OK) {
        const size_t bytes = cmoe_plan_workspace_size(plan);
        void *const workspace = aligned_alloc(256, (bytes + 511) / 256 * 256);
        if (!workspace) abort();
        const cmoe_status status = cmoe_execute(plan, t, workspace, bytes, NULL);
        if (status != CMOE_OK && cmoe_last_error()[0] == '\0') abort();
        free(workspace);
    }
    cmoe_plan_destroy(plan);
    cmoe_weights_destroy(w);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static cmoe_context *ctx;
    static cmoe_device *devices[2];
    if (!ctx) {
        const cmoe_context_options options = {.struct_size = sizeof options, .n_threads = 1};
        if (cmoe_context_create(&options, &ctx) != CMOE_OK ||
            cmoe_device_open(ctx, "ref", &devices[0]) != CMOE_OK ||
            cmoe_device_open(ctx, "cpu", &devices[1]) != CMOE_OK) {
            abort();
        }
    }
    struct input in = {.data = data, .size = size};
    cmoe_problem p;
    cmoe_tensors t;
    if (draw_problem(&in, &p)) {
        cmoe_device *const dev = devices[below(&in, 2)];
        draw_tensors(&in, &p, &t);
        run(&in, dev, &p, &t);
    }
    for (int i = 0; i < in.n; i++) {
        free(in.blocks[i]);
    }
    return 0;
}
