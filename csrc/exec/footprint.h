/* SPDX-License-Identifier: Apache-2.0
 *
 * Which bytes a step touches of one operand, as far as it takes to see that two steps touch none in common. A kernel
 * may read a few more (exec.h), but no result depends on them.
 */
#ifndef INTONLY_FOOTPRINT_H
#define INTONLY_FOOTPRINT_H

#include <stdint.h>

#include "arith.h"
#include "exec/program.h"
#include "exec/reach.h"

/* `run` at each place of the axes, counted from where `ref` points; `reach` is all of it. An axis of extent 1 or stride
 * 0 is left out. */
typedef struct intonly_footprint {
    int64_t ref;
    intonly_reach reach, run;
    int axes, writes, single; /* single: the step has one part */
    int64_t extent[INTONLY_RANK], stride[INTONLY_RANK];
} intonly_footprint;

static inline intonly_footprint intonly_footprint_of(int64_t ref, intonly_reach reach, intonly_reach run, int axes,
                                                     const int64_t *extent, const int64_t *stride, int writes) {
    intonly_footprint f = {ref, reach, run, 0, writes, 0, {0}, {0}};
    for (int axis = 0; axis < axes; ++axis) {
        if (extent[axis] == 1 || stride[axis] == 0) continue;
        f.extent[f.axes] = extent[axis];
        f.stride[f.axes++] = stride[axis];
    }
    return f;
}

/* Return value modulo period, 0..period-1. */
static inline int64_t intonly_modulo(int64_t value, int64_t period) {
    const int64_t size = value < 0 ? -value : value;
    const int64_t rest = size - (int64_t)intonly_quotient((uint64_t)size, (uint64_t)period) * period;
    return value < 0 && rest > 0 ? period - rest : rest;
}

/* Return what is left of a footprint when its places are counted modulo a period: a run without the axes whose strides
 * are whole periods. */
static inline intonly_reach intonly_folded(const intonly_footprint *f, int64_t period) {
    intonly_reach run = f->run;
    for (int axis = 0; axis < f->axes; ++axis)
        if (intonly_modulo(f->stride[axis], period) != 0)
            (void)intonly_reach_along(&run, f->extent[axis], f->stride[axis]);
    return run;
}

/* Whether two footprints are apart in each period. */
static inline int intonly_apart_in(const intonly_footprint *a, const intonly_footprint *b, int64_t period) {
    const intonly_reach x = intonly_folded(a, period), y = intonly_folded(b, period);
    const int64_t from_x_to_y = intonly_modulo(b->ref + y.least - a->ref - x.least, period);
    return from_x_to_y >= x.end - x.least && from_x_to_y + (y.end - y.least) <= period;
}

/* Whether two footprints are known to have no byte in common: they lie one behind the other, or next to each other in
 * each row of something that the strides of one of them show: a margin and the image in it, parts of a concat. */
static inline int intonly_apart(const intonly_footprint *a, const intonly_footprint *b) {
    if (a->ref >> INTONLY_SPACE_SHIFT != b->ref >> INTONLY_SPACE_SHIFT) return 1;
    if (a->ref + a->reach.end <= b->ref + b->reach.least || b->ref + b->reach.end <= a->ref + a->reach.least) return 1;
    for (int axis = 0; axis < a->axes; ++axis)
        if (intonly_apart_in(a, b, a->stride[axis] < 0 ? -a->stride[axis] : a->stride[axis])) return 1;
    return 0;
}

#endif
