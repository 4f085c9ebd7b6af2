/* SPDX-License-Identifier: Apache-2.0
 *
 * norm with AVX-512: eight elements at a time, in 64 bits.
 */
#include "kernels/norm/x86_avx512vnni.h"

#include <immintrin.h>

#include "kernels/norm/any.h"

/* Read up to eight elements. */
static inline __m512i eight(const uint8_t *x, int64_t type, __mmask8 mask) {
    switch (type) {
    case INTONLY_S8: return _mm512_cvtepi8_epi64(_mm_maskz_loadu_epi8(mask, x));
    case INTONLY_U8: return _mm512_cvtepu8_epi64(_mm_maskz_loadu_epi8(mask, x));
    case INTONLY_S16: return _mm512_cvtepi16_epi64(_mm_maskz_loadu_epi16(mask, x));
    default: return _mm512_cvtepu16_epi64(_mm_maskz_loadu_epi16(mask, x));
    }
}

static inline __mmask8 first_of_eight(int64_t count) { return (__mmask8)(count < 8 ? (1u << count) - 1 : 0xFFu); }

static void sum_512(const norm *g, const uint8_t *x, int r, norm_sums *sums) {
    const intonly_norm *s = g->step;
    const int64_t step = intonly_bytes_of(s->x_type);
    const __m512i middle = _mm512_set1_epi64(s->middle);
    __m512i total = _mm512_setzero_si512(), squares = total;
    for (int64_t i = 0; i < s->count; i += 8) {
        const __mmask8 mask = first_of_eight(s->count - i);
        const __m512i from = _mm512_maskz_sub_epi64(mask, eight(x + i * step, s->x_type, mask), middle);
        total = _mm512_add_epi64(total, from);
        squares = _mm512_add_epi64(squares, _mm512_mul_epi32(from, from));
    }
    sums->total[r] = s->centered ? (uint64_t)_mm512_reduce_add_epi64(total) : 0;
    sums->squares[r] = (uint64_t)_mm512_reduce_add_epi64(squares);
}

/* Finish a row. is_short, a constant: u, reciprocal and results have 32 bits. */
static inline __attribute__((always_inline)) void finish_row(const norm *g, const uint8_t *x, int64_t total,
                                                             int64_t reciprocal, int is_short, uint8_t *y) {
    const intonly_norm *s = g->step;
    const int64_t step = intonly_bytes_of(s->x_type), out = intonly_bytes_of(s->y_type);
    const __m512i count = _mm512_set1_epi64(s->count), by = _mm512_set1_epi64(reciprocal);
    const __m512i from = _mm512_set1_epi64(s->middle * s->count + total), zero_point = _mm512_set1_epi64(s->zero_point);
    const __m512i lo = _mm512_set1_epi64(s->lo), hi = _mm512_set1_epi64(s->hi);
    const __m128i down = _mm_cvtsi64_si128(s->reciprocal_bits - s->root_bits - s->result_bits);
    for (int64_t i = 0; i < s->count; i += 8) {
        const __mmask8 mask = first_of_eight(s->count - i);
        const __m512i u = _mm512_sub_epi64(_mm512_mul_epi32(eight(x + i * step, s->x_type, mask), count), from);
        const __m512i product = is_short ? _mm512_mul_epi32(u, by) : _mm512_mullo_epi64(u, by);
        const __m512i result = _mm512_sra_epi64(product, down);
        const __m512i multiplier = _mm512_cvtepi32_epi64(_mm256_maskz_loadu_epi32(mask, g->multiplier + i));
        const __m512i shift = _mm512_cvtepi8_epi64(_mm_maskz_loadu_epi8(mask, g->shift + i));
        const __m512i scaled = is_short ? _mm512_mul_epi32(result, multiplier) : _mm512_mullo_epi64(result, multiplier);
        const __m512i sum = _mm512_add_epi64(scaled, _mm512_maskz_loadu_epi64(mask, g->offset + i));
        const __m512i rounded = _mm512_add_epi64(_mm512_srav_epi64(sum, shift), zero_point);
        const __m512i codes = _mm512_min_epi64(_mm512_max_epi64(rounded, lo), hi);
        if (out == 1)
            _mm512_mask_cvtepi64_storeu_epi8(y + i, mask, codes);
        else if (out == 2)
            _mm512_mask_cvtepi64_storeu_epi16(y + 2 * i, mask, codes);
        else
            _mm512_mask_cvtepi64_storeu_epi32(y + 4 * i, mask, codes);
    }
}

static void finish_512(const norm *g, const uint8_t *x, int r, const norm_sums *sums, uint8_t *y) {
    const intonly_norm *s = g->step;
    const int64_t total = intonly_signed(sums->total[r]), reciprocal = sums->reciprocal[r];
    /* No |x| is above the root of the sum of squares, and no |u| above 2 * count times that. */
    const int half_bits = (intonly_bit_length(sums->squares[r]) + 1) >> 1;
    const int64_t down = s->reciprocal_bits - s->root_bits - s->result_bits;
    const int64_t most = half_bits < 24 ? 2 * s->count << half_bits : INT64_MAX;
    if (most <= INT32_MAX && reciprocal <= INT32_MAX && most * reciprocal >> down <= INT32_MAX)
        finish_row(g, x, total, reciprocal, 1, y);
    else
        finish_row(g, x, total, reciprocal, 0, y);
}

void intonly_norm_avx512vnni(const void *step, uint8_t *const *bases, unsigned part, unsigned parts) {
    norm_rows(step, bases, part, parts, sum_512, finish_512);
}
