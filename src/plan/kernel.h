/* SPDX-License-Identifier: MIT
 * A kernel is one row of a table: an interval of stages, a target, a family. */
#ifndef CMOE_PLAN_KERNEL_H
#define CMOE_PLAN_KERNEL_H

#include "core/device.h"
#include "stages/exec.h"

/* What lies on the boundary before a stage. */
enum cmoe_layout {
    CMOE_EDGE_LOGITS, /* before ROUTE */
    CMOE_EDGE_X,      /* before ROUTE: x and router weights */
    CMOE_EDGE_IDS,    /* before QUANT */
    CMOE_EDGE_ROWS,  /* before SORT: x rows ready for GEMM1, token or slot order by shape.x_slots */
    CMOE_EDGE_INDEX, /* before GEMM1: rows + offsets */
    CMOE_EDGE_PACKED, /* before GEMM1: the published formats of cmoe_sort_format */
    CMOE_EDGE_FLAT,
    CMOE_EDGE_M_INDICES,
    CMOE_EDGE_BATCHED,
    CMOE_EDGE_SLOT,   /* before ACT .. COMBINE: rows in slot order */
    CMOE_EDGE_SORTED, /* before ACT .. COMBINE: rows in sorted order */
    CMOE_EDGE_SLOT16, /* before COMBINE: z in slot order as 16-bit numbers of type y (REDUCED) */
    CMOE_EDGE_OUT,    /* after COMBINE */
    CMOE_EDGE_COUNT,
};

struct cmoe_edge {
    uint8_t layout; /* enum cmoe_layout */
    uint8_t reserved;
    uint16_t block_m; /* PACKED, FLAT: padding; else 0 */
};

/* The edge that lies on the boundary before `stage` (CMOE_STAGE_COUNT: after COMBINE) between rows
 * of host backends. */
struct cmoe_edge cmoe__usual_edge(const cmoe_problem *p, int stage);

/* Why a row refuses, as a clause: "inter=1400 is not a multiple of 128". */
struct cmoe_why {
    char text[160];
};
/* Set the clause and return false. */
bool cmoe__refuse(struct cmoe_why *why, const char *format, ...) CMOE_PRINTF(2, 3);

struct cmoe_kernel;

struct cmoe_step {
    const struct cmoe_kernel *kernel;
    double cost_us;
    struct cmoe_edge in, out;
};

/* What a row is asked about. */
struct cmoe_query {
    const cmoe_problem *p;
    const struct cmoe_shape *shape;
    const struct cmoe_props *props;
    int tokens; /* upper end of the bucket */
};

struct cmoe_family {
    /* Whether the row can do its stages of the problem from edge `in`; sets `out`. */
    bool (*supports)(const struct cmoe_kernel *, const struct cmoe_query *, struct cmoe_edge in,
                     struct cmoe_edge *out, struct cmoe_why *why);
    double (*cost_us)(const struct cmoe_kernel *, const struct cmoe_query *);
    /* Bytes of scratch for query.tokens with query.props->threads threads; NULL: none. */
    size_t (*scratch)(const struct cmoe_kernel *, const struct cmoe_query *);
    cmoe_status (*run)(const struct cmoe_step *, const struct cmoe_exec *);
};

struct cmoe_kernel {
    const char *name;    /* unique; the key in tuned files; grammar in docs/naming.md */
    uint8_t first, last; /* stages covered; last == first - 1: converts the edge before `first` */
    uint8_t target;      /* enum cmoe_isa of host rows */
    int16_t priority;    /* 0 reference, 10 generic, 20 tuned; breaks cost ties */
    const char *format1, *format2; /* weight formats read: NULL, "canonical", ... */
    const struct cmoe_family *family;
    const void *config; /* the family's own const data */
};

/* Config of a row that converts one sort format into another, and its `supports`. */
struct cmoe_conversion {
    uint8_t from, to; /* layouts of edges */
};
bool cmoe__conversion_supports(const struct cmoe_kernel *k, const struct cmoe_query *q,
                               struct cmoe_edge in, struct cmoe_edge *out, struct cmoe_why *why);

#endif
