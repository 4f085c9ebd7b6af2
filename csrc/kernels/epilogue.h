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

/* Turn accumulators into what is stored, in place.
 *
 * at, stride: index of the constants of the first accumulator, and the step from one to the next; zero_at, zero_stride
 * the same for x_zero. residual: a value for each accumulator, read only when the epilogue has a residual. */
static inline void intonly_finish(const intonly_epilogue *e, int64_t at, int64_t stride, int64_t zero_at,
                                  int64_t zero_stride, const int64_t *residual, int64_t count, int64_t *x) {
    const int joins = e->residual_multiplier != NULL;
    if (e->form == INTONLY_FORM_ACC) return;
    for (int64_t i = 0; i < count; ++i, at += stride, zero_at += zero_stride) {
        const int32_t zero = e->x_zero == NULL ? 0 : e->x_zero[zero_at];
        if (e->form == INTONLY_FORM_WIDE) {
            uint64_t sum = intonly_product(x[i], zero, e->multiplier[at]);
            if (joins) sum += intonly_product(residual[i], e->residual_zero, e->residual_multiplier[at]);
            x[i] = intonly_round_clamp(sum, (unsigned)e->shift[at], e->zero_point, e->lo, e->hi);
        } else {
            int32_t sum = intonly_narrow_operand(intonly_narrow_value(x[i], zero), e->multiplier[at], e->shift[at]);
            if (joins)
                sum += intonly_narrow_operand(intonly_narrow_value(residual[i], e->residual_zero),
                                              e->residual_multiplier[at], e->residual_shift[at]);
            x[i] = intonly_narrow_clamp(sum, e->fraction_bits, e->zero_point, e->lo, e->hi);
        }
    }
}

#endif
