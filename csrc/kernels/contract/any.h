/* SPDX-License-Identifier: Apache-2.0
 *
 * contract for any types and strides. A run of outputs along the last axis is summed in one of two orders, whichever
 * has the longer inner loop: along the outputs, one summed place after the other, or along the last summed axis, output
 * by output. ref.c compiles it as plain C, the vector kernels once more for what they do not do themselves.
 */
#ifndef INTONLY_CONTRACT_ANY_H
#define INTONLY_CONTRACT_ANY_H

#include <stdint.h>

#include "kernels/elements.h"
#include "kernels/epilogue.h"
#include "kernels/walk.h"

#define LAST_SUMMED (INTONLY_REDUCED - 1)

enum { A, B, Y, R, BIAS, CONSTANT, ZERO, OPERANDS };

/* Their strides, in this order. */
#define CONTRACT_STRIDES(s)                                                                                            \
    {(s)->a_strides,    (s)->b_strides,        (s)->y_strides,   (s)->r_strides,                                       \
     (s)->bias_strides, (s)->constant_strides, (s)->zero_strides}

typedef struct contract {
    const intonly_contract *step;
    const uint8_t *a, *b, *r, *bias; /* b, r and bias may be null */
    uint8_t *y;
    int64_t a_zero; /* a maximum is of a as it is */
    intonly_epilogue epilogue;
    intonly_walk walk;
} contract;

/* Read a step; the walk is left to the caller. */
static inline void contract_begin(contract *g, const intonly_contract *s, uint8_t *const *bases) {
    g->step = s;
    g->a = intonly_at(bases, s->a_ref);
    g->b = s->op == INTONLY_MAX ? NULL : intonly_at_or_null(bases, s->b_ref);
    g->y = intonly_at(bases, s->y_ref);
    g->r = intonly_at_or_null(bases, s->r_ref);
    g->bias = s->op == INTONLY_MAX ? NULL : intonly_at_or_null(bases, s->bias);
    g->a_zero = s->op == INTONLY_MAX ? 0 : s->a_zero;
    INTONLY_READ_EPILOGUE(s, bases, &g->epilogue);
    if (g->r == NULL) g->epilogue.residual_multiplier = NULL;
}

/* Set a run of accumulators to where they begin. places: the first of the run, of every operand. */
static inline void begin_run(const contract *g, const int64_t *places, int64_t count, int64_t *acc) {
    const int64_t none = g->step->op == INTONLY_MAX ? INT64_MIN : 0;
    for (int64_t i = 0; i < count; ++i) acc[i] = none;
    if (g->bias != NULL)
        intonly_load(g->bias + places[BIAS], INTONLY_S32, g->step->bias_strides[INTONLY_LAST], count, acc);
}

/* Finish a run of sums, and store it. */
static inline void finish_run(const contract *g, const int64_t *places, int64_t count, int64_t *acc) {
    const intonly_contract *s = g->step;
    int64_t joining[INTONLY_CHUNK];
    if (g->epilogue.residual_multiplier != NULL)
        intonly_load(g->r + places[R], s->r_type, s->r_strides[INTONLY_LAST], count, joining);
    intonly_finish(&g->epilogue, places[CONSTANT], s->constant_strides[INTONLY_LAST], places[ZERO],
                   s->zero_strides[INTONLY_LAST], joining, count, acc);
    intonly_store(acc, count, g->y + places[Y], s->y_type, s->y_strides[INTONLY_LAST]);
}

/* Sums and products modulo 2^64. */
static inline int64_t add(int64_t a, int64_t b) { return intonly_signed((uint64_t)a + (uint64_t)b); }

static inline int64_t subtract(int64_t a, int64_t b) { return intonly_signed((uint64_t)a - (uint64_t)b); }

static inline int64_t multiply(int64_t a, int64_t b) { return intonly_signed((uint64_t)a * (uint64_t)b); }

/* Read a chunk minus its zero point. */
static inline void load_from_zero(const uint8_t *x, int64_t type, int64_t stride, int64_t zero, int64_t count,
                                  int64_t *wide) {
    intonly_load(x, type, stride, count, wide);
    if (zero == 0) return;
    for (int64_t i = 0; i < count; ++i) wide[i] = subtract(wide[i], zero);
}

/* Join a run of values, or of products, to a run of accumulators. */
static inline void join_each(const contract *g, const int64_t *left, const int64_t *right, int64_t count,
                             int64_t *acc) {
    if (g->step->op == INTONLY_MAX) {
        for (int64_t i = 0; i < count; ++i) acc[i] = left[i] > acc[i] ? left[i] : acc[i];
    } else if (g->b == NULL) {
        for (int64_t i = 0; i < count; ++i) acc[i] = add(acc[i], left[i]);
    } else {
        for (int64_t i = 0; i < count; ++i) acc[i] = add(acc[i], multiply(left[i], right[i]));
    }
}

/* Return the same for one accumulator, which takes them all. */
static inline int64_t join_all(const contract *g, const int64_t *left, const int64_t *right, int64_t count,
                               int64_t acc) {
    if (g->step->op == INTONLY_MAX) {
        for (int64_t k = 0; k < count; ++k) acc = left[k] > acc ? left[k] : acc;
    } else if (g->b == NULL) {
        for (int64_t k = 0; k < count; ++k) acc = add(acc, left[k]);
    } else {
        for (int64_t k = 0; k < count; ++k) acc = add(acc, multiply(left[k], right[k]));
    }
    return acc;
}

/* A run of outputs and all places of the last summed axis, place by place. */
static inline void along_outputs(const contract *g, const uint8_t *a, const uint8_t *b, int64_t count, int64_t *acc) {
    const intonly_contract *s = g->step;
    const int64_t a_step = s->a_reduced[LAST_SUMMED], b_step = s->b_reduced[LAST_SUMMED];
    int64_t left[INTONLY_CHUNK], right[INTONLY_CHUNK];
    for (int64_t k = 0; k < s->reduced[LAST_SUMMED]; ++k) {
        load_from_zero(a + k * a_step, s->a_type, s->a_strides[INTONLY_LAST], g->a_zero, count, left);
        if (b != NULL) load_from_zero(b + k * b_step, s->b_type, s->b_strides[INTONLY_LAST], s->b_zero, count, right);
        join_each(g, left, right, count, acc);
    }
}

/* The same, output by output. A factor that is the same for all outputs is read once. */
static inline void along_sum(const contract *g, const uint8_t *a, const uint8_t *b, int64_t count, int64_t *acc) {
    const intonly_contract *s = g->step;
    const int64_t a_step = s->a_reduced[LAST_SUMMED], b_step = s->b_reduced[LAST_SUMMED];
    const int64_t a_next = s->a_strides[INTONLY_LAST], b_next = s->b_strides[INTONLY_LAST];
    const int64_t length = s->reduced[LAST_SUMMED];
    int64_t left[INTONLY_CHUNK], right[INTONLY_CHUNK];
    for (int64_t k = 0; k < length; k += INTONLY_CHUNK) {
        const int64_t part = length - k < INTONLY_CHUNK ? length - k : INTONLY_CHUNK;
        for (int64_t i = 0; i < count; ++i) {
            if (i == 0 || a_next != 0)
                load_from_zero(a + i * a_next + k * a_step, s->a_type, a_step, g->a_zero, part, left);
            if (b != NULL && (i == 0 || b_next != 0))
                load_from_zero(b + i * b_next + k * b_step, s->b_type, b_step, s->b_zero, part, right);
            acc[i] = join_all(g, left, right, part, acc[i]);
        }
    }
}

/* Return whether that order is faster: its inner loop is longer, or long enough and one of two factors is read once. */
static inline int sums_are_long(const contract *g, int64_t outputs) {
    const int64_t length = g->step->reduced[LAST_SUMMED];
    const int a_once = g->step->a_strides[INTONLY_LAST] == 0, b_once = g->step->b_strides[INTONLY_LAST] == 0;
    return length >= outputs || (g->b != NULL && (a_once || b_once) && length >= 16);
}

/* Sums of a run of outputs at place `first` of the last axis, from their bias on. */
static inline void sum_run(const contract *g, int64_t first, int64_t count, int64_t *acc) {
    const intonly_contract *s = g->step;
    const uint8_t *a = g->a + g->walk.offset[A] + first * s->a_strides[INTONLY_LAST];
    const uint8_t *b = g->b == NULL ? NULL : g->b + g->walk.offset[B] + first * s->b_strides[INTONLY_LAST];
    void (*sum)(const contract *, const uint8_t *, const uint8_t *, int64_t, int64_t *) =
        sums_are_long(g, count) ? along_sum : along_outputs;
    for (int64_t k = 0; k < s->reduced[0]; ++k) {
        for (int64_t l = 0; l < s->reduced[1]; ++l) {
            for (int64_t m = 0; m < s->reduced[2]; ++m) {
                const uint8_t *a_at = a + k * s->a_reduced[0] + l * s->a_reduced[1] + m * s->a_reduced[2];
                const int64_t b_at = k * s->b_reduced[0] + l * s->b_reduced[1] + m * s->b_reduced[2];
                sum(g, a_at, b == NULL ? NULL : b + b_at, count, acc);
            }
        }
    }
}

static inline void contract_any(const void *step, uint8_t *const *bases, unsigned part, unsigned parts) {
    const intonly_contract *s = (const intonly_contract *)step;
    const int64_t *const strides[OPERANDS] = CONTRACT_STRIDES(s);
    contract g;
    contract_begin(&g, s, bases);
    g.walk.extent = s->extent;
    g.walk.operands = 0;
    for (int k = 0; k < OPERANDS; ++k) intonly_walk_operand(&g.walk, strides[k]);
    for (intonly_walk_start(&g.walk, part, parts); g.walk.rows > 0; intonly_walk_next(&g.walk)) {
        for (int64_t i = g.walk.first; i < g.walk.end; i += INTONLY_CHUNK) {
            const int64_t count = g.walk.end - i < INTONLY_CHUNK ? g.walk.end - i : INTONLY_CHUNK;
            int64_t places[OPERANDS], acc[INTONLY_CHUNK];
            for (int k = 0; k < OPERANDS; ++k) places[k] = g.walk.offset[k] + i * strides[k][INTONLY_LAST];
            begin_run(&g, places, count, acc);
            sum_run(&g, i, count, acc);
            finish_run(&g, places, count, acc);
        }
    }
}

#endif
