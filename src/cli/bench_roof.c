/* SPDX-License-Identifier: MIT
 * Ceilings for bench: what the device reads and multiplies at best, just now. */
#include "cli/bench.h"

#include <math.h>

enum { READINGS = 3, OPERANDS = 1 << 15 };

cmoe_status bench_roof_open(struct cli_session *session, struct bench_roof *out)
{
    const cmoe_device_info *info = &session->info;
    const int64_t cache = info->l3 > info->l2 ? info->l3 : info->l2;
    const int64_t least = info->host ? (int64_t)1 << 28 : (int64_t)1 << 31;
    *out = (struct bench_roof){.session = session};
    out->bytes = (size_t)(4 * cache > least ? 4 * cache : least);
    cmoe_status status = cmoe_device_alloc(session->dev, out->bytes, &out->memory);
    if (status == CMOE_OK)
        status = cmoe_device_fill(session->dev, out->memory, 0x3c, out->bytes, NULL);
    if (status != CMOE_OK) return status;
    /* What products are made of: random, as power depends on it, and below 4 as f32, bf16 and e4m3. */
    unsigned char values[OPERANDS];
    struct gen_rng rng = gen_rng_make(1, 0);
    for (int i = 0; i < OPERANDS; i++)
        values[i] = (unsigned char)((gen_u64(&rng) & 0x8f) | 0x30);
    status = cmoe_device_copy(session->dev, out->memory, values, sizeof values, CMOE_COPY_TO_DEVICE,
                              NULL);
    return status == CMOE_OK ? cmoe_device_sync(session->dev, NULL) : status;
}

double bench_roof_measure(const struct bench_roof *roof, cmoe_probe what, cmoe_dtype dtype)
{
    double best = NAN;
    for (int i = 0; i < READINGS; i++) {
        double rate = 0;
        if (cmoe_device_probe(roof->session->dev, what, dtype, roof->memory, roof->bytes, &rate) !=
            CMOE_OK)
            return NAN;
        best = fmax(best, rate);
    }
    return best;
}

void bench_roof_close(struct bench_roof *roof)
{
    if (roof->session != NULL) cmoe_device_free(roof->session->dev, roof->memory);
    *roof = (struct bench_roof){.session = NULL};
}
