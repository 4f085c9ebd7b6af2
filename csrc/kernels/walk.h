/* SPDX-License-Identifier: Apache-2.0
 *
 * Walks over the outer axes of a general step and keeps the byte (or element) offset of every operand, by additions
 * only. The last axis is left to the kernel, which goes along it in chunks.
 */
#ifndef INTONLY_WALK_H
#define INTONLY_WALK_H

#include <stdint.h>

#include "arith.h"
#include "exec/program.h"
#include "kernels/kernels.h"

#define INTONLY_LAST (INTONLY_RANK - 1)
#define INTONLY_WALKED 8 /* most operands */

typedef struct intonly_walk {
    const int64_t *extent;
    int operands;
    const int64_t *strides[INTONLY_WALKED]; /* [INTONLY_RANK] of each operand */
    int64_t offset[INTONLY_WALKED];         /* of each operand at the present place, last axis at 0 */
    int64_t index[INTONLY_LAST];
    int64_t rows;        /* places left of this part */
    int64_t first, end;  /* the share of the last axis, the same at each place */
} intonly_walk;

static inline void intonly_walk_operand(intonly_walk *walk, const int64_t *strides) {
    walk->strides[walk->operands++] = strides;
}

/* Go to the first place of part `part`. All operands have been named before.
 *
 * Parts share the outer axes; where those have fewer places than there are parts, they share the last axis. */
static inline void intonly_walk_start(intonly_walk *walk, unsigned part, unsigned parts) {
    int64_t rows = 1, first = 0, end = 0;
    for (int axis = 0; axis < INTONLY_LAST; ++axis) rows *= walk->extent[axis];
    if (rows >= parts) {
        intonly_share(rows, part, parts, &first, &end);
        walk->rows = end - first;
        walk->first = 0;
        walk->end = walk->extent[INTONLY_LAST];
    } else {
        walk->rows = rows;
        intonly_share(walk->extent[INTONLY_LAST], part, parts, &walk->first, &walk->end);
    }
    for (int k = 0; k < walk->operands; ++k) walk->offset[k] = 0;
    for (int axis = INTONLY_LAST - 1; axis >= 0; --axis) {
        const int64_t extent = walk->extent[axis];
        const int64_t whole = extent < 1 ? 0 : (int64_t)intonly_quotient((uint64_t)first, (uint64_t)extent);
        walk->index[axis] = first - whole * extent;
        first = whole;
        for (int k = 0; k < walk->operands; ++k) walk->offset[k] += walk->index[axis] * walk->strides[k][axis];
    }
}

/* Go to the next place. */
static inline void intonly_walk_next(intonly_walk *walk) {
    --walk->rows;
    for (int axis = INTONLY_LAST - 1; axis >= 0; --axis) {
        for (int k = 0; k < walk->operands; ++k) walk->offset[k] += walk->strides[k][axis];
        if (++walk->index[axis] < walk->extent[axis]) return;
        walk->index[axis] = 0;
        for (int k = 0; k < walk->operands; ++k) walk->offset[k] -= walk->extent[axis] * walk->strides[k][axis];
    }
}

#endif
