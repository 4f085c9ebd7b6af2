/* SPDX-License-Identifier: Apache-2.0
 *
 * norm with AVX-512: eight elements at a time, in 64 bits.
 */
#include "kernels/norm/x86_avx512vnni.h"

#include <immintrin.h>

#include "kernels/norm/any.h"
#include "kernels/x86_avx512.h"

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

/* Return the bit length of the largest element. */
static inline int bit_length(__m512i a, __m512i b) {
    return intonly_bit_length((uint64_t)_mm512_reduce_max_epi64(_mm512_max_epi64(a, b)));
}

/* The same as norm_reciprocals, a row in each element. Each step waits for the one before, so there are two vectors. */
static void find_512(const intonly_norm *s, norm_sums *sums) {
    const __m512i one = _mm512_set1_epi64(1), none = _mm512_setzero_si512(), least = _mm512_set1_epi64(s->least_root);
    __m512i rest[2], root[2] = {none, none}, quotient[2] = {none, none};
    for (int v = 0; v < 2; ++v) {
        const __m512i total = _mm512_loadu_si512(sums->total + 8 * v), squares = _mm512_loadu_si512(sums->squares + 8 * v);
        const __m512i times = _mm512_mullo_epi64(squares, _mm512_set1_epi64(s->count));
        const __m512i spread = _mm512_sub_epi64(times, _mm512_mullo_epi64(total, total));
        const __m512i shifted = _mm512_sll_epi64(spread, _mm_cvtsi64_si128(2 * s->root_bits));
        rest[v] = _mm512_max_epi64(_mm512_add_epi64(shifted, _mm512_set1_epi64(s->eps_code)), none);
    }
    /* No root has more bits than that of the largest. */
    const int pairs = (bit_length(rest[0], rest[1]) + 1) >> 1;
    __m512i place = _mm512_set1_epi64((int64_t)(pairs > 0 ? UINT64_C(1) << (2 * pairs - 2) : 0));
    for (int i = 0; i < pairs; ++i, place = _mm512_srli_epi64(place, 2)) {
#pragma GCC unroll 2
        for (int v = 0; v < 2; ++v) {
            const __m512i trial = _mm512_add_epi64(root[v], place);
            const __mmask8 takes = _mm512_cmpge_epi64_mask(rest[v], trial);
            rest[v] = _mm512_mask_sub_epi64(rest[v], takes, rest[v], trial);
            root[v] = _mm512_srli_epi64(root[v], 1);
            root[v] = _mm512_mask_add_epi64(root[v], takes, root[v], place);
        }
    }
    for (int v = 0; v < 2; ++v) root[v] = _mm512_max_epi64(root[v], least);
    /* No quotient has more bits than that of the least root: what those above them bring down is below the divisor. */
    const int64_t smallest = _mm512_reduce_min_epi64(_mm512_min_epi64(root[0], root[1]));
    const int most = (int)s->reciprocal_bits + 2 - intonly_bit_length((uint64_t)smallest), bits = most > 0 ? most : 0;
    rest[0] = _mm512_srl_epi64(_mm512_sll_epi64(one, _mm_cvtsi64_si128(s->reciprocal_bits)), _mm_cvtsi32_si128(bits));
    rest[1] = rest[0];
    for (int bit = bits - 1; bit >= 0; --bit) {
#pragma GCC unroll 2
        for (int v = 0; v < 2; ++v) {
            rest[v] = bit == s->reciprocal_bits ? one : _mm512_add_epi64(rest[v], rest[v]);
            const __mmask8 takes = _mm512_cmpge_epi64_mask(rest[v], root[v]);
            rest[v] = _mm512_mask_sub_epi64(rest[v], takes, rest[v], root[v]);
            quotient[v] = _mm512_add_epi64(quotient[v], quotient[v]);
            quotient[v] = _mm512_mask_add_epi64(quotient[v], takes, quotient[v], one);
        }
    }
    for (int v = 0; v < 2; ++v) _mm512_storeu_si512(sums->reciprocal + 8 * v, quotient[v]);
}

/* Finish a row in 64 bits. */
static void finish_row(const norm *g, const uint8_t *x, int64_t total, int64_t reciprocal, uint8_t *y) {
    const intonly_norm *s = g->step;
    const int64_t step = intonly_bytes_of(s->x_type), out = intonly_bytes_of(s->y_type);
    const __m512i count = _mm512_set1_epi64(s->count), by = _mm512_set1_epi64(reciprocal);
    const __m512i from = _mm512_set1_epi64(s->middle * s->count + total), zero_point = _mm512_set1_epi64(s->zero_point);
    const __m512i lo = _mm512_set1_epi64(s->lo), hi = _mm512_set1_epi64(s->hi);
    const __m128i down = _mm_cvtsi64_si128(s->reciprocal_bits - s->root_bits - s->result_bits);
    for (int64_t i = 0; i < s->count; i += 8) {
        const __mmask8 mask = first_of_eight(s->count - i);
        const __m512i u = _mm512_sub_epi64(_mm512_mul_epi32(eight(x + i * step, s->x_type, mask), count), from);
        const __m512i result = _mm512_sra_epi64(_mm512_mullo_epi64(u, by), down);
        const __m512i multiplier = _mm512_cvtepi32_epi64(_mm256_maskz_loadu_epi32(mask, g->multiplier + i));
        const __m512i shift = _mm512_cvtepi8_epi64(_mm_maskz_loadu_epi8(mask, g->shift + i));
        const __m512i scaled = _mm512_mullo_epi64(result, multiplier);
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

/* Return whether u, the reciprocal and the results of a row have 32 bits: no |x| is above the root of the sum of squares,
 * and no |u| above 2 * count times that. */
static int is_short(const intonly_norm *s, uint64_t squares, int64_t reciprocal) {
    const int half_bits = (intonly_bit_length(squares) + 1) >> 1;
    const int64_t down = s->reciprocal_bits - s->root_bits - s->result_bits;
    const int64_t most = half_bits < 24 ? 2 * s->count << half_bits : INT64_MAX;
    return most <= INT32_MAX && reciprocal <= INT32_MAX && most * reciprocal >> down <= INT32_MAX;
}

/* Return whether all shifts are 33 or more and a zero point cannot overflow: the upper words of the sums are then enough. */
static int is_upper(const norm *g) {
    const intonly_norm *s = g->step;
    const int64_t limit = 1 << 30;
    int8_t least = INT8_MAX;
    for (int64_t i = 0; i < s->count; ++i) least = g->shift[i] < least ? g->shift[i] : least;
    return least >= 33 && s->zero_point > -limit && s->zero_point < limit;
}

/* Constants of sixteen columns, those of even and of odd ones apart. */
typedef struct columns {
    __m512i multiplier[2], offset[2], right;
} columns;

static inline columns columns_at(const norm *g, int64_t i, __mmask16 mask) {
    const __m512i even = _mm512_setr_epi64(0, 2, 4, 6, 8, 10, 12, 14), odd = _mm512_setr_epi64(1, 3, 5, 7, 9, 11, 13, 15);
    const __m512i a = _mm512_maskz_loadu_epi64((__mmask8)mask, g->offset + i);
    const __m512i b = _mm512_maskz_loadu_epi64((__mmask8)(mask >> 8), g->offset + i + 8);
    const __m512i multiplier = _mm512_maskz_loadu_epi32(mask, g->multiplier + i);
    const __m512i shift = _mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(mask, g->shift + i));
    return (columns){.multiplier = {multiplier, _mm512_srli_epi64(multiplier, 32)},
                     .offset = {_mm512_permutex2var_epi64(a, even, b), _mm512_permutex2var_epi64(a, odd, b)},
                     .right = _mm512_sub_epi32(shift, _mm512_set1_epi32(32))};
}

/* Finish rows that are short, with shifts that are upper: sixteen columns of all of them at a time. type and out: of x,
 * and bytes of an element of y, constants. */
static inline __attribute__((always_inline)) void finish_short(const norm *g, const uint8_t *x, int rows,
                                                               const norm_sums *sums, int64_t type, int64_t out,
                                                               uint8_t *y) {
    const intonly_norm *s = g->step;
    const int64_t x_row = s->x_strides[INTONLY_LAST], y_row = s->y_strides[INTONLY_LAST], step = intonly_bytes_of(type);
    const __m512i count = _mm512_set1_epi32((int32_t)s->count), zero_point = _mm512_set1_epi32((int32_t)s->zero_point);
    const __m512i lo = _mm512_set1_epi32((int32_t)s->lo), hi = _mm512_set1_epi32((int32_t)s->hi);
    const __m128i down = _mm_cvtsi64_si128(s->reciprocal_bits - s->root_bits - s->result_bits);
    for (int64_t i = 0; i < s->count; i += 16) {
        const __mmask16 mask = (__mmask16)(s->count - i < 16 ? (1u << (s->count - i)) - 1 : 0xFFFFu);
        const columns k = columns_at(g, i, mask);
        const uint8_t *from = x + i * step;
        uint8_t *to = y + i * out;
        for (int r = 0; r < rows; ++r, from += x_row, to += y_row) {
            const int64_t less = s->middle * s->count + intonly_signed(sums->total[r]);
            const __m512i by = _mm512_set1_epi64(sums->reciprocal[r]);
            const __m512i u = _mm512_sub_epi32(_mm512_mullo_epi32(load_sixteen(from, type, mask), count),
                                               _mm512_set1_epi32((int32_t)less)); /* modulo 2^32 */
            const __m512i even = _mm512_sra_epi64(_mm512_mul_epi32(u, by), down);
            const __m512i odd = _mm512_sra_epi64(_mm512_mul_epi32(_mm512_srli_epi64(u, 32), by), down);
            const __m512i a = _mm512_add_epi64(_mm512_mul_epi32(even, k.multiplier[0]), k.offset[0]);
            const __m512i b = _mm512_add_epi64(_mm512_mul_epi32(odd, k.multiplier[1]), k.offset[1]);
            const __m512i upper = _mm512_mask_shuffle_epi32(b, 0x5555, a, _MM_PERM_DDBB);
            const __m512i rounded = _mm512_add_epi32(_mm512_srav_epi32(upper, k.right), zero_point);
            const __m512i codes = _mm512_min_epi32(_mm512_max_epi32(rounded, lo), hi);
            if (out == 1)
                _mm_mask_storeu_epi8(to, mask, _mm512_cvtepi32_epi8(codes)); /* quicker than both in one */
            else if (out == 2)
                _mm256_mask_storeu_epi16(to, mask, _mm512_cvtepi32_epi16(codes));
            else
                _mm512_mask_storeu_epi32(to, mask, codes);
        }
    }
}

static void finish_512(const norm *g, const uint8_t *x, int rows, const norm_sums *sums, uint8_t *y) {
    const intonly_norm *s = g->step;
    const int64_t x_row = s->x_strides[INTONLY_LAST], y_row = s->y_strides[INTONLY_LAST];
    int quick = is_upper(g);
    for (int r = 0; r < rows; ++r) quick &= is_short(s, sums->squares[r], sums->reciprocal[r]);
    if (!quick) {
        for (int r = 0; r < rows; ++r)
            finish_row(g, x + r * x_row, intonly_signed(sums->total[r]), sums->reciprocal[r], y + r * y_row);
        return;
    }
    const int64_t out = intonly_bytes_of(s->y_type);
    if (s->x_type == INTONLY_S16 && out == 1)
        finish_short(g, x, rows, sums, INTONLY_S16, 1, y);
    else
        finish_short(g, x, rows, sums, s->x_type, out, y);
}

void intonly_norm_avx512vnni(const void *step, uint8_t *const *bases, unsigned part, unsigned parts) {
    norm_rows(step, bases, part, parts, sum_512, find_512, finish_512);
}
