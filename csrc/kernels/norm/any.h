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

/* Rows whose roots and reciprocals are found side by side: their steps depend on each other, those of rows do not. */
enum { NORM_ROWS = 16 };

/* The sums of a row, and what is found from them. */
typedef struct norm_sums {
    uint64_t total[NORM_ROWS], squares[NORM_ROWS];
    int64_t reciprocal[NORM_ROWS];
} norm_sums;

/* Find floor(2^reciprocal_bits / root) of all rows, the root raised to what it is at least. */
static inline void norm_reciprocals(const intonly_norm *s, norm_sums *sums) {
    int64_t rest[NORM_ROWS], root[NORM_ROWS], quotient[NORM_ROWS];
    for (int r = 0; r < NORM_ROWS; ++r) {
        const uint64_t spread = sums->squares[r] * (uint64_t)s->count - sums->total[r] * sums->total[r];
        const int64_t under = intonly_signed((spread << (2 * s->root_bits)) + (uint64_t)s->eps_code);
        rest[r] = under < 0 ? 0 : under;
        root[r] = quotient[r] = 0;
    }
    for (int64_t place = INT64_C(1) << 62; place != 0; place >>= 2) {
        for (int r = 0; r < NORM_ROWS; ++r) {
            const int64_t trial = root[r] + place, takes = -(int64_t)(rest[r] >= trial);
            rest[r] -= trial & takes;
            root[r] = (root[r] >> 1) + (place & takes);
        }
    }
    for (int r = 0; r < NORM_ROWS; ++r) {
        root[r] = root[r] < s->least_root ? s->least_root : root[r];
        rest[r] = 0;
    }
    /* The rest stays below the divisor, which is at most 2^62. */
    for (int64_t bit = s->reciprocal_bits; bit >= 0; --bit) {
        const int64_t next = bit == s->reciprocal_bits;
        for (int r = 0; r < NORM_ROWS; ++r) {
            const int64_t twice = rest[r] * 2 + next, takes = -(int64_t)(twice >= root[r]);
            rest[r] = twice - (root[r] & takes);
            quotient[r] = quotient[r] * 2 - takes;
        }
    }
    for (int r = 0; r < NORM_ROWS; ++r) sums->reciprocal[r] = quotient[r];
}

static inline int64_t norm_element(const norm *g, int64_t c, int64_t u, int64_t reciprocal) {
    const intonly_norm *s = g->step;
    const uint64_t down = (uint64_t)(s->reciprocal_bits - s->root_bits - s->result_bits);
    const int64_t result = intonly_shift_floor(intonly_signed((uint64_t)u * (uint64_t)reciprocal), down);
    const uint64_t sum = (uint64_t)result * (uint64_t)(int64_t)g->multiplier[c] + (uint64_t)g->offset[c];
    const int64_t rounded = intonly_shift_floor(intonly_signed(sum), (uint64_t)g->shift[c]);
    return intonly_clamp(rounded + s->zero_point, s->lo, s->hi);
}

static inline void norm_sum(const norm *g, const uint8_t *x, int r, norm_sums *sums) {
    const intonly_norm *s = g->step;
    const int64_t step = intonly_bytes_of(s->x_type);
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
    sums->total[r] = s->centered ? total : 0;
    sums->squares[r] = squares;
}

static inline void norm_finish_row(const norm *g, const uint8_t *x, int r, const norm_sums *sums, uint8_t *y) {
    const intonly_norm *s = g->step;
    const int64_t step = intonly_bytes_of(s->x_type), out = intonly_bytes_of(s->y_type);
    int64_t values[INTONLY_CHUNK];
    for (int64_t i = 0; i < s->count; i += INTONLY_CHUNK) {
        const int64_t count = s->count - i < INTONLY_CHUNK ? s->count - i : INTONLY_CHUNK;
        intonly_load(x + i * step, s->x_type, step, count, values);
        for (int64_t k = 0; k < count; ++k) {
            const int64_t u = (values[k] - s->middle) * s->count - intonly_signed(sums->total[r]);
            values[k] = norm_element(g, i + k, u, sums->reciprocal[r]);
        }
        intonly_store(values, count, y + i * out, s->y_type, out);
    }
}

static inline void norm_finish(const norm *g, const uint8_t *x, int rows, const norm_sums *sums, uint8_t *y) {
    const intonly_norm *s = g->step;
    for (int r = 0; r < rows; ++r)
        norm_finish_row(g, x + r * s->x_strides[INTONLY_LAST], r, sums, y + r * s->y_strides[INTONLY_LAST]);
}

typedef void (*norm_summing)(const norm *g, const uint8_t *x, int r, norm_sums *sums);
typedef void (*norm_finding)(const intonly_norm *s, norm_sums *sums);
typedef void (*norm_finishing)(const norm *g, const uint8_t *x, int rows, const norm_sums *sums, uint8_t *y);

/* All rows, some at a time: sum of a row, find and finish of all of them. */
static inline void norm_rows(const void *step, uint8_t *const *bases, unsigned part, unsigned parts, norm_summing sum,
                             norm_finding find, norm_finishing finish) {
    norm g;
    for (norm_begin(&g, (const intonly_norm *)step, bases, part, parts); g.walk.rows > 0; intonly_walk_next(&g.walk)) {
        const int64_t x_row = g.step->x_strides[INTONLY_LAST], y_row = g.step->y_strides[INTONLY_LAST];
        for (int64_t row = g.walk.first; row < g.walk.end; row += NORM_ROWS) {
            const int rows = g.walk.end - row < NORM_ROWS ? (int)(g.walk.end - row) : NORM_ROWS;
            const uint8_t *x = g.x + g.walk.offset[NORM_X] + row * x_row;
            uint8_t *y = g.y + g.walk.offset[NORM_Y] + row * y_row;
            norm_sums sums = {{0}, {0}, {0}};
            for (int r = 0; r < rows; ++r) sum(&g, x + r * x_row, r, &sums);
            find(g.step, &sums);
            finish(&g, x, rows, &sums, y);
        }
    }
}

static inline void norm_any(const void *step, uint8_t *const *bases, unsigned part, unsigned parts) {
    norm_rows(step, bases, part, parts, norm_sum, norm_reciprocals, norm_finish);
}

#endif
