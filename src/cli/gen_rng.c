/* SPDX-License-Identifier: MIT
 * Random numbers that are the same everywhere: integers and exact operations on doubles only. */
#include "cli/gen.h"

uint64_t gen_u64(struct gen_rng *rng)
{
    /* splitmix64 (Steele, Lea, Flood 2014) */
    rng->state += 0x9e3779b97f4a7c15u;
    uint64_t z = rng->state;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

struct gen_rng gen_rng_make(uint64_t seed, uint64_t purpose)
{
    struct gen_rng rng = {.state = seed};
    rng.state = gen_u64(&rng) ^ (purpose * 0xd1342543de82ef95u);
    (void)gen_u64(&rng);
    return rng;
}

int64_t gen_below(struct gen_rng *rng, int64_t n)
{
    return (int64_t)((gen_u64(rng) >> 1) % (uint64_t)n);
}

bool gen_chance(struct gen_rng *rng, int one_in)
{
    return gen_below(rng, one_in) == 0;
}

double gen_unit(struct gen_rng *rng)
{
    return (double)(gen_u64(rng) >> 11) * 0x1p-53;
}

double gen_normal(struct gen_rng *rng)
{
    /* A sum of four uniform 16-bit numbers is close enough to normal and needs no libm. */
    const uint64_t u = gen_u64(rng);
    const int64_t sum =
        (int64_t)((u & 0xffff) + ((u >> 16) & 0xffff) + ((u >> 32) & 0xffff) + (u >> 48)) -
        2 * 0xffff;
    return (double)sum * (1.7320508 / 65536);
}
