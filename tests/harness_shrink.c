/* SPDX-License-Identifier: MIT
 * Shrinking a failing problem: smaller sizes and fewer options while it still fails. */
#include "harness_call.h"

#include <string.h>

struct shrink {
    cmoe_problem best;
    bool (*fails)(void *arg, const cmoe_problem *p);
    void *arg;
    int tries;
};

enum { MOST_TRIES = 2000 };

/* Take the candidate if it is another accepted problem that fails too. */
static bool take(struct shrink *s, const cmoe_problem *candidate)
{
    if (memcmp(candidate, &s->best, sizeof *candidate) == 0 || s->tries >= MOST_TRIES) return false;
    if (candidate->block_m < 1 || cmoe_problem_check(candidate) != CMOE_OK) return false;
    s->tries++;
    if (!s->fails(s->arg, candidate)) return false;
    s->best = *candidate;
    return true;
}

static int32_t *size_field(cmoe_problem *p, int i)
{
    int32_t *const fields[] = {&p->max_tokens, &p->hidden,  &p->inter,        &p->hidden_pad,
                               &p->inter_pad,  &p->experts, &p->expert_first, &p->expert_count,
                               &p->topk,       &p->shared,  &p->capacity,     &p->block_m};
    return i < (int)(sizeof fields / sizeof fields[0]) ? fields[i] : NULL;
}

/* Halve, and where that is too much take one off, each size. */
static bool shrink_sizes(struct shrink *s)
{
    bool progress = false;
    for (int i = 0;; i++) {
        cmoe_problem candidate = s->best;
        if (!size_field(&candidate, i)) return progress;
        for (;;) {
            candidate = s->best;
            *size_field(&candidate, i) /= 2;
            if (take(s, &candidate)) {
                progress = true;
                continue;
            }
            candidate = s->best;
            *size_field(&candidate, i) -= 1;
            if (!take(s, &candidate)) break;
            progress = true;
        }
    }
}

/* Set each option to its default. */
static bool shrink_options(struct shrink *s)
{
    bool progress = false;
    cmoe_problem plain;
    cmoe_problem_init(&plain);
    for (uint32_t bit = 1; bit; bit <<= 1) {
        cmoe_problem candidate = s->best;
        candidate.flags &= ~bit;
        progress = take(s, &candidate) || progress;
    }
    for (int i = 0; i < 12; i++) {
        cmoe_problem c = s->best;
        switch (i) {
        case 0:
            c.groups = c.groups_kept = 0;
            break;
        case 1:
            c.renorm_eps = 0;
            break;
        case 2:
            c.route_scale = 1;
            break;
        case 3:
            c.shared_weight = 1;
            break;
        case 4:
            c.act_limit = c.act_alpha = c.act_beta = c.act_lbeta = 0;
            break;
        case 5:
            c.accumulate = 0;
            break;
        case 6:
            c.router = plain.router;
            break;
        case 7:
            c.act = CMOE_ACT_IDENTITY;
            break;
        case 8:
            c.gate = CMOE_GATE_NONE;
            break;
        case 9:
            c.weight_on = plain.weight_on;
            break;
        case 10:
            c.in = c.y = CMOE_F32;
            break;
        default:
            c.expert_first = c.expert_count = 0;
            break;
        }
        progress = take(s, &c) || progress;
    }
    return progress;
}

/* Unquantise each tensor. */
static bool shrink_formats(struct shrink *s)
{
    bool progress = false;
    const cmoe_format f32 = {.dtype = CMOE_F32}, bf16 = {.dtype = CMOE_BF16};
    for (int i = 0; i < 6; i++) {
        cmoe_problem c = s->best;
        const cmoe_format to = i % 2 ? f32 : bf16;
        switch (i / 2) {
        case 0:
            c.mid = to;
            break;
        case 1:
            c.x = to;
            c.in = to.dtype;
            break;
        default:
            c.w = to;
            break;
        }
        progress = take(s, &c) || progress;
    }
    return progress;
}

cmoe_problem call_shrink(const cmoe_problem *p, bool (*fails)(void *arg, const cmoe_problem *p),
                         void *arg)
{
    struct shrink s = {.best = *p, .fails = fails, .arg = arg};
    for (bool progress = true; progress && s.tries < MOST_TRIES;) {
        progress = shrink_formats(&s);
        progress = shrink_options(&s) || progress;
        progress = shrink_sizes(&s) || progress;
    }
    return s.best;
}
