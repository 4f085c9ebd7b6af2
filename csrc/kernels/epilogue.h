/* SPDX-License-Identifier: Apache-2.0
 *
 * What happens to accumulators before they are stored, a chunk at a time: the law of arith.h with constants that vary
 * along the chunk.
 */
#ifndef INTONLY_EPILOGUE_H
#define INTONLY_EPILOGUE_H

#include <stddef.h>
#include <stdint.h>

#include "arith.h"
#include "exec/program.h"

typedef struct intonly_epilogue {
    int64_t form;
    const int32_t *multiplier;
    const int8_t *shift;
    const int32_t *residual_multiplier; /* null when no residual joins */
    const int8_t *residual_shift;       /* narrow form only */
    const int32_t *x_zero;              /* null = 0 */
    int32_t residual_zero, zero_point, lo, hi;
    int fraction_bits; /* narrow form only */
} intonly_epilogue;

static inline const int32_t *intonly_int32_at(uint8_t *const *bases, int64_t ref) {
    return (const int32_t *)(const void *)intonly_at_or_null(bases, ref);
}

static inline const int8_t *intonly_int8_at(uint8_t *const *bases, int64_t ref) {
    return (const int8_t *)intonly_at_or_null(bases, ref);
}

/* Fill in an epilogue from a step that has the fields of INTONLY_EPILOGUE. */
#define INTONLY_READ_EPILOGUE(step, bases, epilogue)                                                                   \
    do {                                                                                                               \
        (epilogue)->multiplier = intonly_int32_at(bases, (step)->multiplier);                                          \
        (epilogue)->shift = intonly_int8_at(bases, (step)->shift);                                                     \
        (epilogue)->residual_multiplier = intonly_int32_at(bases, (step)->residual_multiplier);                        \
        (epilogue)->residual_shift = intonly_int8_at(bases, (step)->residual_shift);                                   \
        (epilogue)->x_zero = intonly_int32_at(bases, (step)->x_zero);                                                  \
        INTONLY_READ_LIMITS(step, epilogue);                                                                           \
    } while (0)

/* Fill in what every epilogue has, wherever its constants are. */
#define INTONLY_READ_LIMITS(step, epilogue)                                                                            \
    do {                                                                                                               \
        (epilogue)->form = (step)->form;                                                                               \
        (epilogue)->residual_zero = (int32_t)(step)->residual_zero;                                                    \
        (epilogue)->zero_point = (int32_t)(step)->zero_point;                                                          \
        (epilogue)->lo = (int32_t)(step)->lo;                                                                          \
        (epilogue)->hi = (int32_t)(step)->hi;                                                                          \
        (epilogue)->fraction_bits = (int)(step)->fraction_bits;                                                        \
    } while (0)

/* Return (x - zero) for the narrow form. What 47 bits do not hold saturates whatever the shift is. */
static inline int64_t intonly_narrow_value(int64_t x, int32_t zero) {
    const int64_t limit = INT64_C(1) << 47, value = intonly_signed((uint64_t)x - (uint64_t)(int64_t)zero);
    return value < -limit ? -limit : value > limit ? limit : value;
}

/* The wide form of a run of accumulators, of which zero number i is to be subtracted. */
static inline void intonly_finish_wide(const intonly_epilogue *e, const int32_t *multiplier, const int8_t *shift,
                                       const int32_t *residual_multiplier, int64_t stride, const int32_t *x_zero,
                                       int64_t zero_stride, const int64_t *residual, int64_t count, int64_t *x) {
    for (int64_t i = 0; i < count; ++i) {
        uint64_t sum = intonly_product(x[i], x_zero[i * zero_stride], multiplier[i * stride]);
        if (residual_multiplier != NULL)
            sum += intonly_product(residual[i], e->residual_zero, residual_multiplier[i * stride]);
        x[i] = intonly_round_clamp(sum, (unsigned)shift[i * stride], e->zero_point, e->lo, e->hi);
    }
}

/* One operand of the narrow form, in place of its values. */
static inline void intonly_finish_operand(const int32_t *multiplier, const int8_t *shift, int64_t stride,
                                          const int32_t *zero, int64_t zero_stride, int64_t count, int64_t *x) {
    for (int64_t i = 0; i < count; ++i)
        x[i] = intonly_narrow_operand(intonly_narrow_value(x[i], zero[i * zero_stride]), multiplier[i * stride],
                                      shift[i * stride]);
}

/* Turn accumulators into what is stored, in place.
 *
 * at, stride: index of the constants of the first accumulator, and the step from one to the next; zero_at, zero_stride
 * the same for x_zero. residual: a value for each accumulator, used up; read only when the epilogue has a residual.
 *
 * The loops have no branch, and the common strides of constants are known in them, so that a compiler makes vectors of
 * them. */
static inline void intonly_finish(const intonly_epilogue *e, int64_t at, int64_t stride, int64_t zero_at,
                                  int64_t zero_stride, int64_t *residual, int64_t count, int64_t *x) {
    static const int32_t none = 0;
    const int32_t *x_zero = e->x_zero == NULL ? &none : e->x_zero + zero_at;
    if (e->x_zero == NULL) zero_stride = 0;
    if (e->form == INTONLY_FORM_ACC) return;
    const int32_t *m = e->multiplier + at, *m_r = e->residual_multiplier == NULL ? NULL : e->residual_multiplier + at;
    const int8_t *s = e->shift + at, *s_r = e->residual_shift == NULL ? NULL : e->residual_shift + at;
#define FOR_STRIDES(call)                                                                                              \
    do {                                                                                                               \
        if (stride == 0 && zero_stride == 0)                                                                           \
            call(0, 0);                                                                                                \
        else if (stride == 1 && zero_stride == 0)                                                                      \
            call(1, 0);                                                                                                \
        else                                                                                                           \
            call(stride, zero_stride);                                                                                 \
    } while (0)
    if (e->form == INTONLY_FORM_WIDE) {
#define WIDE(by, zero_by) intonly_finish_wide(e, m, s, NULL, by, x_zero, zero_by, NULL, count, x)
#define WIDE_JOIN(by, zero_by) intonly_finish_wide(e, m, s, m_r, by, x_zero, zero_by, residual, count, x)
        if (m_r == NULL)
            FOR_STRIDES(WIDE);
        else
            FOR_STRIDES(WIDE_JOIN);
#undef WIDE_JOIN
#undef WIDE
        return;
    }
#define NARROW(by, zero_by) intonly_finish_operand(m, s, by, x_zero, zero_by, count, x)
#define NARROW_RESIDUAL(by, zero_by) intonly_finish_operand(m_r, s_r, by, &e->residual_zero, 0, count, residual)
    FOR_STRIDES(NARROW);
    if (m_r != NULL) {
        FOR_STRIDES(NARROW_RESIDUAL);
        for (int64_t i = 0; i < count; ++i) x[i] += residual[i];
    }
#undef NARROW_RESIDUAL
#undef NARROW
#undef FOR_STRIDES
    for (int64_t i = 0; i < count; ++i)
        x[i] = intonly_narrow_clamp((int32_t)x[i], e->fraction_bits, e->zero_point, e->lo, e->hi);
}

#endif
