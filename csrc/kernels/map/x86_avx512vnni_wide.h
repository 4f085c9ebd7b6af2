/* SPDX-License-Identifier: Apache-2.0
 *
 * The wide form on rows of int32 accumulators, with the residual of at most 16 bits that may join: 16 at a time, the
 * even ones and the odd ones in 64 bits each.
 */
#ifndef INTONLY_MAP_X86_AVX512VNNI_WIDE_H
#define INTONLY_MAP_X86_AVX512VNNI_WIDE_H

#include <stdint.h>

#include "kernels/epilogue.h"
#include "kernels/walk.h"
#include "kernels/x86_avx512.h"

#if defined(__AVX512F__)
#include <immintrin.h>

/* Return whether that is what a step does. */
static inline int is_wide_rows(const intonly_map *s) {
    const int64_t *const r = s->r_strides, *const k = s->constant_strides;
    const int joins = s->r_ref >= 0;
    return s->op == INTONLY_MAP_IDENTITY && s->form == INTONLY_FORM_WIDE && s->a_type == INTONLY_S32 &&
           s->a_strides[INTONLY_LAST] == 4 && s->x_zero < 0 && s->y_type <= INTONLY_S32 &&
           s->y_strides[INTONLY_LAST] == intonly_bytes_of(s->y_type) &&
           (k[INTONLY_LAST] == 0 || k[INTONLY_LAST] == 1) &&
           (!joins || (s->r_type <= INTONLY_U16 && r[INTONLY_LAST] == intonly_bytes_of(s->r_type)));
}

/* Constants of 16 neighbours. */
typedef struct wide_constants {
    __m512i multiplier, residual_multiplier, shift;
} wide_constants;

static inline wide_constants wide_constants_at(const intonly_epilogue *e, int64_t at, int64_t stride, __mmask16 mask) {
    wide_constants k = {.residual_multiplier = _mm512_setzero_si512()};
    if (stride == 0) {
        k.multiplier = _mm512_set1_epi32(e->multiplier[at]);
        k.shift = _mm512_set1_epi32(e->shift[at]);
        if (e->residual_multiplier != NULL) k.residual_multiplier = _mm512_set1_epi32(e->residual_multiplier[at]);
        return k;
    }
    k.multiplier = _mm512_maskz_loadu_epi32(mask, e->multiplier + at);
    k.shift = _mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(mask, e->shift + at));
    k.shift = _mm512_mask_set1_epi32(k.shift, (__mmask16)~mask, 1);
    if (e->residual_multiplier != NULL)
        k.residual_multiplier = _mm512_maskz_loadu_epi32(mask, e->residual_multiplier + at);
    return k;
}

/* Return (acc * m + r * m_r + 2^(s-1)) >> s of the even elements. */
static inline __m512i wide_half(__m512i acc, __m512i r, __m512i m, __m512i m_r, __m512i shift) {
    const __m512i one = _mm512_set1_epi64(1), products = _mm512_add_epi64(_mm512_mul_epi32(acc, m), _mm512_mul_epi32(r, m_r));
    const __m512i half = _mm512_sllv_epi64(one, _mm512_sub_epi64(shift, one));
    return _mm512_srav_epi64(_mm512_add_epi64(products, half), shift);
}

static inline __m512i wide_clamped(const intonly_epilogue *e, __m512i y) {
    y = _mm512_add_epi64(y, _mm512_set1_epi64(e->zero_point));
    return _mm512_min_epi64(_mm512_max_epi64(y, _mm512_set1_epi64(e->lo)), _mm512_set1_epi64(e->hi));
}

static inline void wide_row(const intonly_map *s, const intonly_epilogue *e, const uint8_t *a, const uint8_t *r,
                            int64_t at, int64_t count, uint8_t *y) {
    const int64_t stride = s->constant_strides[INTONLY_LAST], r_step = intonly_bytes_of(s->r_type);
    const int64_t y_step = intonly_bytes_of(s->y_type);
    const __m512i lower = _mm512_set1_epi64(UINT32_MAX), residual_zero = _mm512_set1_epi32(e->residual_zero);
    for (int64_t i = 0; i < count; i += 16) {
        const __mmask16 mask = (__mmask16)(count - i < 16 ? (1u << (count - i)) - 1 : 0xFFFFu);
        const wide_constants k = wide_constants_at(e, at + i * stride, stride, mask);
        const __m512i acc = _mm512_maskz_loadu_epi32(mask, a + 4 * i);
        __m512i joining = _mm512_setzero_si512();
        if (r != NULL) joining = _mm512_sub_epi32(load_sixteen(r + i * r_step, s->r_type, mask), residual_zero);
        const __m512i even = wide_half(acc, joining, k.multiplier, k.residual_multiplier, _mm512_and_si512(k.shift, lower));
        const __m512i odd = wide_half(_mm512_srli_epi64(acc, 32), _mm512_srli_epi64(joining, 32),
                                      _mm512_srli_epi64(k.multiplier, 32), _mm512_srli_epi64(k.residual_multiplier, 32),
                                      _mm512_srli_epi64(k.shift, 32));
        const __m512i codes = _mm512_mask_blend_epi32(0xAAAA, wide_clamped(e, even), _mm512_slli_epi64(wide_clamped(e, odd), 32));
        if (y_step == 1)
            _mm512_mask_cvtepi32_storeu_epi8(y + i, mask, codes);
        else if (y_step == 2)
            _mm512_mask_cvtepi32_storeu_epi16(y + 2 * i, mask, codes);
        else
            _mm512_mask_storeu_epi32(y + 4 * i, mask, codes);
    }
}

static inline void wide_rows(const intonly_map *s, uint8_t *const *bases, unsigned part, unsigned parts) {
    enum { WIDE_A, WIDE_Y, WIDE_R, WIDE_CONSTANT };
    const uint8_t *a = intonly_at(bases, s->a_ref), *r = intonly_at_or_null(bases, s->r_ref);
    uint8_t *y = intonly_at(bases, s->y_ref);
    intonly_epilogue e;
    INTONLY_READ_EPILOGUE(s, bases, &e);
    if (r == NULL) e.residual_multiplier = NULL;
    intonly_walk walk;
    walk.extent = s->extent;
    walk.operands = 0;
    intonly_walk_operand(&walk, s->a_strides);
    intonly_walk_operand(&walk, s->y_strides);
    intonly_walk_operand(&walk, s->r_strides);
    intonly_walk_operand(&walk, s->constant_strides);
    for (intonly_walk_start(&walk, part, parts); walk.rows > 0; intonly_walk_next(&walk)) {
        const int64_t i = walk.first, *offset = walk.offset;
        wide_row(s, &e, a + offset[WIDE_A] + i * 4, r == NULL ? NULL : r + offset[WIDE_R] + i * s->r_strides[INTONLY_LAST],
                 offset[WIDE_CONSTANT] + i * s->constant_strides[INTONLY_LAST], walk.end - i,
                 y + offset[WIDE_Y] + i * s->y_strides[INTONLY_LAST]);
    }
}

#endif

#endif
