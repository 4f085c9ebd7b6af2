/* SPDX-License-Identifier: Apache-2.0
 *
 * When vectors may compute the narrow form of the law in 16 bits, and what all constants of a step have in common that
 * decides it. Where they may not, a kernel applies the law element by element.
 */
#ifndef INTONLY_KERNELS_NARROW_H
#define INTONLY_KERNELS_NARROW_H

#include <stdint.h>
#include <string.h>

#include "intonly.h"
#include "kernels/kernels.h"

/* Found when the constants are packed. */
typedef struct narrow_summary {
    int64_t fits;           /* 1 when the form is narrow, and no accumulator overflows while it is rounded and shifted */
    int64_t left;           /* 1 when an accumulator is shifted left somewhere */
    int64_t residual_left;  /* largest left shift of the residual */
    int64_t residual_right; /* 1 when the residual is shifted right somewhere */
} narrow_summary;

/* Return the two's complement value of a bit pattern. */
static inline int32_t narrow_signed(uint32_t bits) {
    return bits <= INT32_MAX ? (int32_t)bits : -(int32_t)(~bits) - 1;
}

/* Return the rounding of a right shift of the accumulator, which the bias takes along. */
static inline uint32_t narrow_rounding(int64_t shift) { return shift > 0 ? UINT32_C(1) << (shift - 1) : 0; }

static inline narrow_summary narrow_summarize(const intonly_weights *w) {
    narrow_summary all;
    memset(&all, 0, sizeof all);
    all.fits = w->form == INTONLY_FORM_NARROW && w->acc_limit <= INT32_MAX;
    if (!all.fits) return all;
    for (int64_t c = 0; c < w->channels; ++c) {
        const int64_t p = w->shift[c], limit = w->acc_limit;
        if (p < 0) all.left = 1;
        if (p < 0 ? limit * (INT64_C(1) << -p) > INT32_MAX : limit + narrow_rounding(p) > INT32_MAX) all.fits = 0;
        if (w->residual_multiplier == NULL) continue;
        const int64_t p_r = w->residual_shift[c];
        if (p_r > 0) all.residual_right = 1;
        if (-p_r > all.residual_left) all.residual_left = -p_r;
    }
    return all;
}

/* Return whether a summary, which may come from a file, is one that can be computed with. */
static inline int narrow_summary_holds(const narrow_summary *summary) {
    return summary->residual_left >= 0 && summary->residual_left <= 15;
}

/* Return whether a residual of this type and zero point, shifted left, always fits in 16 bits. */
static inline int narrow_residual_fits(const narrow_summary *summary, int64_t type, int64_t zero) {
    const int64_t least = (type == INTONLY_S8 ? -128 : 0) - zero, most = (type == INTONLY_S8 ? 127 : 255) - zero;
    const int64_t unit = INT64_C(1) << summary->residual_left;
    return !summary->residual_right && zero >= -128 && zero <= 255 && least * unit >= INT16_MIN &&
           most * unit <= INT16_MAX;
}

/* Return whether vectors may finish a step with these scalars. residual_type -1: no residual. */
static inline int narrow_fits(const narrow_summary *summary, int64_t y_type, int64_t zero_point, int64_t fraction_bits,
                              int64_t residual_type, int64_t residual_zero) {
    if (!summary->fits || (y_type != INTONLY_U8 && y_type != INTONLY_S8)) return 0;
    if (zero_point < -128 || zero_point > 255) return 0;
    const int64_t constant = zero_point * (INT64_C(1) << fraction_bits) + (INT64_C(1) << (fraction_bits - 1));
    if (constant < INT16_MIN || constant > INT16_MAX) return 0;
    return residual_type < 0 || narrow_residual_fits(summary, residual_type, residual_zero);
}

#endif
