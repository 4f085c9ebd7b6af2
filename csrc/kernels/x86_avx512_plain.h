/* SPDX-License-Identifier: Apache-2.0
 *
 * The end of a step that the vectors of x86_avx512.h do not cover: accumulators that are stored as they are, the wide
 * form (on vectors of 64-bit products), and the narrow form element by element. One pixel and one panel at a time, in
 * the order of the channels.
 */
#ifndef INTONLY_KERNELS_X86_AVX512_PLAIN_H
#define INTONLY_KERNELS_X86_AVX512_PLAIN_H

#include <stdint.h>
#include <string.h>

#include "kernels/elements.h"
#include "kernels/epilogue.h"
#include "kernels/x86_avx512.h"

/* The scalars of a step, and the constants of a panel. */
typedef struct plain_end {
    intonly_epilogue law;
    int64_t y_type, residual_type;
} plain_end;

static inline void plain_end_constants(plain_end *end, const plain_constants *k, int joins) {
    end->law.multiplier = k->multiplier;
    end->law.shift = k->shift;
    end->law.residual_multiplier = joins ? k->residual_multiplier : NULL;
    end->law.residual_shift = k->residual_shift;
    end->law.x_zero = NULL;
}

#ifdef __AVX512BW__

/* Return clamp(zero_point + ((acc * m + 2^(s-1)) >> s), lo, hi) of eight accumulators, as 64-bit integers. */
ALWAYS_INLINE __m512i wide_eight(const intonly_epilogue *e, __m512i acc, __m512i multiplier, __m512i shift) {
    const __m512i one = _mm512_set1_epi64(1);
    const __m512i half = _mm512_sllv_epi64(one, _mm512_sub_epi64(shift, one));
    const __m512i sum = _mm512_add_epi64(_mm512_mul_epi32(acc, multiplier), half);
    const __m512i y = _mm512_add_epi64(_mm512_srav_epi64(sum, shift), _mm512_set1_epi64(e->zero_point));
    return _mm512_min_epi64(_mm512_max_epi64(y, _mm512_set1_epi64(e->lo)), _mm512_set1_epi64(e->hi));
}

/* The wide form of 64 accumulators, in place. */
static inline void wide_finish(const intonly_epilogue *e, int32_t *acc) {
    for (int c = 0; c < 64; c += 8) {
        const __m512i x = _mm512_cvtepi32_epi64(_mm256_loadu_si256((const __m256i *)(const void *)(acc + c)));
        const __m512i m = _mm512_cvtepi32_epi64(_mm256_loadu_si256((const __m256i *)(const void *)(e->multiplier + c)));
        const __m512i s = _mm512_cvtepi8_epi64(_mm_loadl_epi64((const __m128i *)(const void *)(e->shift + c)));
        _mm256_storeu_si256((__m256i *)(void *)(acc + c), _mm512_cvtepi64_epi32(wide_eight(e, x, m, s)));
    }
}

/* Finish one pixel. acc[16 * vectors]: in slot order, with the rounding of the narrow form; those behind `count`
 * channels are of no meaning. */
static void plain_finish(const plain_end *end, const int32_t *acc, int64_t vectors, int64_t count,
                         const uint8_t *residual, uint8_t *y) {
    const intonly_epilogue *e = &end->law;
    int32_t sums[64];
    memset(sums, 0, sizeof sums);
    for (int64_t v = 0; v < vectors; ++v)
        for (int64_t lane = 0; lane < 4; ++lane)
            memcpy(sums + 4 * (vectors * lane + v), acc + 16 * v + 4 * lane, 4 * sizeof *sums);
    if (e->form == INTONLY_FORM_NARROW) {
        int64_t values[64], joining[64];
        for (int64_t c = 0; c < count; ++c)
            values[c] = narrow_signed((uint32_t)sums[c] - narrow_rounding(e->shift[c]));
        if (e->residual_multiplier != NULL) intonly_load(residual, end->residual_type, 1, count, joining);
        intonly_finish(e, 0, 1, 0, 0, joining, count, values);
        for (int64_t c = 0; c < count; ++c) sums[c] = (int32_t)values[c];
    } else if (e->form == INTONLY_FORM_WIDE) {
        wide_finish(e, sums);
    }
    switch (intonly_bytes_of(end->y_type)) {
    case 1:
        for (int64_t c = 0; c < count; ++c) y[c] = (uint8_t)sums[c];
        break;
    case 2:
        for (int64_t c = 0; c < count; ++c) {
            const uint16_t half = (uint16_t)sums[c];
            memcpy(y + 2 * c, &half, sizeof half);
        }
        break;
    case 4: memcpy(y, sums, (size_t)count * 4); break;
    default:
        for (int64_t c = 0; c < count; ++c) {
            const int64_t whole = sums[c];
            memcpy(y + 8 * c, &whole, sizeof whole);
        }
        break;
    }
}

#endif
#endif
