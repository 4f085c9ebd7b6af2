/* SPDX-License-Identifier: Apache-2.0
 *
 * attention row by row: the scores of a query, its weights, and the values under them. ref.c compiles it as plain C,
 * vector kernels once more for what they do not do themselves: no inner loop has a branch in it.
 */
#ifndef INTONLY_ATTENTION_ANY_H
#define INTONLY_ATTENTION_ANY_H

#include <stdint.h>
#include <string.h>

#include "intonly.h"
#include "kernels/attention/scratch.h"
#include "kernels/attention/weights.h"
#include "kernels/elements.h"
#include "kernels/walk.h"

enum { QUERY, KEY, VALUE, BIAS, COUNTS, MEAN };

typedef struct attention {
    const intonly_attention *step;
    const uint8_t *q, *k, *v, *bias, *mask; /* bias and mask may be null */
    uint8_t *y;
    intonly_walk walk;
} attention;

/* Read a step, and start the walk over its share. */
static inline void attention_begin(attention *g, const intonly_attention *s, uint8_t *const *bases, unsigned part,
                                   unsigned parts) {
    g->step = s;
    g->q = intonly_at(bases, s->q_ref);
    g->k = intonly_at(bases, s->k_ref);
    g->v = intonly_at(bases, s->v_ref);
    g->bias = intonly_at_or_null(bases, s->bias_ref);
    g->mask = intonly_at_or_null(bases, s->mask_ref);
    g->y = intonly_at(bases, s->y_ref);
    g->walk.extent = s->extent;
    g->walk.operands = 0;
    intonly_walk_operand(&g->walk, s->q_strides); /* in the order of QUERY, KEY, ... */
    intonly_walk_operand(&g->walk, s->k_strides);
    intonly_walk_operand(&g->walk, s->v_strides);
    intonly_walk_operand(&g->walk, s->bias_strides);
    intonly_walk_operand(&g->walk, s->mask_strides);
    intonly_walk_operand(&g->walk, s->y_strides);
    intonly_walk_start(&g->walk, part, parts);
}

/* Copy `count` codes as they are. */
static inline void attention_codes(const uint8_t *from, int64_t type, int64_t count, int16_t *codes) {
    if (type == INTONLY_S8)
        for (int64_t i = 0; i < count; ++i) codes[i] = (int8_t)from[i];
    else
        for (int64_t i = 0; i < count; ++i) codes[i] = from[i];
}

static inline void attention_scores(const attention *g, const uint8_t *q, const uint8_t *k, int32_t *score) {
    const intonly_attention *s = g->step;
    int16_t query[INTONLY_MOST_DEPTH], key[INTONLY_MOST_DEPTH];
    attention_codes(q, s->q_type, s->depth, query);
    for (int64_t c = 0; c < s->depth; ++c) query[c] = (int16_t)(query[c] - s->q_zero);
    for (int64_t t = 0; t < s->keys; ++t) {
        int32_t sum = 0;
        attention_codes(k + t * s->k_key, s->k_type, s->depth, key);
        for (int64_t c = 0; c < s->depth; ++c) sum += query[c] * key[c];
        score[t] = sum;
    }
}

/* Add the bias of a row, which may be null. Sums wrap like those of vectors, so that wrong programs are harmless, too. */
static inline void attention_biased(const attention *g, const uint8_t *bias, int32_t *score) {
    const int32_t *from = (const int32_t *)(const void *)bias;
    if (bias == NULL) return;
    for (int64_t t = 0; t < g->step->keys; ++t) score[t] = (int32_t)((uint32_t)score[t] + (uint32_t)from[t]);
}

/* Return the bias of the query `row` of a place. */
static inline const uint8_t *attention_bias(const attention *g, int64_t row) {
    return g->bias == NULL ? NULL : g->bias + g->walk.offset[BIAS] + row * g->step->bias_strides[INTONLY_LAST];
}

/* Replace scores by weights; return their sum. */
static inline int32_t attention_weights(const attention *g, const uint8_t *mask, int32_t *score) {
    const intonly_attention *s = g->step;
    const int32_t multiplier = (int32_t)s->weight_multiplier;
    int32_t largest = INT32_MIN, total = 0;
    for (int64_t t = 0; t < s->keys; ++t)
        if (mask == NULL || mask[t * s->mask_key] != 0) largest = score[t] > largest ? score[t] : largest;
    for (int64_t t = 0; t < s->keys; ++t) {
        const int counts = mask == NULL || mask[t * s->mask_key] != 0;
        score[t] = counts ? weight_of((int64_t)largest - score[t], s->shift, multiplier) : 0;
        total += score[t];
    }
    return total;
}

static inline void attention_row(const attention *g, const int64_t *places) {
    const intonly_attention *s = g->step;
    const uint8_t *mask = g->mask == NULL ? NULL : g->mask + places[COUNTS];
    int32_t weight[INTONLY_MOST_KEYS], acc[INTONLY_MOST_DEPTH] = {0}, reciprocal;
    int16_t value[INTONLY_MOST_DEPTH];
    int64_t codes[INTONLY_MOST_DEPTH];
    attention_scores(g, g->q + places[QUERY], g->k + places[KEY], weight);
    attention_biased(g, g->bias == NULL ? NULL : g->bias + places[BIAS], weight);
    int32_t total = attention_weights(g, mask, weight);
    for (int64_t t = 0; t < s->keys; ++t) {
        attention_codes(g->v + places[VALUE] + t * s->v_key, s->v_type, s->width, value);
        for (int64_t c = 0; c < s->width; ++c) acc[c] += weight[t] * value[c];
    }
    const int64_t zero = s->v_zero * total;
    total = total < WEIGHT_LARGEST ? WEIGHT_LARGEST : total;
    weight_reciprocals(&total, 1, &reciprocal);
    for (int64_t c = 0; c < s->width; ++c)
        codes[c] = intonly_round_clamp((uint64_t)(weight_mean(acc[c] - zero, reciprocal) * s->multiplier),
                                       (uint64_t)s->y_shift, (int32_t)s->zero_point, (int32_t)s->lo, (int32_t)s->hi);
    intonly_store(codes, s->width, g->y + places[MEAN], s->y_type, intonly_bytes_of(s->y_type));
}

static inline void attention_any(const void *step, uint8_t *const *bases, unsigned part, unsigned parts) {
    attention g;
    for (attention_begin(&g, (const intonly_attention *)step, bases, part, parts); g.walk.rows > 0;
         intonly_walk_next(&g.walk)) {
        for (int64_t row = g.walk.first; row < g.walk.end; ++row) {
            int64_t places[MEAN + 1];
            for (int k = 0; k <= MEAN; ++k) places[k] = g.walk.offset[k] + row * g.walk.strides[k][INTONLY_LAST];
            attention_row(&g, places);
        }
    }
}

#endif
