/* SPDX-License-Identifier: Apache-2.0
 *
 * The narrow form of the law (arith.h) on 64 values at a time, for the AVX-512 kernels.
 *
 * Four vectors of accumulators become one vector of bytes by two packs. A pack works within lanes of 16 bytes, so the
 * value of vector v, lane l, element e (accumulator slot 16 v + 4 l + e) lands in byte 16 l + 4 v + e. The kernels lay
 * out their weights so that this byte order is the order of the channels in memory: no shuffle is left at run time.
 *
 * Where narrow_fits says so (narrow.h), saturation to 16 bits happens in the order of the law, and every intermediate
 * is exact. Other steps end in x86_avx512_plain.h.
 */
#ifndef INTONLY_KERNELS_X86_AVX512_H
#define INTONLY_KERNELS_X86_AVX512_H

#include <stddef.h>
#include <stdint.h>

#include "intonly.h"
#include "kernels/kernels.h"
#include "kernels/narrow.h"

#define PACKED_HEAD 64 /* bytes of a packed form before its first panel: a narrow_summary */

/* The constants of 64 accumulator slots. After the first pack, slot order is that of the 16-bit values: [ab][cd]. */
typedef struct narrow_constants {
    int32_t bias[64];                /* with the rounding 2^(p-1) of a right shift p >= 1 */
    int32_t right[64];               /* max(p, 0) */
    int32_t left[64];                /* max(-p, 0) */
    int16_t multiplier[64];          /* pack order */
    int16_t residual_left[64];       /* pack order, -p of the residual, 0..15 */
    int16_t residual_multiplier[64]; /* pack order */
} narrow_constants;

/* The same by channel, as the law has them, for all else. */
typedef struct plain_constants {
    int32_t multiplier[64], residual_multiplier[64];
    int8_t shift[64], residual_shift[64];
} plain_constants;

/* What stands before the weights of a panel of at most 64 channels. */
typedef struct panel_constants {
    narrow_constants narrow;
    plain_constants plain;
} panel_constants;

/* Return the accumulator slot of 64 that lands in a byte: lane and vector change places. */
static inline int64_t slot_of_byte(int64_t byte) { return (byte & 12) * 4 + (byte >> 4) * 4 + (byte & 3); }

/* Return where a byte stands among the 16-bit values. */
static inline int64_t place_of_byte(int64_t byte) { return (byte & 8) * 4 + (byte >> 4) * 8 + (byte & 7); }

/* Write the constants of channel `channel` for the value that lands in a byte. */
static inline void narrow_pack(const intonly_weights *w, int64_t channel, int64_t byte, narrow_constants *to) {
    const int64_t slot = slot_of_byte(byte), place = place_of_byte(byte);
    to->bias[slot] = w->bias[channel];
    if (w->form != INTONLY_FORM_NARROW) return;
    const int p = w->shift[channel];
    to->bias[slot] = narrow_signed((uint32_t)w->bias[channel] + narrow_rounding(p));
    to->right[slot] = p > 0 ? p : 0;
    to->left[slot] = p < 0 ? -p : 0;
    to->multiplier[place] = (int16_t)w->multiplier[channel];
    if (w->residual_multiplier == NULL) return;
    to->residual_left[place] = (int16_t)(w->residual_shift[channel] < 0 ? -w->residual_shift[channel] : 0);
    to->residual_multiplier[place] = (int16_t)w->residual_multiplier[channel];
}

static inline void plain_pack(const intonly_weights *w, int64_t channel, int64_t at, plain_constants *to) {
    if (w->multiplier != NULL) to->multiplier[at] = w->multiplier[channel];
    if (w->shift != NULL) to->shift[at] = w->shift[channel];
    if (w->residual_multiplier != NULL) to->residual_multiplier[at] = w->residual_multiplier[channel];
    if (w->residual_shift != NULL) to->residual_shift[at] = w->residual_shift[channel];
}

/* Return whether the constants of `count` channels, which may come from a file, are ones that the law has. */
static inline int plain_constants_hold(const plain_constants *k, int64_t count, int64_t form, int joins) {
    const int narrow = form == INTONLY_FORM_NARROW, lo = narrow ? -15 : 1, hi = narrow ? 30 : 62;
    if (form == INTONLY_FORM_ACC) return 1;
    for (int64_t c = 0; c < count; ++c) {
        const int32_t m = k->multiplier[c], m_r = k->residual_multiplier[c];
        if (k->shift[c] < lo || k->shift[c] > hi) return 0;
        if (narrow && (m <= -32768 || m >= 32768)) return 0;
        if (narrow && joins && (k->residual_shift[c] < lo || k->residual_shift[c] > hi)) return 0;
        if (narrow && joins && (m_r <= -32768 || m_r >= 32768)) return 0;
    }
    return 1;
}

#ifdef __AVX512BW__
#include <immintrin.h>

#define ALWAYS_INLINE static inline __attribute__((always_inline))

ALWAYS_INLINE __m512i load64(const void *p) { return _mm512_loadu_si512(p); }

/* Return the mask of the first `count` bytes, 1 to 64. */
ALWAYS_INLINE __mmask64 first_bytes(int64_t count) { return ~UINT64_C(0) >> (64 - count); }

/* The scalars of a step, spread over vectors. */
typedef struct narrow_scalars {
    __m512i constant;      /* (zero_point << k) + 2^(k-1), 16 bits */
    __m512i fraction_bits; /* k, 16 bits */
    __m512i lo, hi;        /* 8 bits */
    __m512i residual_flip; /* 128 turns signed codes into unsigned ones ... */
    __m512i residual_zero; /* ... whose zero point is this, 16 bits */
    int clamps;            /* whether lo or hi is narrower than the type of y */
    int y_signed;
    int left; /* whether an accumulator is shifted left somewhere */
} narrow_scalars;

ALWAYS_INLINE narrow_scalars narrow_scalars_of(int left, int64_t y_type, int64_t zero_point, int64_t lo, int64_t hi,
                               int64_t fraction_bits, int64_t residual_type, int64_t residual_zero) {
    const int flip = residual_type == INTONLY_S8 ? 128 : 0, y_signed = y_type == INTONLY_S8;
    return (narrow_scalars){
        .constant = _mm512_set1_epi16((int16_t)(zero_point * (1 << fraction_bits) + (1 << (fraction_bits - 1)))),
        .fraction_bits = _mm512_set1_epi16((int16_t)fraction_bits),
        .lo = _mm512_set1_epi8((char)lo),
        .hi = _mm512_set1_epi8((char)hi),
        .residual_flip = _mm512_set1_epi8((char)flip),
        .residual_zero = _mm512_set1_epi16((int16_t)(residual_zero + flip)),
        .clamps = lo > (y_signed ? -128 : 0) || hi < (y_signed ? 127 : 255),
        .y_signed = y_signed,
        .left = left,
    };
}

/* Tell the compiler that a step is of the most common kind: no left shift, and y unsigned without clamps of its own. */
ALWAYS_INLINE void narrow_most_common(narrow_scalars *n) { n->left = n->y_signed = n->clamps = 0; }

ALWAYS_INLINE int narrow_is_most_common(const narrow_scalars *n) { return !(n->left | n->y_signed | n->clamps); }

/* 64 scaled values of 16 bits: ab from the first two vectors of accumulators, cd from the others. */
typedef struct narrow_pair {
    __m512i ab, cd;
} narrow_pair;

/* Return u = (sat16(acc shifted) * m + 2^14) >> 15. */
ALWAYS_INLINE narrow_pair narrow_scale(const narrow_scalars *n, const narrow_constants *k, __m512i a, __m512i b,
                                       __m512i c, __m512i d) {
    if (n->left) {
        a = _mm512_sllv_epi32(a, load64(k->left));
        b = _mm512_sllv_epi32(b, load64(k->left + 16));
        c = _mm512_sllv_epi32(c, load64(k->left + 32));
        d = _mm512_sllv_epi32(d, load64(k->left + 48));
    }
    a = _mm512_srav_epi32(a, load64(k->right));
    b = _mm512_srav_epi32(b, load64(k->right + 16));
    c = _mm512_srav_epi32(c, load64(k->right + 32));
    d = _mm512_srav_epi32(d, load64(k->right + 48));
    return (narrow_pair){_mm512_mulhrs_epi16(_mm512_packs_epi32(a, b), load64(k->multiplier)),
                         _mm512_mulhrs_epi16(_mm512_packs_epi32(c, d), load64(k->multiplier + 32))};
}

/* Return sat16(u + u_r) for the residual codes of the 64 bytes. */
ALWAYS_INLINE narrow_pair narrow_join(const narrow_scalars *n, const narrow_constants *k, narrow_pair u,
                                      __m512i residual) {
    const __m512i codes = _mm512_xor_si512(residual, n->residual_flip), none = _mm512_setzero_si512();
    __m512i ab = _mm512_sub_epi16(_mm512_unpacklo_epi8(codes, none), n->residual_zero);
    __m512i cd = _mm512_sub_epi16(_mm512_unpackhi_epi8(codes, none), n->residual_zero);
    ab = _mm512_sllv_epi16(ab, load64(k->residual_left));
    cd = _mm512_sllv_epi16(cd, load64(k->residual_left + 32));
    ab = _mm512_mulhrs_epi16(ab, load64(k->residual_multiplier));
    cd = _mm512_mulhrs_epi16(cd, load64(k->residual_multiplier + 32));
    return (narrow_pair){_mm512_adds_epi16(u.ab, ab), _mm512_adds_epi16(u.cd, cd)};
}

/* Return the 64 codes clamp(sat16(u + constant) >> k, lo, hi). */
ALWAYS_INLINE __m512i narrow_codes(const narrow_scalars *n, narrow_pair u) {
    const __m512i ab = _mm512_srav_epi16(_mm512_adds_epi16(u.ab, n->constant), n->fraction_bits);
    const __m512i cd = _mm512_srav_epi16(_mm512_adds_epi16(u.cd, n->constant), n->fraction_bits);
    if (n->y_signed) {
        const __m512i y = _mm512_packs_epi16(ab, cd);
        return n->clamps ? _mm512_min_epi8(_mm512_max_epi8(y, n->lo), n->hi) : y;
    }
    const __m512i y = _mm512_packus_epi16(ab, cd);
    return n->clamps ? _mm512_min_epu8(_mm512_max_epu8(y, n->lo), n->hi) : y;
}

#endif
#endif
