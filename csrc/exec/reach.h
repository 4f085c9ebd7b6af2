/* SPDX-License-Identifier: Apache-2.0
 *
 * How far a strided operand reaches, and how much work its extents mean, without overflow for any words. Helpers of
 * check.c.
 */
#ifndef INTONLY_REACH_H
#define INTONLY_REACH_H

#include <stdint.h>

#include "exec/program.h"

#define INTONLY_MOST_EXTENT INT32_MAX
#define INTONLY_MOST_STRIDE (INT64_C(1) << 32)
#define INTONLY_MOST_REACH (INT64_C(1) << INTONLY_SPACE_SHIFT)
#ifndef INTONLY_MOST_WORK /* a fuzzer asks for less, so that no input takes long */
#define INTONLY_MOST_WORK (INT64_C(1) << 50)
#endif

/* The bytes (or elements) that an operand touches, counted from where its reference points: least..end-1. */
typedef struct intonly_reach {
    int64_t least, end;
} intonly_reach;

static inline intonly_reach intonly_reach_of(int64_t bytes) {
    const intonly_reach reach = {0, bytes};
    return reach;
}

/* Widen a reach by an axis whose index runs from `first` to `last`, each at most INTONLY_MOST_EXTENT in magnitude.
 * Returns whether stride and distance are sane: a sum over a dozen such axes stays far inside int64. */
static inline int intonly_reach_between(intonly_reach *reach, int64_t first, int64_t last, int64_t stride) {
    if (stride < -INTONLY_MOST_STRIDE || stride > INTONLY_MOST_STRIDE) return 0;
    const int64_t a = first * stride, b = last * stride, low = a < b ? a : b, high = a < b ? b : a;
    if (low < -INTONLY_MOST_REACH || high > INTONLY_MOST_REACH) return 0;
    reach->least += low;
    reach->end += high;
    return 1;
}

static inline int intonly_reach_along(intonly_reach *reach, int64_t extent, int64_t stride) {
    return intonly_reach_between(reach, 0, extent - 1, stride);
}

/* Multiply a product of extents by one more. Returns whether that is 1..INTONLY_MOST_EXTENT and the product stays at
 * most INTONLY_MOST_WORK. */
static inline int intonly_times(int64_t *product, int64_t extent) {
    if (extent < 1 || extent > INTONLY_MOST_EXTENT) return 0;
    /* The upper bits alone first: then the whole product is below 2^52. */
    if ((*product >> 20) * extent > INTONLY_MOST_WORK >> 20) return 0;
    *product *= extent;
    return *product <= INTONLY_MOST_WORK;
}

#endif
