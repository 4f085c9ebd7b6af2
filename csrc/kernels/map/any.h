/* SPDX-License-Identifier: Apache-2.0
 *
 * map for any types and strides: chunks along the last axis are widened, go through one operation and the epilogue,
 * and are narrowed. ref.c compiles it as plain C, the vector kernels once more for what they do not do themselves: the
 * loops over a chunk have no branch in them, so that a compiler makes vectors of them.
 */
#ifndef INTONLY_MAP_ANY_H
#define INTONLY_MAP_ANY_H

#include <stdint.h>

#include "kernels/elements.h"
#include "kernels/epilogue.h"
#include "kernels/walk.h"

enum { A, B, C, Y, R, CONSTANT, ZERO };
enum { WORTH_A_DIVISOR = 8 };

typedef struct map {
    const intonly_map *step;
    const uint8_t *a, *b, *c, *r; /* all but a may be null */
    uint8_t *y;
    int64_t divisor; /* the last that was prepared; 0 = none */
    intonly_divisor prepared;
    intonly_epilogue epilogue;
    intonly_walk walk;
} map;

static inline int64_t from_zero(int64_t x, int64_t zero) { return intonly_signed((uint64_t)x - (uint64_t)zero); }

static inline int64_t add(int64_t a, int64_t b, int64_t sign) {
    return intonly_signed(sign < 0 ? (uint64_t)a - (uint64_t)b : (uint64_t)a + (uint64_t)b);
}

static inline int64_t multiply(int64_t a, int64_t b) { return intonly_signed((uint64_t)a * (uint64_t)b); }

/* a[i] = the operation on a[i], b[i] and c[i]. */
static inline void apply(map *g, int64_t count, int64_t *restrict a, const int64_t *b, const int64_t *c) {
    const intonly_map *s = g->step;
#define EACH(expression)                                                                                               \
    for (int64_t i = 0; i < count; ++i) a[i] = (expression);                                                           \
    break
    switch (s->op) {
    case INTONLY_MAP_ADD: EACH(add(from_zero(a[i], s->a_zero), from_zero(b[i], s->b_zero), s->sign));
    case INTONLY_MAP_MUL: EACH(multiply(from_zero(a[i], s->a_zero), from_zero(b[i], s->b_zero)));
    case INTONLY_MAP_LOOKUP: intonly_pick(g->b, s->b_type, s->b_count, s->offset, count, a); break;
    case INTONLY_MAP_FLOOR_DIV:
        if (s->b_strides[INTONLY_LAST] == 0 && *b >= 1 && (count >= WORTH_A_DIVISOR || *b == g->divisor)) {
            if (*b != g->divisor) g->prepared = intonly_divisor_of((uint64_t)*b);
            g->divisor = *b;
            const intonly_divisor by = g->prepared;
            EACH(intonly_floor_div_by(a[i], &by));
        }
        EACH(intonly_floor_div_one(a[i], b[i]));
    case INTONLY_MAP_ISQRT: EACH(intonly_isqrt_one(a[i]));
    case INTONLY_MAP_MINIMUM: EACH(a[i] < b[i] ? a[i] : b[i]);
    case INTONLY_MAP_MAXIMUM: EACH(a[i] > b[i] ? a[i] : b[i]);
    case INTONLY_MAP_LESS: EACH(a[i] < b[i]);
    case INTONLY_MAP_LESS_EQUAL: EACH(a[i] <= b[i]);
    case INTONLY_MAP_EQUAL: EACH(a[i] == b[i]);
    case INTONLY_MAP_GREATER_EQUAL: EACH(a[i] >= b[i]);
    case INTONLY_MAP_GREATER: EACH(a[i] > b[i]);
    case INTONLY_MAP_SELECT: EACH(a[i] != 0 ? b[i] : c[i]);
    default: break; /* identity */
    }
#undef EACH
}

/* A chunk at place `first` of the last axis. */
static inline void chunk(map *g, int64_t first, int64_t count) {
    const intonly_map *s = g->step;
    const int64_t *offset = g->walk.offset;
    int64_t a[INTONLY_CHUNK], b[INTONLY_CHUNK], c[INTONLY_CHUNK], joining[INTONLY_CHUNK];
#define LOAD(name, operand, values)                                                                                    \
    intonly_load(g->name + offset[operand] + first * s->name##_strides[INTONLY_LAST], s->name##_type,                  \
                 s->name##_strides[INTONLY_LAST], count, values)
    LOAD(a, A, a);
    if (g->b != NULL && s->op != INTONLY_MAP_LOOKUP) LOAD(b, B, b);
    if (g->c != NULL) LOAD(c, C, c);
    if (g->epilogue.residual_multiplier != NULL) LOAD(r, R, joining);
#undef LOAD
    apply(g, count, a, b, c);
    const int64_t constant = s->constant_strides[INTONLY_LAST], zero = s->zero_strides[INTONLY_LAST];
    intonly_finish(&g->epilogue, offset[CONSTANT] + first * constant, constant, offset[ZERO] + first * zero, zero,
                   joining, count, a);
    const int64_t stride = s->y_strides[INTONLY_LAST];
    intonly_store(a, count, g->y + offset[Y] + first * stride, s->y_type, stride);
}

static inline void map_any(const void *step, uint8_t *const *bases, unsigned part, unsigned parts) {
    const intonly_map *s = (const intonly_map *)step;
    map g;
    g.step = s;
    g.divisor = 0;
    g.a = intonly_at(bases, s->a_ref);
    g.b = intonly_at_or_null(bases, s->b_ref);
    g.c = intonly_at_or_null(bases, s->c_ref);
    g.y = intonly_at(bases, s->y_ref);
    g.r = intonly_at_or_null(bases, s->r_ref);
    INTONLY_READ_EPILOGUE(s, bases, &g.epilogue);
    if (g.r == NULL) g.epilogue.residual_multiplier = NULL;

    intonly_walk *walk = &g.walk;
    walk->extent = s->extent;
    walk->operands = 0;
    intonly_walk_operand(walk, s->a_strides); /* in the order of A, B, C, ... */
    intonly_walk_operand(walk, s->b_strides);
    intonly_walk_operand(walk, s->c_strides);
    intonly_walk_operand(walk, s->y_strides);
    intonly_walk_operand(walk, s->r_strides);
    intonly_walk_operand(walk, s->constant_strides);
    intonly_walk_operand(walk, s->zero_strides);
    for (intonly_walk_start(walk, part, parts); walk->rows > 0; intonly_walk_next(walk))
        for (int64_t i = walk->first; i < walk->end; i += INTONLY_CHUNK)
            chunk(&g, i, walk->end - i < INTONLY_CHUNK ? walk->end - i : INTONLY_CHUNK);
}

#endif
