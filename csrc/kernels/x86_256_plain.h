/* SPDX-License-Identifier: Apache-2.0
 *
 * The end of a step that the vectors of x86_256.h do not cover, 16 channels of one pixel at a time: sums that are stored
 * as they are, the wide form, on vectors where its shifts are 33 or more, and all else element by element.
 */
#ifndef INTONLY_KERNELS_X86_256_PLAIN_H
#define INTONLY_KERNELS_X86_256_PLAIN_H

#include <stdint.h>
#include <string.h>

#include "kernels/elements.h"
#include "kernels/epilogue.h"
#include "kernels/x86_256.h"

#ifdef __AVX2__

/* Apply the law to sums one by one, in place. They hold the roundings of the narrow form. */
static inline void finish_each(const finish *f, const panel_constants *k, const uint8_t *r, int64_t channels,
                               int64_t *values) {
    int64_t residual[16];
    intonly_epilogue e = f->law;
    e.multiplier = k->multiplier;
    e.shift = k->shift;
    e.residual_multiplier = f->joins ? k->residual_multiplier : NULL;
    e.residual_shift = k->residual_shift;
    if (e.form == INTONLY_FORM_NARROW)
        for (int64_t c = 0; c < channels; ++c)
            values[c] = narrow_signed((uint32_t)(uint64_t)values[c] - narrow_rounding(k->shift[c]));
    if (f->joins) intonly_load(r, f->r_type, f->r_bytes, channels, residual);
    intonly_finish(&e, 0, 1, 0, 0, residual, channels, values);
}

/* Return whether wide_eight is right for these channels: shifts of 33 or more, and a zero point that cannot overflow. */
ALWAYS_INLINE int wide_fits(const finish *f, const panel_constants *k, int64_t channels) {
    const int32_t zero = f->law.zero_point, limit = 1 << 30;
    const int small = _mm_movemask_epi8(_mm_cmpgt_epi8(_mm_set1_epi8(33), load16(k->shift)));
    return (small & ((1 << channels) - 1)) == 0 && zero > -limit && zero < limit;
}

/* Return clamp(zero_point + ((sum * m + 2^(s-1)) >> s), lo, hi) of eight sums. The upper halves of the products are
 * enough: what the lower halves hold is below the rounding bit. They are at most 2^30, so nothing overflows. */
ALWAYS_INLINE __m256i wide_eight(const intonly_epilogue *e, __m256i sums, __m256i multiplier, __m128i shift) {
    const __m256i even = _mm256_mul_epi32(sums, multiplier);
    const __m256i odd = _mm256_mul_epi32(_mm256_srli_epi64(sums, 32), _mm256_srli_epi64(multiplier, 32));
    const __m256i upper = _mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xAA);
    const __m256i rest = _mm256_sub_epi32(_mm256_cvtepi8_epi32(shift), _mm256_set1_epi32(32)); /* still to be shifted */
    const __m256i one = _mm256_set1_epi32(1), half = _mm256_sllv_epi32(one, _mm256_sub_epi32(rest, one));
    const __m256i rounded = _mm256_srav_epi32(_mm256_add_epi32(upper, half), rest);
    const __m256i y = _mm256_add_epi32(rounded, _mm256_set1_epi32(e->zero_point));
    return _mm256_min_epi32(_mm256_max_epi32(y, _mm256_set1_epi32(e->lo)), _mm256_set1_epi32(e->hi));
}

/* Store values that fit elements of 1, 2 or 4 bytes. */
static inline void store_low_bytes(const int32_t *values, int64_t count, int64_t bytes, uint8_t *y) {
    int16_t words[16];
    int8_t codes[16];
    for (int i = 0; i < 16; ++i) words[i] = (int16_t)values[i], codes[i] = (int8_t)values[i];
    memcpy(y, bytes == 4 ? (const void *)values : bytes == 2 ? (const void *)words : codes, (size_t)(count * bytes));
}

/* Finish and store `channels` sums of one pixel, of 16 in order and with the roundings of the narrow form. */
static inline void finish_plain(const finish *f, const panel_constants *k, const int32_t *sums, const uint8_t *r,
                                uint8_t *y, int64_t channels) {
    int64_t values[16];
    const int wide = f->law.form == INTONLY_FORM_WIDE && !f->joins && wide_fits(f, k, channels);
    if (f->y_bytes <= 4 && f->law.form == INTONLY_FORM_ACC) {
        store_low_bytes(sums, channels, f->y_bytes, y);
    } else if (f->y_bytes <= 4 && wide) {
        int32_t done[16];
        const __m128i shift = load16(k->shift);
        store32(done, wide_eight(&f->law, load32(sums), load32(k->multiplier), shift));
        store32(done + 8, wide_eight(&f->law, load32(sums + 8), load32(k->multiplier + 8), _mm_srli_si128(shift, 8)));
        store_low_bytes(done, channels, f->y_bytes, y);
    } else {
        for (int64_t c = 0; c < channels; ++c) values[c] = sums[c];
        finish_each(f, k, r, channels, values);
        intonly_store(values, channels, y, f->y_type, f->y_bytes);
    }
}

#endif
#endif
