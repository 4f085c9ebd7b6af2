/* SPDX-License-Identifier: Apache-2.0
 *
 * The narrow form on rows of neighbours of at most 32 bits, with a residual of at most 16 that may join: a 16-bit stream
 * that becomes codes of 8 bits, or a product that joins one and becomes such codes. Everything is done in 32 bits, so
 * that a vector holds twice as many as in any.h. Written once, like any.h, for a compiler to make vectors of.
 */
#ifndef INTONLY_MAP_NARROW_ROWS_H
#define INTONLY_MAP_NARROW_ROWS_H

#include <stdint.h>

#include "kernels/epilogue.h"
#include "kernels/map/any.h"
#include "kernels/narrow.h"
#include "kernels/walk.h"

enum { FARTHEST_ZERO = 1 << 16 }; /* a code of 16 bits minus such a zero point fits in 32 bits by far */

static inline int is_near(int64_t zero) { return zero >= -FARTHEST_ZERO && zero <= FARTHEST_ZERO; }

static inline int are_neighbours(int64_t type, const int64_t *strides) {
    return strides[INTONLY_LAST] == intonly_bytes_of(type);
}

/* Return whether that is what a step does. */
static inline int is_narrow_rows(const intonly_map *s, uint8_t *const *bases) {
    const int64_t constant = s->constant_strides[INTONLY_LAST];
    if (s->op != INTONLY_MAP_IDENTITY || s->form != INTONLY_FORM_NARROW) return 0;
    if (s->a_type > INTONLY_S32 || !are_neighbours(s->a_type, s->a_strides)) return 0;
    if (s->y_type > INTONLY_U8 || !are_neighbours(s->y_type, s->y_strides)) return 0;
    if (constant != 0 && constant != 1) return 0;
    if (s->x_zero >= 0) {
        int64_t varies = 0;
        for (int axis = 0; axis < INTONLY_RANK; ++axis) varies |= s->zero_strides[axis];
        if (varies || s->a_type > INTONLY_U16 || !is_near(*intonly_int32_at(bases, s->x_zero))) return 0;
    }
    if (s->r_ref < 0) return 1;
    return s->r_type <= INTONLY_U16 && are_neighbours(s->r_type, s->r_strides) && is_near(s->residual_zero);
}

/* values[i] = the i-th of `count` neighbours, minus a zero point that is near, or 0. */
static inline void widened(const uint8_t *x, int64_t type, int32_t zero, int64_t count, int32_t *__restrict values) {
#define WIDEN(name, element)                                                                                           \
    case name:                                                                                                         \
        for (int64_t i = 0; i < count; ++i) {                                                                          \
            element value;                                                                                             \
            memcpy(&value, x + i * (int64_t)sizeof value, sizeof value);                                               \
            values[i] = (int32_t)value - zero;                                                                         \
        }                                                                                                              \
        break;
    switch (type) {
        WIDEN(INTONLY_S8, int8_t)
        WIDEN(INTONLY_U8, uint8_t)
        WIDEN(INTONLY_S16, int16_t)
        WIDEN(INTONLY_U16, uint16_t)
        WIDEN(INTONLY_S32, int32_t)
    default: break;
    }
#undef WIDEN
}

/* The constants of one operand: a shift to the right by p >= 1 is one by `right` = p - 1, then one by `last` = 1 that
 * rounds; for p <= 0 it is one to the `left`. */
typedef struct narrow_share {
    int32_t multiplier[INTONLY_CHUNK], right[INTONLY_CHUNK], left[INTONLY_CHUNK], last[INTONLY_CHUNK];
} narrow_share;

static inline void narrow_share_at(const int32_t *multiplier, const int8_t *shift, int64_t stride, int64_t count,
                                   narrow_share *k) {
    for (int64_t i = 0; i < count; ++i) {
        const int32_t p = shift[i * stride];
        k->multiplier[i] = multiplier[i * stride];
        k->last[i] = p > 0;
        k->right[i] = p > 0 ? p - 1 : 0;
        k->left[i] = p > 0 ? 0 : -p;
    }
}

/* Return floor(x / 2^shift), shift in 0..31: one instruction with compilers that shift a negative number so. */
static inline int32_t floor_shift(int32_t x, int32_t shift) {
    if ((-1 >> 1) == -1 && (-3 >> 1) == -2) return x >> shift;
    const int32_t sign = -(int32_t)(x < 0);
    return (int32_t)((uint32_t)(x ^ sign) >> shift) ^ sign;
}

static inline int32_t between(int32_t x, int32_t lo, int32_t hi) {
    const int32_t raised = x < lo ? lo : x;
    return raised > hi ? hi : raised;
}

/* Return one value's share of the sum: intonly_narrow_operand.
 *
 * Exactness: all of int32. What 17 bits do not hold after the first shift ends at the same limit of 16 bits as if it had
 * been moved unlimited; what they hold fits in 32 bits after a shift to the left by 15. */
static inline int32_t share_of(const narrow_share *k, int64_t i, int32_t x) {
    const int32_t first = between(floor_shift(x, k->right[i]), -65536, 65535);
    const int32_t moved = narrow_signed((uint32_t)first << k->left[i]);
    const int32_t t = between(floor_shift(moved + k->last[i], k->last[i]), INT16_MIN, INT16_MAX);
    return floor_shift(t * k->multiplier[i] + (1 << 14), 15);
}

/* Store the codes of a run: intonly_narrow_clamp. joining: null without a residual. */
static inline void finish_run(const intonly_epilogue *e, const narrow_share *own, const narrow_share *joining, int64_t count,
                              const int32_t *__restrict x, const int32_t *__restrict r, uint8_t *__restrict y) {
    const int32_t k = e->fraction_bits, lo = e->lo, hi = e->hi, constant = e->zero_point * (1 << k) + (1 << (k - 1));
    for (int64_t i = 0; i < count; ++i) {
        const int32_t sum = share_of(own, i, x[i]) + (joining == NULL ? 0 : share_of(joining, i, r[i]));
        y[i] = (uint8_t)between(floor_shift(sum + constant, k), lo, hi);
    }
}

static inline void narrow_rows(const intonly_map *s, uint8_t *const *bases, unsigned part, unsigned parts) {
    enum { ROW_A, ROW_Y, ROW_R, ROW_CONSTANT };
    const uint8_t *a = intonly_at(bases, s->a_ref), *r = intonly_at_or_null(bases, s->r_ref);
    uint8_t *y = intonly_at(bases, s->y_ref);
    const int64_t a_bytes = intonly_bytes_of(s->a_type), r_bytes = intonly_bytes_of(s->r_type);
    const int64_t stride = s->constant_strides[INTONLY_LAST];
    int64_t prepared = -1, ready = 0; /* the place whose constants are at hand, and how many */
    narrow_share own, joining;
    int32_t values[INTONLY_CHUNK], residuals[INTONLY_CHUNK];
    intonly_epilogue e;
    INTONLY_READ_EPILOGUE(s, bases, &e);
    const int32_t x_zero = e.x_zero == NULL ? 0 : *e.x_zero;
    intonly_walk walk;
    walk.extent = s->extent;
    walk.operands = 0;
    intonly_walk_operand(&walk, s->a_strides); /* in the order of ROW_A, ROW_Y, ... */
    intonly_walk_operand(&walk, s->y_strides);
    intonly_walk_operand(&walk, s->r_strides);
    intonly_walk_operand(&walk, s->constant_strides);
    for (intonly_walk_start(&walk, part, parts); walk.rows > 0; intonly_walk_next(&walk)) {
        for (int64_t i = walk.first; i < walk.end; i += INTONLY_CHUNK) {
            const int64_t count = walk.end - i < INTONLY_CHUNK ? walk.end - i : INTONLY_CHUNK;
            const int64_t at = walk.offset[ROW_CONSTANT] + i * stride;
            if (at != prepared || count > ready) {
                narrow_share_at(e.multiplier + at, e.shift + at, stride, count, &own);
                if (r != NULL) narrow_share_at(e.residual_multiplier + at, e.residual_shift + at, stride, count, &joining);
                prepared = at;
                ready = count;
            }
            uint8_t *const codes = y + walk.offset[ROW_Y] + i;
            widened(a + walk.offset[ROW_A] + i * a_bytes, s->a_type, x_zero, count, values);
            if (r == NULL) {
                finish_run(&e, &own, NULL, count, values, NULL, codes);
                continue;
            }
            widened(r + walk.offset[ROW_R] + i * r_bytes, s->r_type, e.residual_zero, count, residuals);
            finish_run(&e, &own, &joining, count, values, residuals, codes);
        }
    }
}

/* map for vectors of a compiler's making. */
static inline void map_rows(const void *step, uint8_t *const *bases, unsigned part, unsigned parts) {
    const intonly_map *s = (const intonly_map *)step;
    if (is_narrow_rows(s, bases))
        narrow_rows(s, bases, part, parts);
    else
        map_any(step, bases, part, parts);
}

#endif
