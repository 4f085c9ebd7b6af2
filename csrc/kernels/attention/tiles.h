/* SPDX-License-Identifier: Apache-2.0
 *
 * attention by tiles of products, for instruction sets whose products are pairs of 16-bit codes: a few queries at a
 * time, whose scores and weights stay in the first-level cache. Keys and values are copied once for all
 * queries of a place. Include the header of an instruction set's PRODUCT_TILE before this one (contract/matrices.h).
 */
#ifndef INTONLY_ATTENTION_TILES_H
#define INTONLY_ATTENTION_TILES_H

#include <stdint.h>
#include <string.h>

#include "kernels/attention/any.h"
#include "kernels/contract/matrices.h"

#if defined(PRODUCT_TILE)
typedef struct tiles {
    attention any;
    int64_t pairs, keys, panels, width; /* pairs of codes in a key; keys, and panels of them; panels of the width */
    int64_t pitch;                      /* from one row of scores or weights to the next */
    int16_t *k;                         /* [panel][depth / 2][32][2] */
    int16_t *v;                         /* [panel][keys / 2][32][2] */
    int32_t *scores;                    /* [row][pitch] */
    int16_t *weights;                   /* [row][pitch] */
    int16_t left[TILE_ROWS][DEPTH];
    int32_t tile[TILE_ROWS][COLUMNS];
    int32_t sums[TILE_ROWS][INTONLY_MOST_DEPTH];
} tiles;

static inline void tiles_pack_keys(tiles *g, const uint8_t *k) {
    const intonly_attention *s = g->any.step;
    int16_t codes[INTONLY_MOST_DEPTH + 1];
    memset(g->k, 0, (size_t)(g->panels * g->pairs) * COLUMNS * 2 * sizeof *g->k);
    for (int64_t key = 0; key < g->keys; ++key) {
        int16_t *to = g->k + (key >> 5) * g->pairs * COLUMNS * 2 + (key & 31) * 2;
        codes[s->depth] = 0;
        attention_codes(k + key * s->k_key, s->k_type, s->depth, codes);
        for (int64_t p = 0; p < g->pairs; ++p) memcpy(to + p * COLUMNS * 2, codes + 2 * p, 2 * sizeof *codes);
    }
}

static inline void tiles_pack_values(tiles *g, const uint8_t *v) {
    const intonly_attention *s = g->any.step;
    const int64_t pairs = (g->keys + 1) >> 1;
    int16_t even[INTONLY_MOST_DEPTH] = {0}, odd[INTONLY_MOST_DEPTH] = {0};
    for (int64_t p = 0; p < pairs; ++p, v += 2 * s->v_key) {
        attention_codes(v, s->v_type, s->width, even);
        if (2 * p + 1 < g->keys)
            attention_codes(v + s->v_key, s->v_type, s->width, odd);
        else
            memset(odd, 0, sizeof odd);
        for (int64_t panel = 0; panel < g->width; ++panel) {
            int16_t *to = g->v + (panel * pairs + p) * COLUMNS * 2;
            for (int c = 0; c < COLUMNS; ++c) {
                to[2 * c] = even[panel * COLUMNS + c];
                to[2 * c + 1] = odd[panel * COLUMNS + c];
            }
        }
    }
}

/* Scores of some queries, from `row` on, and all keys. */
static inline void tiles_scores(tiles *g, int64_t row, int64_t rows) {
    const intonly_attention *s = g->any.step;
    const uint8_t *q = g->any.q + g->any.walk.offset[QUERY] + row * s->q_strides[INTONLY_LAST];
    for (int64_t r = 0; r < rows; ++r) {
        g->left[r][s->depth] = 0;
        attention_codes(q + r * s->q_strides[INTONLY_LAST], s->q_type, s->depth, g->left[r]);
        for (int64_t c = 0; c < s->depth; ++c) g->left[r][c] = (int16_t)(g->left[r][c] - s->q_zero);
    }
    for (int64_t panel = 0; panel < g->panels; ++panel) {
        PRODUCT_TILE(g->left, (void *)(g->k + panel * g->pairs * COLUMNS * 2), g->pairs, g->tile);
        for (int64_t r = 0; r < rows; ++r) memcpy(g->scores + r * g->pitch + panel * COLUMNS, g->tile[r], sizeof *g->tile);
    }
    for (int64_t r = 0; r < rows; ++r) attention_biased(&g->any, attention_bias(&g->any, row + r), g->scores + r * g->pitch);
}

/* Weigh the keys of one query; return the sum of the weights. The loops have no branch in them, so that a compiler makes
 * vectors of all but the look-ups. */
static inline int32_t tiles_weigh(tiles *g, int64_t r, const uint8_t *mask) {
    const intonly_attention *s = g->any.step;
    const int right = s->shift > 0 ? (int)s->shift : 0, left = s->shift < 0 ? (int)-s->shift : 0;
    const uint32_t half = (1u << right) >> 1, near = (uint32_t)WEIGHT_NEAR >> left;
    const int32_t multiplier = (int32_t)s->weight_multiplier;
    int32_t *score = g->scores + r * g->pitch, largest = INT32_MIN, total = 0;
    int16_t *weight = g->weights + r * g->pitch;
    if (mask != NULL)
        for (int64_t t = 0; t < g->keys; ++t) score[t] = mask[t * s->mask_key] != 0 ? score[t] : INT32_MIN / 2;
    for (int64_t t = 0; t < g->keys; ++t) largest = score[t] > largest ? score[t] : largest;
    for (int64_t t = 0; t < g->keys; ++t) {
        /* Both are -2^30 or more, and below 2^25 + 2^29; a distance that is cut before a shift to the left is beyond the
         * farthest all the same, because the multiplier then is 2^14 or more. */
        const uint32_t moved = ((uint32_t)largest - (uint32_t)score[t] + half) >> right;
        const int32_t cut = (int32_t)((moved < near ? moved : near) << left), scaled = (cut * multiplier + (1 << 14)) >> 15;
        score[t] = scaled < WEIGHT_FARTHEST ? scaled : WEIGHT_FARTHEST;
    }
    for (int64_t t = 0; t < g->keys; ++t) {
        const int32_t distance = score[t], coarse = weight_octave[distance >> 5 & 31] >> (distance >> 10);
        const int32_t found = (((coarse * weight_fine[distance & 31] + (1 << 14)) >> 15) + 64) >> 7;
        weight[t] = (int16_t)found;
    }
    if (mask != NULL)
        for (int64_t t = 0; t < g->keys; ++t) weight[t] = mask[t * s->mask_key] != 0 ? weight[t] : 0;
    for (int64_t t = 0; t < g->keys; ++t) total += weight[t];
    weight[g->keys] = 0;
    return total;
}

/* Sums of the values under the weights of some queries. */
static inline void tiles_sums(tiles *g, int64_t rows) {
    const int64_t all = (g->keys + 1) >> 1;
    memset(g->sums, 0, sizeof g->sums);
    for (int64_t first = 0; first < all; first += DEPTH / 2) {
        const int64_t pairs = all - first < DEPTH / 2 ? all - first : DEPTH / 2;
        for (int64_t r = 0; r < rows; ++r)
            memcpy(g->left[r], g->weights + r * g->pitch + 2 * first, (size_t)pairs * 2 * sizeof *g->left[r]);
        for (int64_t panel = 0; panel < g->width; ++panel) {
            PRODUCT_TILE(g->left, (void *)(g->v + (panel * all + first) * COLUMNS * 2), pairs, g->tile);
            for (int64_t r = 0; r < rows; ++r)
                for (int64_t c = 0; c < COLUMNS; ++c) g->sums[r][panel * COLUMNS + c] += g->tile[r][c];
        }
    }
}

static inline void tiles_finish(const tiles *g, int64_t r, int32_t total, int32_t reciprocal, uint8_t *y) {
    const intonly_attention *s = g->any.step;
    const int32_t zero = (int32_t)s->v_zero * total;
    int64_t codes[INTONLY_MOST_DEPTH];
    for (int64_t c = 0; c < s->width; ++c) {
        const int64_t mean = weight_mean(g->sums[r][c] - zero, reciprocal);
        codes[c] = intonly_round_clamp((uint64_t)(mean * s->multiplier), (uint64_t)s->y_shift, (int32_t)s->zero_point,
                                       (int32_t)s->lo, (int32_t)s->hi);
    }
    intonly_store(codes, s->width, y, s->y_type, intonly_bytes_of(s->y_type));
}

static inline void attention_by_tiles(const void *step, uint8_t *const *bases, unsigned part, unsigned parts) {
    const intonly_attention *s = (const intonly_attention *)step;
    _Alignas(64) tiles g;
    g.pairs = (s->depth + 1) >> 1;
    g.keys = s->keys;
    g.panels = (s->keys + COLUMNS - 1) >> 5;
    g.width = (s->width + COLUMNS - 1) >> 5;
    const int64_t padded = attention_padded(s->keys, 64);
    g.pitch = padded + COLUMNS;
    g.k = (int16_t *)(void *)(intonly_at(bases, s->scratch) + part * s->scratch_bytes);
    g.v = g.k + padded * attention_padded(s->depth, 32);
    g.weights = g.v + padded * attention_padded(s->width, 32);
    g.scores = (int32_t *)(void *)(g.weights + TILE_ROWS * g.pitch);
    memset(g.left, 0, sizeof g.left);
    for (attention_begin(&g.any, s, bases, part, parts); g.any.walk.rows > 0; intonly_walk_next(&g.any.walk)) {
        const int64_t *offset = g.any.walk.offset;
        if (g.any.walk.first == g.any.walk.end) continue;
        tiles_pack_keys(&g, g.any.k + offset[KEY]);
        tiles_pack_values(&g, g.any.v + offset[VALUE]);
        for (int64_t row = g.any.walk.first; row < g.any.walk.end; row += TILE_ROWS) {
            const int64_t rows = g.any.walk.end - row < TILE_ROWS ? g.any.walk.end - row : TILE_ROWS;
            int32_t total[TILE_ROWS], divisor[TILE_ROWS], reciprocal[TILE_ROWS];
            tiles_scores(&g, row, rows);
            for (int64_t r = 0; r < TILE_ROWS; ++r) {
                const uint8_t *mask = g.any.mask;
                if (mask != NULL) mask += offset[COUNTS] + (row + r) * s->mask_strides[INTONLY_LAST];
                total[r] = r < rows ? tiles_weigh(&g, r, mask) : WEIGHT_LARGEST;
                divisor[r] = total[r] < WEIGHT_LARGEST ? WEIGHT_LARGEST : total[r];
            }
            weight_reciprocals(divisor, TILE_ROWS, reciprocal);
            tiles_sums(&g, rows);
            for (int64_t r = 0; r < rows; ++r)
                tiles_finish(&g, r, total[r], reciprocal[r],
                             g.any.y + offset[MEAN] + (row + r) * s->y_strides[INTONLY_LAST]);
        }
    }
}

#endif

#endif
