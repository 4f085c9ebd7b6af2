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
    /* Of the wide form with shifts of 33 and more: shift - 32, the rounding 2^(shift - 33), and whether it is so. */
    int32_t right[64], half[64];
    int upper;
    int in_order; /* whether accumulators are in the order of the channels; else in slot order */
} plain_end;

#ifdef __AVX512BW__

/* Take the constants of a panel; the scalars have been set. Padding has shifts of 0. */
static inline void plain_end_constants(plain_end *end, const plain_constants *k, int joins) {
    const __m512i least = _mm512_set1_epi32(33), one = _mm512_set1_epi32(1);
    const int32_t limit = 1 << 30;
    __mmask16 small = 0;
    end->law.multiplier = k->multiplier;
    end->law.shift = k->shift;
    end->law.residual_multiplier = joins ? k->residual_multiplier : NULL;
    end->law.residual_shift = k->residual_shift;
    end->law.x_zero = NULL;
    if (end->law.form != INTONLY_FORM_WIDE) return;
    for (int c = 0; c < 64; c += 16) {
        const __m512i s = _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(const void *)(k->shift + c)));
        const __m512i above = _mm512_sub_epi32(s, least);
        small |= _mm512_mask_cmplt_epi32_mask(_mm512_test_epi32_mask(s, s), s, least);
        _mm512_storeu_si512(end->right + c, _mm512_add_epi32(above, one));
        _mm512_storeu_si512(end->half + c, _mm512_sllv_epi32(one, above));
    }
    end->upper = small == 0 && end->law.zero_point > -limit && end->law.zero_point < limit;
}

/* Return clamp(zero_point + ((acc * m + 2^(s-1)) >> s), lo, hi) of eight accumulators, in 64 bits. */
ALWAYS_INLINE __m256i wide_eight(const intonly_epilogue *e, __m256i acc, int64_t at) {
    const __m512i one = _mm512_set1_epi64(1), m = _mm512_cvtepi32_epi64(load32(e->multiplier + at));
    const __m512i s = _mm512_cvtepi8_epi64(_mm_loadl_epi64((const __m128i *)(const void *)(e->shift + at)));
    const __m512i half = _mm512_sllv_epi64(one, _mm512_sub_epi64(s, one));
    const __m512i sum = _mm512_add_epi64(_mm512_mul_epi32(_mm512_cvtepi32_epi64(acc), m), half);
    const __m512i y = _mm512_add_epi64(_mm512_srav_epi64(sum, s), _mm512_set1_epi64(e->zero_point));
    return _mm512_cvtepi64_epi32(
        _mm512_min_epi64(_mm512_max_epi64(y, _mm512_set1_epi64(e->lo)), _mm512_set1_epi64(e->hi)));
}

/* Return the wide form of 16 accumulators of channels from `at` on.
 *
 * In 32 bits, the upper halves of the products are enough, because what the lower halves hold is below the rounding
 * bit. An upper half is at most 2^30 in magnitude, so neither sum overflows. */
ALWAYS_INLINE __m512i wide_finish(const plain_end *end, int64_t at, __m512i acc) {
    const intonly_epilogue *e = &end->law;
    if (end->upper) {
        const __m512i m = load64(e->multiplier + at), even = _mm512_mul_epi32(acc, m);
        const __m512i odd = _mm512_mul_epi32(_mm512_srli_epi64(acc, 32), _mm512_srli_epi64(m, 32));
        const __m512i upper = _mm512_mask_shuffle_epi32(odd, 0x5555, even, _MM_PERM_DDBB);
        const __m512i sum = _mm512_add_epi32(upper, load64(end->half + at));
        const __m512i y =
            _mm512_add_epi32(_mm512_srav_epi32(sum, load64(end->right + at)), _mm512_set1_epi32(e->zero_point));
        return _mm512_min_epi32(_mm512_max_epi32(y, _mm512_set1_epi32(e->lo)), _mm512_set1_epi32(e->hi));
    }
    const __m512i lower = _mm512_castsi256_si512(wide_eight(e, _mm512_castsi512_si256(acc), at));
    return _mm512_inserti64x4(lower, wide_eight(e, _mm512_extracti64x4_epi64(acc, 1), at + 8), 1);
}

/* The law for up to 16 channels from `at` on, one by one. The accumulators hold the rounding of the narrow form. */
static __m512i finish_each(const plain_end *end, int64_t at, int64_t count, const uint8_t *residual,
                                  __m512i acc) {
    const intonly_epilogue *e = &end->law;
    int32_t sums[16];
    int64_t values[16], joining[16];
    _mm512_storeu_si512(sums, acc);
    const int64_t bytes = intonly_bytes_of(end->residual_type);
    const int narrow = e->form == INTONLY_FORM_NARROW;
    for (int64_t c = 0; c < count; ++c)
        values[c] = narrow_signed((uint32_t)sums[c] - (narrow ? narrow_rounding(e->shift[at + c]) : 0));
    if (e->residual_multiplier != NULL)
        intonly_load(residual + at * bytes, end->residual_type, bytes, count, joining);
    intonly_finish(e, at, 1, 0, 0, joining, count, values);
    for (int64_t c = 0; c < count; ++c) sums[c] = (int32_t)values[c];
    return load64(sums);
}

/* The wide form of 16 channels whose results have 16 bits, with a residual of at most 16: constants of the even channels,
 * and of the odd ones. start: what sums begin with: the rounding, and both zero points. */
typedef struct join_columns {
    __m512i multiplier[2], residual_multiplier[2], shift[2], start[2];
} join_columns;

/* The scalars of such a step. A residual is read as if it were signed: flip makes it so. */
typedef struct join_scalars {
    __m256i flip;
    __m512i lo, hi;
    int words; /* whether the residual has 16 bits */
} join_scalars;

/* Return the constants of channels from `at` on. residual_zero: that of the flipped residual. */
ALWAYS_INLINE join_columns join_columns_at(const plain_constants *c, int64_t at, int64_t residual_zero,
                                           int64_t zero_point) {
    const __m512i one = _mm512_set1_epi64(1), lower = _mm512_set1_epi64(UINT32_MAX);
    const __m512i m = load64(c->multiplier + at), m_r = load64(c->residual_multiplier + at);
    const __m512i s = _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(const void *)(c->shift + at)));
    join_columns k = {.multiplier = {m, _mm512_srli_epi64(m, 32)},
                      .residual_multiplier = {m_r, _mm512_srli_epi64(m_r, 32)},
                      .shift = {_mm512_and_si512(s, lower), _mm512_srli_epi64(s, 32)}};
    for (int odd = 0; odd < 2; ++odd) {
        const __m512i half = _mm512_sllv_epi64(one, _mm512_sub_epi64(k.shift[odd], one));
        const __m512i moved = _mm512_sllv_epi64(_mm512_set1_epi64(zero_point), k.shift[odd]);
        const __m512i zero = _mm512_mul_epi32(k.residual_multiplier[odd], _mm512_set1_epi64(residual_zero));
        k.start[odd] = _mm512_sub_epi64(_mm512_add_epi64(half, moved), zero);
    }
    return k;
}

/* Return zero_point + ((acc * m + (r - r_zero) * m_r + 2^(s-1)) >> s), which 32 bits hold. */
ALWAYS_INLINE __m512i join_sixteen(const join_columns *k, __m512i acc, __m512i r) {
    __m512i y[2];
#pragma GCC unroll 2
    for (int odd = 0; odd < 2; ++odd) {
        const __m512i a = odd ? _mm512_srli_epi64(acc, 32) : acc, b = odd ? _mm512_srli_epi64(r, 32) : r;
        const __m512i own = _mm512_add_epi64(_mm512_mul_epi32(a, k->multiplier[odd]), k->start[odd]);
        const __m512i sum = _mm512_add_epi64(_mm512_mul_epi32(b, k->residual_multiplier[odd]), own);
        y[odd] = _mm512_srav_epi64(sum, k->shift[odd]);
    }
    return _mm512_mask_shuffle_epi32(y[0], 0xAAAA, y[1], _MM_PERM_CCAA);
}

/* Store up to 16 results, which fit the type. */
ALWAYS_INLINE void store_sixteen(uint8_t *y, int64_t bytes, int64_t count, __m512i values) {
    const __mmask16 mask = (__mmask16)first_bytes(count);
    if (bytes == 1)
        _mm_mask_storeu_epi8(y, mask, _mm512_cvtepi32_epi8(values));
    else if (bytes == 2)
        _mm256_mask_storeu_epi16(y, mask, _mm512_cvtepi32_epi16(values));
    else if (bytes == 4)
        _mm512_mask_storeu_epi32(y, mask, values);
    else {
        _mm512_mask_storeu_epi64(y, (__mmask8)mask, _mm512_cvtepi32_epi64(_mm512_castsi512_si256(values)));
        _mm512_mask_storeu_epi64(y + 64, (__mmask8)(mask >> 8),
                                 _mm512_cvtepi32_epi64(_mm512_extracti64x4_epi64(values, 1)));
    }
}

/* Finish up to 16 channels from `at` on; none when there are no more. */
ALWAYS_INLINE void finish_sixteen(const plain_end *end, int64_t at, int64_t count, const uint8_t *residual, __m512i acc,
                                  int64_t bytes, uint8_t *y) {
    const intonly_epilogue *e = &end->law;
    const int64_t now = count - at < 16 ? count - at : 16;
    if (now <= 0) return;
    if (e->form == INTONLY_FORM_NARROW || e->residual_multiplier != NULL)
        acc = finish_each(end, at, now, residual, acc);
    else if (e->form == INTONLY_FORM_WIDE)
        acc = wide_finish(end, at, acc);
    store_sixteen(y + at * bytes, bytes, now, acc);
}

/* Finish one pixel of `count` channels. acc[16 * vectors], with the rounding of the narrow form. In slot
 * order, lanes and vectors change places, which gives the order of the channels. */
static void plain_finish(const plain_end *end, const int32_t *acc, int64_t vectors, int64_t count,
                         const uint8_t *residual, uint8_t *y) {
    const int64_t bytes = intonly_bytes_of(end->y_type);
    if (end->in_order) {
        for (int64_t at = 0; at < 16 * vectors; at += 16)
            finish_sixteen(end, at, count, residual, load64(acc + at), bytes, y);
    } else if (vectors == 1) {
        finish_sixteen(end, 0, count, residual, load64(acc), bytes, y);
    } else if (vectors == 2) {
        const __m512i a = load64(acc), b = load64(acc + 16);
        const __m512i first = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11);
        const __m512i second = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
        finish_sixteen(end, 0, count, residual, _mm512_permutex2var_epi64(a, first, b), bytes, y);
        finish_sixteen(end, 16, count, residual, _mm512_permutex2var_epi64(a, second, b), bytes, y);
    } else {
        const __m512i a = load64(acc), b = load64(acc + 16), c = load64(acc + 32), d = load64(acc + 48);
        const __m512i ab01 = _mm512_shuffle_i32x4(a, b, 0x44), ab23 = _mm512_shuffle_i32x4(a, b, 0xEE);
        const __m512i cd01 = _mm512_shuffle_i32x4(c, d, 0x44), cd23 = _mm512_shuffle_i32x4(c, d, 0xEE);
        finish_sixteen(end, 0, count, residual, _mm512_shuffle_i32x4(ab01, cd01, 0x88), bytes, y);
        finish_sixteen(end, 16, count, residual, _mm512_shuffle_i32x4(ab01, cd01, 0xDD), bytes, y);
        finish_sixteen(end, 32, count, residual, _mm512_shuffle_i32x4(ab23, cd23, 0x88), bytes, y);
        finish_sixteen(end, 48, count, residual, _mm512_shuffle_i32x4(ab23, cd23, 0xDD), bytes, y);
    }
}

#endif
#endif
