/* SPDX-License-Identifier: MIT
 * What a scheme costs in quality, on the files that lie next to the model. */
#ifndef MEASURE_H
#define MEASURE_H

#include "lm/lm.h"

/* Perplexity per byte over the first windows * LM_CONTEXT bytes of heldout.txt, each window starting
 * with an empty cache. */
double perplexity(struct lm_experts *e, int windows);

/* Largest distance from the logits that transformers computed for prompts.txt (logits-N.npy), when
 * `step` bytes are fed at a time. */
double logit_error(struct lm_experts *e, int step);

#endif
