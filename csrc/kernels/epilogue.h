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
#include "kernels/elements.h"

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

/* The constants of a run: one for each accumulator, or one for all. */
typedef struct intonly_run {
    int64_t multiplier[INTONLY_CHUNK], shift[INTONLY_CHUNK];
} intonly_run;

static inline void intonly_run_of(const int32_t *multiplier, const int8_t *shift, int64_t stride, int64_t count,
                                  intonly_run *run) {
    const uint8_t *m = (const uint8_t *)multiplier, *s = (const uint8_t *)shift;
    intonly_load(m, INTONLY_S32, stride * (int64_t)sizeof *multiplier, count, run->multiplier);
    if (shift != NULL) intonly_load(s, INTONLY_S8, stride, count, run->shift);
}

/* x[i] -= zero[i * stride], modulo 2^64 */
static inline void intonly_subtract(const int32_t *zero, int64_t stride, int64_t count, int64_t *restrict x) {
    int64_t zeros[INTONLY_CHUNK];
    intonly_load((const uint8_t *)zero, INTONLY_S32, stride * (int64_t)sizeof *zero, count, zeros);
    for (int64_t i = 0; i < count; ++i) x[i] = intonly_signed((uint64_t)x[i] - (uint64_t)zeros[i]);
}

/* The wide form of a run. by: 1, or 0 for constants that are the same for all. joining: null without a residual. */
static inline void intonly_finish_wide(const intonly_epilogue *e, const intonly_run *own, const intonly_run *joining,
                                       int64_t by, const int64_t *restrict residual, int64_t count,
                                       int64_t *restrict x) {
    for (int64_t i = 0; i < count; ++i) {
        uint64_t sum = (uint64_t)x[i] * (uint64_t)own->multiplier[i * by];
        if (joining != NULL)
            sum += ((uint64_t)residual[i] - (uint64_t)(int64_t)e->residual_zero) *
                   (uint64_t)joining->multiplier[i * by];
        x[i] = intonly_round_clamp(sum, (uint64_t)own->shift[i * by], e->zero_point, e->lo, e->hi);
    }
}

/* One operand of the narrow form, in place of its values. What 47 bits do not hold saturates whatever the shift is. */
static inline void intonly_finish_operand(const intonly_run *own, int64_t by, int64_t count, int64_t *restrict x) {
    const int64_t limit = INT64_C(1) << 47;
    for (int64_t i = 0; i < count; ++i)
        x[i] = intonly_narrow_operand(intonly_clamp(x[i], -limit, limit), own->multiplier[i * by], own->shift[i * by]);
}

/* Turn at most INTONLY_CHUNK accumulators into what is stored, in place.
 *
 * at, stride: index of the constants of the first accumulator, and the step from one to the next; zero_at, zero_stride
 * the same for x_zero. residual: a value for each accumulator, used up; read only when the epilogue has a residual.
 *
 * The loops have no branch and go from neighbour to neighbour, so that a compiler makes vectors of them. */
static inline void intonly_finish(const intonly_epilogue *e, int64_t at, int64_t stride, int64_t zero_at,
                                  int64_t zero_stride, int64_t *residual, int64_t count, int64_t *x) {
    const int joins = e->residual_multiplier != NULL, same = stride == 0;
    const int64_t constants = same ? 1 : count;
    intonly_run own, joining;
    if (e->form == INTONLY_FORM_ACC) return;
    intonly_run_of(e->multiplier + at, e->shift + at, stride, constants, &own);
    if (joins) {
        const int8_t *shift = e->residual_shift == NULL ? NULL : e->residual_shift + at;
        intonly_run_of(e->residual_multiplier + at, shift, stride, constants, &joining);
    }
    if (e->x_zero != NULL) intonly_subtract(e->x_zero + zero_at, zero_stride, count, x);
    if (e->form == INTONLY_FORM_WIDE) {
        if (joins && same)
            intonly_finish_wide(e, &own, &joining, 0, residual, count, x);
        else if (joins)
            intonly_finish_wide(e, &own, &joining, 1, residual, count, x);
        else if (same)
            intonly_finish_wide(e, &own, NULL, 0, NULL, count, x);
        else
            intonly_finish_wide(e, &own, NULL, 1, NULL, count, x);
        return;
    }
    if (same)
        intonly_finish_operand(&own, 0, count, x);
    else
        intonly_finish_operand(&own, 1, count, x);
    if (joins) {
        intonly_subtract(&e->residual_zero, 0, count, residual);
        if (same)
            intonly_finish_operand(&joining, 0, count, residual);
        else
            intonly_finish_operand(&joining, 1, count, residual);
        for (int64_t i = 0; i < count; ++i) x[i] += residual[i];
    }
    for (int64_t i = 0; i < count; ++i)
        x[i] = intonly_narrow_clamp((int32_t)x[i], e->fraction_bits, e->zero_point, e->lo, e->hi);
}

#endif
