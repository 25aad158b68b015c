/* SPDX-License-Identifier: MIT
 * Inputs of bench: one call's tensors on the device, and routings that change from run to run. */
#include "cli/bench.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

double bench_slot_work(const cmoe_problem *p)
{
    return (double)cmoe_problem_rows1(p) * p->hidden + (double)p->hidden * p->inter;
}

double bench_expert_bytes(const cmoe_problem *p)
{
    size_t codes[2] = {0}, scales[2] = {0}, zeros[2] = {0};
    if (cmoe_format_bytes(p->w, cmoe_problem_rows1(p), p->hidden, &codes[0], &scales[0],
                          &zeros[0]) != CMOE_OK ||
        cmoe_format_bytes(p->w, p->hidden, p->inter, &codes[1], &scales[1], &zeros[1]) != CMOE_OK)
        return 0;
    return (double)(codes[0] + scales[0] + zeros[0] + codes[1] + scales[1] + zeros[1]);
}

bool bench_routable(const cmoe_problem *p)
{
    if (p->first > CMOE_STAGE_ROUTE) return true;
    return (p->flags & (CMOE_ROUTE_FROM_X | CMOE_HASH)) == 0 && p->router != CMOE_ROUTE_ALL;
}

cmoe_status bench_inputs_open(struct cli_session *session, const cmoe_problem *p, uint64_t seed,
                              struct bench_inputs *out)
{
    *out = (struct bench_inputs){.session = session};
    const struct gen_options options = {
        .kind = GEN_REAL, .seed = seed, .plain = true, .one_expert = true};
    cmoe_status status = gen_call_create(p, &options, &out->call);
    if (status == CMOE_OK)
        status = cmoe_weights_create(session->host, p, &out->call.weights, &out->reference);
    if (status == CMOE_OK && session->host != session->dev)
        status = cli_mirror_open(session->dev, &out->call, &out->mirror);
    if (status != CMOE_OK) bench_inputs_close(out);
    return status;
}

static void drop_routes(struct bench_inputs *in)
{
    if (in->device_routes != in->routes) cmoe_device_free(in->session->dev, in->device_routes);
    free(in->routes);
    in->routes = in->device_routes = NULL;
}

void bench_inputs_close(struct bench_inputs *in)
{
    if (in->session == NULL) return;
    drop_routes(in);
    cmoe_weights_destroy(in->reference);
    if (in->mirror.dev != NULL) cli_mirror_close(&in->mirror);
    gen_call_free(&in->call);
    *in = (struct bench_inputs){.session = NULL};
}

/* Logits that select the ids: high ones for them, noise far below for the rest. */
static void write_logits(const cmoe_problem *p, struct gen_rng *rng, const int32_t *ids,
                         int64_t columns, unsigned char *logits)
{
    const cmoe_dtype dtype = (cmoe_dtype)p->logits;
    const size_t bytes = (size_t)cmoe_dtype_bits(dtype) / 8;
    for (int64_t e = 0; e < columns; e++) {
        float v = -6 + (float)gen_normal(rng);
        for (int32_t k = 0; k < p->topk; k++)
            if (ids[k] == e) v = 4 + (float)gen_normal(rng);
        const uint32_t code = cmoe_encode(dtype, v);
        const uint16_t half = (uint16_t)code;
        memcpy(logits + (size_t)e * bytes, bytes == 4 ? (const void *)&code : &half, bytes);
    }
}

static cmoe_status draw_logits(const struct bench_routing *routing, const cmoe_problem *p,
                               uint64_t seed, struct gen_rng *rng, int64_t tokens,
                               unsigned char *logits)
{
    const int64_t columns = p->experts + ((p->flags & CMOE_SHARED_SIGMOID) != 0 ? p->shared : 0);
    const int64_t slots = cmoe_problem_slots(p);
    const size_t row = (size_t)columns * (size_t)cmoe_dtype_bits((cmoe_dtype)p->logits) / 8;
    int32_t *ids = malloc((size_t)(tokens * slots + 1) * sizeof *ids);
    if (ids == NULL) return CMOE_ERR_NO_MEMORY;
    const cmoe_status status = bench_routing_draw(routing, p, rng, tokens, ids);
    struct gen_rng noise = gen_rng_make(seed, 1000001);
    for (int64_t t = 0; status == CMOE_OK && t < tokens; t++)
        write_logits(p, &noise, ids + t * slots, columns, logits + (size_t)t * row);
    free(ids);
    return status;
}

static size_t route_row(const cmoe_problem *p)
{
    const int64_t columns = p->experts + ((p->flags & CMOE_SHARED_SIGMOID) != 0 ? p->shared : 0);
    if (p->first > CMOE_STAGE_ROUTE) return (size_t)cmoe_problem_slots(p) * sizeof(int32_t);
    return (size_t)columns * (size_t)cmoe_dtype_bits((cmoe_dtype)p->logits) / 8;
}

/* The device's copy of the routes; on a host device the routes themselves. */
static cmoe_status send_routes(struct bench_inputs *in, size_t bytes)
{
    in->device_routes = in->routes;
    if (in->mirror.dev == NULL) return CMOE_OK;
    in->device_routes = NULL;
    cmoe_device *dev = in->session->dev;
    cmoe_status status = cmoe_device_alloc(dev, bytes, &in->device_routes);
    if (status == CMOE_OK)
        status =
            cmoe_device_copy(dev, in->device_routes, in->routes, bytes, CMOE_COPY_TO_DEVICE, NULL);
    return status == CMOE_OK ? cmoe_device_sync(dev, NULL) : status;
}

static void point_at(const cmoe_problem *p, void *routes, cmoe_tensors *tensors)
{
    if (p->first == CMOE_STAGE_ROUTE) {
        tensors->logits = routes;
        tensors->logits_stride = 0;
        return;
    }
    tensors->topk_ids = routes;
    tensors->topk_ids64 = NULL;
}

cmoe_status bench_inputs_route(struct bench_inputs *in, const struct bench_routing *routing,
                               uint64_t seed, int64_t tokens, int variants)
{
    const cmoe_problem *p = &in->call.problem;
    const size_t row = route_row(p), one = row * (size_t)tokens;
    struct gen_rng rng = gen_rng_make(seed, 1000000);
    drop_routes(in);
    in->variants = bench_routable(p) ? variants : 1;
    cmoe_tensors base = in->mirror.dev != NULL ? in->mirror.tensors : in->call.tensors;
    base.n_tokens = (int32_t)tokens;
    in->tensors[0] = base;
    if (!bench_routable(p)) return CMOE_OK;
    cmoe_status status = CMOE_OK;
    in->routes = malloc(one * (size_t)variants + 1);
    if (in->routes == NULL) return CMOE_ERR_NO_MEMORY;
    for (int v = 0; v < variants && status == CMOE_OK; v++) {
        void *at = (unsigned char *)in->routes + (size_t)v * one;
        status = p->first > CMOE_STAGE_ROUTE ? bench_routing_draw(routing, p, &rng, tokens, at)
                                             : draw_logits(routing, p, seed, &rng, tokens, at);
    }
    if (status == CMOE_OK) status = send_routes(in, one * (size_t)variants);
    for (int v = 0; v < variants; v++) {
        in->tensors[v] = base;
        point_at(p, (unsigned char *)in->device_routes + (size_t)v * one, &in->tensors[v]);
    }
    return status;
}

void bench_inputs_host_route(const struct bench_inputs *in, cmoe_tensors *tensors)
{
    if (in->routes != NULL) point_at(&in->call.problem, in->routes, tensors);
}

static int64_t clamp(double v, int64_t low, int64_t high)
{
    return v < (double)low ? low : v > (double)high ? high : (int64_t)v;
}

static double cache_bytes(const struct cli_session *session)
{
    const cmoe_device_info *info = &session->info;
    return (double)(info->l3 > info->l2 ? info->l3 : info->l2);
}

int bench_variants(const struct bench_inputs *in, int64_t tokens)
{
    const cmoe_problem *p = &in->call.problem;
    const double all = bench_expert_bytes(p) * cmoe_problem_local_experts(p);
    const double slots = bench_expert_bytes(p) * (double)tokens * cmoe_problem_slots(p);
    const int least = tokens <= 128 ? 8 : tokens <= 512 ? 4 : 2;
    const double hit = slots < all ? slots : all;
    return (int)clamp(ceil(4 * cache_bytes(in->session) / (hit + 1)), least,
                      tokens <= 512 ? BENCH_VARIANTS : least);
}

int bench_sets(const struct cli_session *session, const cmoe_problem *p)
{
    const double all = bench_expert_bytes(p) * cmoe_problem_local_experts(p);
    return (int)clamp(ceil(4 * cache_bytes(session) / (all + 1)), 1, BENCH_SETS);
}
