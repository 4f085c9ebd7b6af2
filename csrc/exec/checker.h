/* SPDX-License-Identifier: Apache-2.0
 *
 * What the parts of the check share: a checker, its rules, and whether an operand stands inside its space.
 *
 * A check of a step is a function that returns the rule which the step breaks, or null. A reference that a step has no
 * use for must be absent, and every type must be one, so that kernels need not ask which fields count.
 */
#ifndef INTONLY_CHECKER_H
#define INTONLY_CHECKER_H

#include <stddef.h>
#include <stdint.h>

#include "exec/exec.h"
#include "exec/footprint.h"
#include "exec/reach.h"
#include "kernels/elements.h"

/* Most operands, in spaces that may be written, of a step and of steps that run beside each other. */
enum { MOST_OPERANDS = 8, MOST_BESIDE = 48 };

typedef struct checker {
    const intonly_kernels *kernels;
    const intonly_spaces *spaces;
    int64_t work; /* of all steps so far */
    int operands, beside, only_single; /* only_single: all the others have one part */
    intonly_footprint operand[MOST_OPERANDS]; /* of the step at hand */
    intonly_footprint others[MOST_BESIDE];    /* of the steps beside which it might run */
} checker;

#define REQUIRE(condition, rule)                                                                                       \
    do {                                                                                                               \
        if (!(condition)) return rule;                                                                                 \
    } while (0)

#define OBEY(check)                                                                                                    \
    do {                                                                                                               \
        const char *broken = (check);                                                                                  \
        if (broken != NULL) return broken;                                                                             \
    } while (0)

/* How a step uses an operand; taps are what a gemm reads, rounded up to 4 bytes. */
typedef enum access { READ, READ_TAPS, WRITE } access;

static inline int in_range(int64_t value, int64_t least, int64_t most) { return value >= least && value <= most; }

static inline int is_type(int64_t type) { return in_range(type, INTONLY_S8, INTONLY_S64); }

static inline int is_8_bit(int64_t type) { return type == INTONLY_S8 || type == INTONLY_U8; }

static inline int is_int32(int64_t value) { return in_range(value, INT32_MIN, INT32_MAX); }

static inline int is_absent(int64_t ref) { return ref == INTONLY_ABSENT; }

/* Whether a reference and strides are multiples of an element's size, a power of 2. */
static inline int is_aligned(int64_t bits, int64_t size) { return (bits & (size - 1)) == 0; }

/* Whether steps may write to a space: the arena, and the caller's outputs. */
static inline int may_be_written(const checker *c, size_t space) {
    return space == INTONLY_ARENA || space >= c->spaces->first_output;
}

/* Whether the operand stands inside the space that it names. */
static inline int inside(const checker *c, int64_t ref, intonly_reach reach, access use) {
    if (ref < 0) return 0;
    const size_t space = (size_t)(ref >> INTONLY_SPACE_SHIFT);
    if (space >= c->spaces->count) return 0;
    if (use == WRITE && !may_be_written(c, space)) return 0;
    const int64_t offset = ref & (INTONLY_MOST_REACH - 1);
    const int64_t slack = use == READ_TAPS && space < INTONLY_CALLER ? INTONLY_SLACK : 0;
    return offset + reach.least >= 0 && offset + reach.end <= (int64_t)c->spaces->bytes[space] + slack;
}

/* Whether an operand stands that has `run` at each place of the axes, and note that the step touches it. */
static inline int runs_stand(checker *c, int64_t ref, intonly_reach run, int axes, const int64_t *extent,
                             const int64_t *stride, access use) {
    intonly_reach reach = run;
    for (int axis = 0; axis < axes; ++axis)
        if (!intonly_reach_along(&reach, extent[axis], stride[axis])) return 0;
    if (!inside(c, ref, reach, use)) return 0;
    if (!may_be_written(c, (size_t)(ref >> INTONLY_SPACE_SHIFT))) return 1;
    if (c->operands == MOST_OPERANDS) return 0;
    c->operand[c->operands++] = intonly_footprint_of(ref, reach, run, axes, extent, stride, use == WRITE);
    return 1;
}

/* The same for an operand that is a single run. */
static inline int stands(checker *c, int64_t ref, intonly_reach run, access use) {
    return runs_stand(c, ref, run, 0, NULL, NULL, use);
}

/* Return the address of `bytes` bytes of constants; null when they are none. */
static inline const uint8_t *constants(const checker *c, int64_t ref, intonly_reach reach, int64_t alignment) {
    if (ref >> INTONLY_SPACE_SHIFT != INTONLY_CONSTANTS || !is_aligned(ref, alignment)) return NULL;
    return inside(c, ref, reach, READ) ? c->spaces->constants + ref : NULL;
}

static inline int count_work(checker *c, int64_t work) {
    c->work += work; /* each is at most INTONLY_MOST_WORK */
    return c->work <= INTONLY_MOST_WORK;
}

/* Multiply the extents of a step, each of which must be 1 or more. */
static inline int extents_multiply(const int64_t *extents, size_t count, int64_t *product) {
    for (size_t i = 0; i < count; ++i)
        if (!intonly_times(product, extents[i])) return 0;
    return 1;
}

/* Whether strides are sane, also those of an operand that is absent: kernels may step along all of them. */
static inline int strides_sane(const int64_t *extent, const int64_t *strides, int axes) {
    intonly_reach reach = intonly_reach_of(0);
    for (int axis = 0; axis < axes; ++axis)
        if (!intonly_reach_along(&reach, extent[axis], strides[axis])) return 0;
    return 1;
}

/* Whether an element of a general step stands inside at all places of the axes. `reach` holds what it has beside. */
static inline int spreads(checker *c, int64_t ref, int64_t type, intonly_reach reach, const int64_t *extent,
                          const int64_t *strides, access use) {
    const int64_t size = intonly_bytes_of(type);
    int64_t bits = ref;
    for (int axis = 0; axis < INTONLY_RANK; ++axis) bits |= strides[axis];
    reach.end += size;
    return is_aligned(bits, size) && runs_stand(c, ref, reach, INTONLY_RANK, extent, strides, use);
}

typedef struct image {
    int64_t ref, type, n, h, w;
} image;

static inline int image_sane(image v, const int64_t *extents) {
    const int64_t strides[] = {v.n, v.h, v.w};
    return strides_sane(extents, strides, 3);
}

#define IMAGE(step, x) ((image){(step)->x##_ref, (step)->x##_type, (step)->x##_n, (step)->x##_h, (step)->x##_w})

/* The same for `channels` contiguous elements at all pixels. */
static inline int pixels_stand(checker *c, image v, const int64_t *extents, int64_t channels, intonly_reach reach,
                               access use) {
    const int64_t size = intonly_bytes_of(v.type), strides[] = {v.n, v.h, v.w};
    reach.end += channels * size;
    return is_aligned(v.ref | v.n | v.h | v.w, size) && runs_stand(c, v.ref, reach, 3, extents, strides, use);
}

/* Read a table of tap offsets. Returns whether it is one; `reach` becomes that of all taps. */
static inline int taps_reach(const checker *c, int64_t ref, int64_t taps, int64_t alignment, intonly_reach *reach) {
    const int64_t *offsets = (const int64_t *)(const void *)constants(
        c, ref, intonly_reach_of(taps * (int64_t)sizeof *offsets), sizeof *offsets);
    if (offsets == NULL) return 0;
    int64_t least = offsets[0], most = offsets[0];
    for (int64_t t = 0; t < taps; ++t) {
        if (!is_aligned(offsets[t], alignment)) return 0;
        least = offsets[t] < least ? offsets[t] : least;
        most = offsets[t] > most ? offsets[t] : most;
    }
    reach->least = least;
    reach->end = most;
    return least >= -INTONLY_MOST_REACH && most <= INTONLY_MOST_REACH;
}

typedef struct epilogue {
#define FIELD(name) int64_t name;
    INTONLY_EPILOGUE(FIELD)
#undef FIELD
} epilogue;

/* The epilogue of a step that has all its fields, and of a gemm, whose constants are packed. */
#define COPY_FIELD(name) .name = step->name,
#define EPILOGUE_OF_STEP ((epilogue){INTONLY_EPILOGUE(COPY_FIELD)})
#define EPILOGUE_OF_GEMM                                                                                               \
    ((epilogue){step->form, INTONLY_ABSENT, INTONLY_ABSENT, INTONLY_ABSENT, INTONLY_ABSENT, INTONLY_ABSENT,            \
                step->residual_zero, step->zero_point, step->lo, step->hi, step->fraction_bits})

/* Check the form and the numbers of an epilogue. */
const char *intonly_check_scalars(const epilogue *e, int64_t y_type);

/* Check the constants that a step names itself. reach, zeros: the elements of them, and of x_zero, that are read. */
const char *intonly_check_constants(checker *c, const epilogue *e, int joins, intonly_reach reach, intonly_reach zeros);

/* The same for a step with general axes, and the residual that joins there. */
const char *intonly_check_spread(checker *c, const epilogue *e, int64_t r_ref, int64_t r_type, const int64_t *extent,
                                 const int64_t *r_strides, const int64_t *constant_strides,
                                 const int64_t *zero_strides);

/* Whether the step at hand may run beside those since the last that waited, and no wait is then needed before it. */
int intonly_may_be_beside(const checker *c, const intonly_head *head);

/* Note that it runs: beside the others, or after all of them have ended. */
void intonly_note_step(checker *c, const intonly_head *head);

/* The rules of each kind of step. */
#define INTONLY_CHECK(name) const char *intonly_check_##name(checker *c, const intonly_##name *step);
INTONLY_STEPS(INTONLY_CHECK)
#undef INTONLY_CHECK

#endif
