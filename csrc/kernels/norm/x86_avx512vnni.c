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

/* Read up to 32 elements, counted from `middle`; those that are missing are 0. Whether 16 bits hold them: fits. */
static inline __m512i thirty_two(const uint8_t *x, int64_t type, __mmask32 mask, __m512i middle) {
    switch (type) {
    case INTONLY_S8: return _mm512_maskz_sub_epi16(mask, _mm512_cvtepi8_epi16(_mm256_maskz_loadu_epi8(mask, x)), middle);
    case INTONLY_U8: return _mm512_maskz_sub_epi16(mask, _mm512_cvtepu8_epi16(_mm256_maskz_loadu_epi8(mask, x)), middle);
    default: return _mm512_maskz_sub_epi16(mask, _mm512_maskz_loadu_epi16(mask, x), middle);
    }
}

static inline int fits_in_16_bits(const intonly_norm *s) {
    switch (s->x_type) {
    case INTONLY_S16: return s->middle == 0;
    case INTONLY_U16: return s->middle == 1 << 15; /* modulo 2^16, the difference is the signed one */
    default: return s->middle >= -256 && s->middle <= 256;
    }
}

static void sum_512(const norm *g, const uint8_t *x, int r, norm_sums *sums) {
    const intonly_norm *s = g->step;
    const int64_t step = intonly_bytes_of(s->x_type);
    __m512i total = _mm512_setzero_si512(), squares = total;
    if (fits_in_16_bits(s)) {
        const __m512i middle = _mm512_set1_epi16((int16_t)s->middle), ones = _mm512_set1_epi16(1);
        const __m512i lower = _mm512_set1_epi64(UINT32_MAX);
        for (int64_t i = 0; i < s->count; i += 32) {
            const __mmask32 mask = s->count - i < 32 ? (1u << (s->count - i)) - 1 : ~0u;
            const __m512i from = thirty_two(x + i * step, s->x_type, mask, middle);
            const __m512i pairs = _mm512_madd_epi16(from, from); /* up to 2^31, without a sign */
            total = _mm512_dpwssd_epi32(total, from, ones);
            squares = _mm512_add_epi64(squares, _mm512_and_si512(pairs, lower));
            squares = _mm512_add_epi64(squares, _mm512_srli_epi64(pairs, 32));
        }
        sums->total[r] = s->centered ? (uint64_t)(int64_t)_mm512_reduce_add_epi32(total) : 0;
        sums->squares[r] = (uint64_t)_mm512_reduce_add_epi64(squares);
        return;
    }
    const __m512i middle = _mm512_set1_epi64(s->middle);
    for (int64_t i = 0; i < s->count; i += 8) {
        const __mmask8 mask = first_of_eight(s->count - i);
        const __m512i from = _mm512_maskz_sub_epi64(mask, eight(x + i * step, s->x_type, mask), middle);
        total = _mm512_add_epi64(total, from);
        squares = _mm512_add_epi64(squares, _mm512_mul_epi32(from, from));
    }
    sums->total[r] = s->centered ? (uint64_t)_mm512_reduce_add_epi64(total) : 0;
    sums->squares[r] = (uint64_t)_mm512_reduce_add_epi64(squares);
}

/* The same as norm_reciprocals, a row in each element. */
static void find_512(const intonly_norm *s, norm_sums *sums) {
    const __m512i one = _mm512_set1_epi64(1), none = _mm512_setzero_si512(), total = _mm512_loadu_si512(sums->total);
    const __m512i squares = _mm512_mullo_epi64(_mm512_loadu_si512(sums->squares), _mm512_set1_epi64(s->count));
    const __m512i spread = _mm512_sub_epi64(squares, _mm512_mullo_epi64(total, total));
    const __m512i shifted = _mm512_sll_epi64(spread, _mm_cvtsi64_si128(2 * s->root_bits));
    __m512i rest = _mm512_max_epi64(_mm512_add_epi64(shifted, _mm512_set1_epi64(s->eps_code)), none);
    __m512i root = none, quotient = none;
    __m512i place = _mm512_set1_epi64(INT64_C(1) << 62);
    for (int i = 0; i < 32; ++i) {
        const __m512i trial = _mm512_add_epi64(root, place);
        const __mmask8 takes = _mm512_cmpge_epi64_mask(rest, trial);
        rest = _mm512_mask_sub_epi64(rest, takes, rest, trial);
        root = _mm512_srli_epi64(root, 1);
        root = _mm512_mask_add_epi64(root, takes, root, place);
        place = _mm512_srli_epi64(place, 2);
    }
    root = _mm512_max_epi64(root, _mm512_set1_epi64(s->least_root));
    /* No quotient has more bits than that of the least root: what those above them bring down is below the divisor. */
    const int most = (int)s->reciprocal_bits + 2 - intonly_bit_length((uint64_t)s->least_root), bits = most > 0 ? most : 0;
    rest = _mm512_srl_epi64(_mm512_sll_epi64(one, _mm_cvtsi64_si128(s->reciprocal_bits)), _mm_cvtsi32_si128(bits));
    for (int bit = bits - 1; bit >= 0; --bit) {
        rest = _mm512_add_epi64(rest, rest);
        if (bit == s->reciprocal_bits) rest = one;
        const __mmask8 takes = _mm512_cmpge_epi64_mask(rest, root);
        rest = _mm512_mask_sub_epi64(rest, takes, rest, root);
        quotient = _mm512_add_epi64(quotient, quotient);
        quotient = _mm512_mask_add_epi64(quotient, takes, quotient, one);
    }
    _mm512_storeu_si512(sums->reciprocal, quotient);
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
    norm_rows(step, bases, part, parts, sum_512, find_512, finish_512);
}
