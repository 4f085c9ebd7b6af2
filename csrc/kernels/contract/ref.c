/* SPDX-License-Identifier: Apache-2.0
 *
 * contract in plain C. A run of outputs along the last axis is summed in one of two orders, whichever has the longer
 * inner loop: along the last summed axis, one output after the other, or along the outputs.
 */
#include "kernels/contract/contract.h"

#include "kernels/elements.h"
#include "kernels/epilogue.h"
#include "kernels/walk.h"

enum { A, B, Y, R, BIAS, CONSTANT, ZERO };

typedef struct contract {
    const intonly_contract *step;
    const uint8_t *a, *b, *r, *bias; /* b, r and bias may be null */
    uint8_t *y;
    intonly_epilogue epilogue;
    intonly_walk walk;
} contract;

/* Read a chunk minus its zero point. */
static void load_from_zero(const uint8_t *x, int64_t type, int64_t stride, int64_t zero, int64_t count, int64_t *wide) {
    intonly_load(x, type, stride, count, wide);
    if (zero == 0) return;
    for (int64_t i = 0; i < count; ++i) wide[i] = intonly_signed((uint64_t)wide[i] - (uint64_t)zero);
}

static int64_t add(int64_t a, int64_t b) { return intonly_signed((uint64_t)a + (uint64_t)b); }

static int64_t multiply(int64_t a, int64_t b) { return intonly_signed((uint64_t)a * (uint64_t)b); }

/* Return the sum (or maximum) over a chunk of summed places, joined to what `acc` holds. */
static int64_t along_sum(const contract *g, const uint8_t *a, const uint8_t *b, int64_t count, int64_t acc) {
    const intonly_contract *s = g->step;
    const int64_t last = INTONLY_REDUCED - 1;
    int64_t left[INTONLY_CHUNK], right[INTONLY_CHUNK];
    if (s->op == INTONLY_MAX) {
        intonly_load(a, s->a_type, s->a_reduced[last], count, left);
        for (int64_t k = 0; k < count; ++k) acc = left[k] > acc ? left[k] : acc;
        return acc;
    }
    load_from_zero(a, s->a_type, s->a_reduced[last], s->a_zero, count, left);
    if (b == NULL) {
        for (int64_t k = 0; k < count; ++k) acc = add(acc, left[k]);
        return acc;
    }
    load_from_zero(b, s->b_type, s->b_reduced[last], s->b_zero, count, right);
    for (int64_t k = 0; k < count; ++k) acc = add(acc, multiply(left[k], right[k]));
    return acc;
}

/* Join one summed place to a run of outputs. */
static void along_outputs(const contract *g, const uint8_t *a, const uint8_t *b, int64_t count, int64_t *acc) {
    const intonly_contract *s = g->step;
    int64_t left[INTONLY_CHUNK], right[INTONLY_CHUNK];
    if (s->op == INTONLY_MAX) {
        intonly_load(a, s->a_type, s->a_strides[INTONLY_LAST], count, left);
        for (int64_t i = 0; i < count; ++i) acc[i] = left[i] > acc[i] ? left[i] : acc[i];
        return;
    }
    load_from_zero(a, s->a_type, s->a_strides[INTONLY_LAST], s->a_zero, count, left);
    if (b == NULL) {
        for (int64_t i = 0; i < count; ++i) acc[i] = add(acc[i], left[i]);
        return;
    }
    load_from_zero(b, s->b_type, s->b_strides[INTONLY_LAST], s->b_zero, count, right);
    for (int64_t i = 0; i < count; ++i) acc[i] = add(acc[i], multiply(left[i], right[i]));
}

/* Join all places of the last summed axis to a run of outputs. */
static void sum_last_axis(const contract *g, const uint8_t *a, const uint8_t *b, int64_t count, int64_t *acc) {
    const intonly_contract *s = g->step;
    const int64_t length = s->reduced[INTONLY_REDUCED - 1];
    const int64_t a_step = s->a_reduced[INTONLY_REDUCED - 1], b_step = s->b_reduced[INTONLY_REDUCED - 1];
    if (length < count) {
        for (int64_t k = 0; k < length; ++k)
            along_outputs(g, a + k * a_step, b == NULL ? NULL : b + k * b_step, count, acc);
        return;
    }
    for (int64_t i = 0; i < count; ++i) {
        const uint8_t *a_row = a + i * s->a_strides[INTONLY_LAST];
        const uint8_t *b_row = b == NULL ? NULL : b + i * s->b_strides[INTONLY_LAST];
        for (int64_t k = 0; k < length; k += INTONLY_CHUNK)
            acc[i] = along_sum(g, a_row + k * a_step, b == NULL ? NULL : b_row + k * b_step,
                               length - k < INTONLY_CHUNK ? length - k : INTONLY_CHUNK, acc[i]);
    }
}

/* A run of outputs at place `first` of the last axis. */
static void run_of_outputs(const contract *g, int64_t first, int64_t count) {
    const intonly_contract *s = g->step;
    const int64_t *offset = g->walk.offset;
    const uint8_t *a = g->a + offset[A] + first * s->a_strides[INTONLY_LAST];
    const uint8_t *b = g->b == NULL ? NULL : g->b + offset[B] + first * s->b_strides[INTONLY_LAST];
    int64_t acc[INTONLY_CHUNK], joining[INTONLY_CHUNK];
    for (int64_t i = 0; i < count; ++i) acc[i] = s->op == INTONLY_MAX ? INT64_MIN : 0;
    if (g->bias != NULL && s->op != INTONLY_MAX) {
        const int64_t stride = s->bias_strides[INTONLY_LAST];
        intonly_load(g->bias + offset[BIAS] + first * stride, INTONLY_S32, stride, count, acc);
    }
    for (int64_t k = 0; k < s->reduced[0]; ++k) {
        for (int64_t l = 0; l < s->reduced[1]; ++l) {
            for (int64_t m = 0; m < s->reduced[2]; ++m) {
                const uint8_t *a_at = a + k * s->a_reduced[0] + l * s->a_reduced[1] + m * s->a_reduced[2];
                const int64_t b_at = k * s->b_reduced[0] + l * s->b_reduced[1] + m * s->b_reduced[2];
                sum_last_axis(g, a_at, b == NULL ? NULL : b + b_at, count, acc);
            }
        }
    }
    if (g->epilogue.residual_multiplier != NULL) {
        const int64_t stride = s->r_strides[INTONLY_LAST];
        intonly_load(g->r + offset[R] + first * stride, s->r_type, stride, count, joining);
    }
    const int64_t constant = s->constant_strides[INTONLY_LAST], zero = s->zero_strides[INTONLY_LAST];
    intonly_finish(&g->epilogue, offset[CONSTANT] + first * constant, constant, offset[ZERO] + first * zero, zero,
                   joining, count, acc);
    const int64_t stride = s->y_strides[INTONLY_LAST];
    intonly_store(acc, count, g->y + offset[Y] + first * stride, s->y_type, stride);
}

void intonly_contract_ref(const void *step, uint8_t *const *bases, unsigned part, unsigned parts) {
    const intonly_contract *s = (const intonly_contract *)step;
    contract g;
    g.step = s;
    g.a = intonly_at(bases, s->a_ref);
    g.b = intonly_at_or_null(bases, s->b_ref);
    g.y = intonly_at(bases, s->y_ref);
    g.r = intonly_at_or_null(bases, s->r_ref);
    g.bias = intonly_at_or_null(bases, s->bias);
    INTONLY_READ_EPILOGUE(s, bases, &g.epilogue);
    if (g.r == NULL) g.epilogue.residual_multiplier = NULL;

    intonly_walk *walk = &g.walk;
    walk->extent = s->extent;
    walk->operands = 0;
    intonly_walk_operand(walk, s->a_strides); /* in the order of A, B, Y, ... */
    intonly_walk_operand(walk, s->b_strides);
    intonly_walk_operand(walk, s->y_strides);
    intonly_walk_operand(walk, s->r_strides);
    intonly_walk_operand(walk, s->bias_strides);
    intonly_walk_operand(walk, s->constant_strides);
    intonly_walk_operand(walk, s->zero_strides);
    for (intonly_walk_start(walk, part, parts); walk->rows > 0; intonly_walk_next(walk))
        for (int64_t i = walk->first; i < walk->end; i += INTONLY_CHUNK)
            run_of_outputs(&g, i, walk->end - i < INTONLY_CHUNK ? walk->end - i : INTONLY_CHUNK);
}
