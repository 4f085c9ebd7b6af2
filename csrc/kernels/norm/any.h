/* SPDX-License-Identifier: Apache-2.0
 *
 * norm row by row: two exact sums, a root and a reciprocal for each row; then each element alone. ref.c compiles it as
 * plain C, vector kernels once more for what they do not do themselves.
 */
#ifndef INTONLY_NORM_ANY_H
#define INTONLY_NORM_ANY_H

#include <stdint.h>

#include "kernels/elements.h"
#include "kernels/walk.h"

typedef struct norm {
    const intonly_norm *step;
    const uint8_t *x;
    uint8_t *y;
    const int32_t *multiplier;
    const int8_t *shift;
    const int64_t *offset;
    intonly_walk walk; /* over rows; its last axis is theirs as well */
} norm;

enum { NORM_X, NORM_Y };

static inline void norm_begin(norm *g, const intonly_norm *s, uint8_t *const *bases, unsigned part, unsigned parts) {
    g->step = s;
    g->x = intonly_at(bases, s->x_ref);
    g->y = intonly_at(bases, s->y_ref);
    g->multiplier = (const int32_t *)(const void *)intonly_at(bases, s->multiplier);
    g->shift = (const int8_t *)intonly_at(bases, s->shift);
    g->offset = (const int64_t *)(const void *)intonly_at(bases, s->offset);
    g->walk.extent = s->extent;
    g->walk.operands = 0;
    intonly_walk_operand(&g->walk, s->x_strides);
    intonly_walk_operand(&g->walk, s->y_strides);
    intonly_walk_start(&g->walk, part, parts);
}

/* Return floor(sqrt(a)) and floor(2^bits / root), the root raised to what it is at least. */
static inline int64_t norm_reciprocal(const intonly_norm *s, uint64_t total, uint64_t squares) {
    const uint64_t spread = squares * (uint64_t)s->count - total * total;
    const int64_t under = intonly_signed((spread << (2 * s->root_bits)) + (uint64_t)s->eps_code);
    const int64_t root = intonly_isqrt_one(under < 0 ? 0 : under);
    const uint64_t divisor = (uint64_t)(root < s->least_root ? s->least_root : root);
    return (int64_t)intonly_quotient(UINT64_C(1) << s->reciprocal_bits, divisor);
}

static inline int64_t norm_element(const norm *g, int64_t c, int64_t u, int64_t reciprocal) {
    const intonly_norm *s = g->step;
    const uint64_t down = (uint64_t)(s->reciprocal_bits - s->root_bits - s->result_bits);
    const int64_t result = intonly_shift_floor(intonly_signed((uint64_t)u * (uint64_t)reciprocal), down);
    const uint64_t sum = (uint64_t)result * (uint64_t)(int64_t)g->multiplier[c] + (uint64_t)g->offset[c];
    const int64_t rounded = intonly_shift_floor(intonly_signed(sum), (uint64_t)g->shift[c]);
    return intonly_clamp(rounded + s->zero_point, s->lo, s->hi);
}

static inline void norm_row(const norm *g, const uint8_t *x, uint8_t *y) {
    const intonly_norm *s = g->step;
    const int64_t step = intonly_bytes_of(s->x_type), out = intonly_bytes_of(s->y_type);
    int64_t values[INTONLY_CHUNK];
    uint64_t total = 0, squares = 0;
    for (int64_t i = 0; i < s->count; i += INTONLY_CHUNK) {
        const int64_t count = s->count - i < INTONLY_CHUNK ? s->count - i : INTONLY_CHUNK;
        intonly_load(x + i * step, s->x_type, step, count, values);
        for (int64_t k = 0; k < count; ++k) {
            const int64_t from = values[k] - s->middle;
            total += (uint64_t)from;
            squares += (uint64_t)(from * from);
        }
    }
    if (!s->centered) total = 0;
    const int64_t reciprocal = norm_reciprocal(s, total, squares);
    for (int64_t i = 0; i < s->count; i += INTONLY_CHUNK) {
        const int64_t count = s->count - i < INTONLY_CHUNK ? s->count - i : INTONLY_CHUNK;
        intonly_load(x + i * step, s->x_type, step, count, values);
        for (int64_t k = 0; k < count; ++k) {
            const int64_t u = (values[k] - s->middle) * s->count - intonly_signed(total);
            values[k] = norm_element(g, i + k, u, reciprocal);
        }
        intonly_store(values, count, y + i * out, s->y_type, out);
    }
}

static inline void norm_any(const void *step, uint8_t *const *bases, unsigned part, unsigned parts) {
    norm g;
    for (norm_begin(&g, (const intonly_norm *)step, bases, part, parts); g.walk.rows > 0; intonly_walk_next(&g.walk)) {
        for (int64_t row = g.walk.first; row < g.walk.end; ++row)
            norm_row(&g, g.x + g.walk.offset[NORM_X] + row * g.step->x_strides[INTONLY_LAST],
                     g.y + g.walk.offset[NORM_Y] + row * g.step->y_strides[INTONLY_LAST]);
    }
}

#endif
