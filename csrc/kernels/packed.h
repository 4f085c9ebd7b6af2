/* SPDX-License-Identifier: Apache-2.0
 *
 * The packed form of the plain C kernels, gemm and depthwise alike: the depth of a tap, the constants of each channel
 * (those that the form lacks are 0), and the weights in the order in which the kernel reads them.
 */
#ifndef INTONLY_PACKED_H
#define INTONLY_PACKED_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "arith.h"
#include "kernels/epilogue.h"
#include "kernels/kernels.h"

/* Byte offsets; the depth (int64) is at 0. The whole is a multiple of 64 bytes. */
typedef struct intonly_packed {
    int64_t bias, multiplier, residual_multiplier; /* int32 [channels] */
    int64_t shift, residual_shift;                 /* int8 [channels] */
    int64_t weights;                               /* int8 */
    int64_t bytes;
} intonly_packed;

static inline intonly_packed intonly_packed_layout(int64_t channels, int64_t weights) {
    intonly_packed at;
    at.bias = (int64_t)sizeof(int64_t);
    at.multiplier = at.bias + channels * (int64_t)sizeof(int32_t);
    at.residual_multiplier = at.multiplier + channels * (int64_t)sizeof(int32_t);
    at.shift = at.residual_multiplier + channels * (int64_t)sizeof(int32_t);
    at.residual_shift = at.shift + channels;
    at.weights = at.residual_shift + channels;
    at.bytes = (at.weights + weights + 63) & ~INT64_C(63);
    return at;
}

/* Return an array of a packed form. */
static inline const int32_t *intonly_packed_int32(const uint8_t *packed, int64_t offset) {
    return (const int32_t *)(const void *)(packed + offset);
}

static inline const int8_t *intonly_packed_int8(const uint8_t *packed, int64_t offset) {
    return (const int8_t *)packed + offset;
}

static inline int64_t intonly_packed_depth(const uint8_t *packed) { return *(const int64_t *)(const void *)packed; }

/* Write all but the weights, which are 0 until the kernel's own code fills them in. Returns where they go. */
static inline int8_t *intonly_packed_begin(const intonly_weights *w, int64_t weights, uint8_t *packed) {
    const intonly_packed at = intonly_packed_layout(w->channels, weights);
    const size_t channels = (size_t)w->channels, words = channels * sizeof(int32_t);
    memset(packed, 0, (size_t)at.bytes);
    memcpy(packed, &w->depth, sizeof w->depth);
    memcpy(packed + at.bias, w->bias, words);
    if (w->multiplier != NULL) memcpy(packed + at.multiplier, w->multiplier, words);
    if (w->residual_multiplier != NULL) memcpy(packed + at.residual_multiplier, w->residual_multiplier, words);
    if (w->shift != NULL) memcpy(packed + at.shift, w->shift, channels);
    if (w->residual_shift != NULL) memcpy(packed + at.residual_shift, w->residual_shift, channels);
    return (int8_t *)packed + at.weights;
}

/* Fill in the constants of an epilogue whose form is known; they are read at the number of the channel. */
static inline void intonly_packed_constants(const uint8_t *packed, const intonly_packed *at, int joins,
                                            intonly_epilogue *e) {
    e->multiplier = intonly_packed_int32(packed, at->multiplier);
    e->shift = intonly_packed_int8(packed, at->shift);
    e->residual_multiplier = joins ? intonly_packed_int32(packed, at->residual_multiplier) : NULL;
    e->residual_shift = intonly_packed_int8(packed, at->residual_shift);
    e->x_zero = NULL;
}

/* Return whether a * b is at most `limit`; a and b are 1 or more. */
static inline int intonly_product_within(int64_t a, int64_t b, int64_t limit) {
    return limit >= 0 && (uint64_t)b <= intonly_quotient((uint64_t)limit, (uint64_t)a);
}

/* Return whether every shift and multiplier of `channels` channels is one that the law has for this form. */
static inline int intonly_packed_constants_hold(const uint8_t *packed, const intonly_packed *at, int64_t channels,
                                                int64_t form, int joins) {
    const int8_t *shift = intonly_packed_int8(packed, at->shift);
    const int8_t *residual_shift = intonly_packed_int8(packed, at->residual_shift);
    const int32_t *m = intonly_packed_int32(packed, at->multiplier);
    const int32_t *mr = intonly_packed_int32(packed, at->residual_multiplier);
    const int narrow = form == INTONLY_FORM_NARROW, lo = narrow ? -15 : 1, hi = narrow ? 30 : 62;
    if (form == INTONLY_FORM_ACC) return 1;
    for (int64_t c = 0; c < channels; ++c) {
        if (shift[c] < lo || shift[c] > hi) return 0;
        if (narrow && (m[c] <= -32768 || m[c] >= 32768)) return 0;
        if (narrow && joins && (residual_shift[c] < lo || residual_shift[c] > hi)) return 0;
        if (narrow && joins && (mr[c] <= -32768 || mr[c] >= 32768)) return 0;
    }
    return 1;
}

#endif
