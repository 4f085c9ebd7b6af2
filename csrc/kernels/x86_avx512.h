/* SPDX-License-Identifier: Apache-2.0
 *
 * The narrow form of the law (arith.h) on 64 values at a time, for the AVX-512 kernels.
 *
 * Four vectors of accumulators become one vector of bytes by two packs. A pack works within lanes of 16 bytes, so the
 * values of vector v, lane l, element e (accumulator slot 16 v + 4 l + e) land in byte 16 l + 4 v + e. The kernels lay
 * out their weights so that this byte order is the order of the channels in memory: no shuffle is left at run time.
 *
 * A step and its constants are fit for these functions when narrow_fits says so; saturation to 16 bits then happens
 * in the order of the law, and every intermediate is exact.
 */
#ifndef INTONLY_KERNELS_X86_AVX512_H
#define INTONLY_KERNELS_X86_AVX512_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "arith.h"
#include "intonly.h"
#include "kernels/epilogue.h"
#include "kernels/kernels.h"

/* The constants of 64 accumulator slots. After the first pack, slot order is that of the 16-bit values: [ab][cd]. */
typedef struct narrow_constants {
    int32_t bias[64];                 /* with the rounding 2^(p-1) of a right shift p >= 1 */
    int32_t right[64];                /* max(p, 0) */
    int32_t left[64];                 /* max(-p, 0) */
    int16_t multiplier[64];           /* pack order */
    int16_t residual_left[64];        /* pack order, -p of the residual, 0..15 */
    int16_t residual_multiplier[64];  /* pack order */
} narrow_constants;

/* The constants of up to 64 channels in their own order, for what the vectors cannot do. */
typedef struct law_constants {
    int32_t multiplier[64], residual_multiplier[64];
    int8_t shift[64], residual_shift[64];
} law_constants;

static inline void law_pack(const intonly_weights *w, int64_t channel, int64_t at, law_constants *to) {
    if (w->multiplier != NULL) to->multiplier[at] = w->multiplier[channel];
    if (w->shift != NULL) to->shift[at] = w->shift[channel];
    if (w->residual_multiplier != NULL) to->residual_multiplier[at] = w->residual_multiplier[channel];
    if (w->residual_shift != NULL) to->residual_shift[at] = w->residual_shift[channel];
}

/* Return the constants of an epilogue; form and limits are the step's. */
static inline intonly_epilogue law_epilogue(const law_constants *k, int joins) {
    intonly_epilogue e;
    memset(&e, 0, sizeof e);
    e.multiplier = k->multiplier;
    e.shift = k->shift;
    e.residual_multiplier = joins ? k->residual_multiplier : NULL;
    e.residual_shift = k->residual_shift;
    return e;
}

/* Return whether the shifts and multipliers of an entry are ones that the law has for this form. */
static inline int law_constants_hold(const law_constants *k, int64_t at, int64_t form, int joins) {
    if (form == INTONLY_FORM_ACC) return 1;
    if (form == INTONLY_FORM_WIDE) return k->shift[at] >= 1 && k->shift[at] <= 62;
    const int32_t m = k->multiplier[at], m_r = k->residual_multiplier[at];
    if (k->shift[at] < -15 || k->shift[at] > 30 || m <= -32768 || m >= 32768) return 0;
    if (!joins) return 1;
    return k->residual_shift[at] >= -15 && k->residual_shift[at] <= 30 && m_r > -32768 && m_r < 32768;
}

/* What all constants of a step have in common, found when they are packed. */
typedef struct narrow_summary {
    int64_t fits;           /* 1 when the narrow form applies, and no accumulator overflows while it is shifted */
    int64_t left;           /* 1 when an accumulator is shifted left somewhere */
    int64_t residual_left;  /* largest left shift of the residual */
    int64_t residual_right; /* 1 when the residual is shifted right somewhere */
    int64_t unused[4];
} narrow_summary;

/* Return the byte in which accumulator slot `slot` of 64 lands, or the slot of a byte: lane and vector change places. */
static inline int64_t narrow_slot_of_byte(int64_t byte) { return (byte & 12) * 4 + (byte >> 4) * 4 + (byte & 3); }

/* Return where a byte stands among the 16-bit values. */
static inline int64_t narrow_place_of_byte(int64_t byte) { return (byte & 8) * 4 + (byte >> 4) * 8 + (byte & 7); }

/* Return the two's complement value of a bit pattern. */
static inline int32_t narrow_signed(uint32_t bits) {
    return bits <= INT32_MAX ? (int32_t)bits : -(int32_t)(~bits) - 1;
}

/* Return the rounding of a right shift of the accumulator. */
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

/* Write the constants of channel `c` for the value that lands in byte `byte`. */
static inline void narrow_pack(const intonly_weights *w, int64_t c, int64_t byte, narrow_constants *to) {
    const int64_t slot = narrow_slot_of_byte(byte), place = narrow_place_of_byte(byte);
    to->bias[slot] = w->bias[c];
    if (w->form != INTONLY_FORM_NARROW) return;
    const int p = w->shift[c];
    to->bias[slot] = narrow_signed((uint32_t)w->bias[c] + narrow_rounding(p));
    to->right[slot] = p > 0 ? p : 0;
    to->left[slot] = p < 0 ? -p : 0;
    to->multiplier[place] = (int16_t)w->multiplier[c];
    if (w->residual_multiplier == NULL) return;
    to->residual_left[place] = (int16_t)(w->residual_shift[c] < 0 ? -w->residual_shift[c] : 0);
    to->residual_multiplier[place] = (int16_t)w->residual_multiplier[c];
}

/* Return whether a residual of this type and zero point, shifted left, always fits in 16 bits. */
static inline int narrow_residual_fits(const narrow_summary *summary, int64_t type, int64_t zero) {
    const int64_t least = (type == INTONLY_S8 ? -128 : 0) - zero, most = (type == INTONLY_S8 ? 127 : 255) - zero;
    const int64_t unit = INT64_C(1) << summary->residual_left;
    return !summary->residual_right && zero >= -128 && zero <= 255 && least * unit >= INT16_MIN &&
           most * unit <= INT16_MAX;
}

/* Return whether a step with these scalars may use the functions below. residual_type -1: no residual. */
static inline int narrow_fits(const narrow_summary *summary, int64_t y_type, int64_t zero_point, int64_t fraction_bits,
                              int64_t residual_type, int64_t residual_zero) {
    if (!summary->fits || (y_type != INTONLY_U8 && y_type != INTONLY_S8)) return 0;
    if (zero_point < -128 || zero_point > 255) return 0;
    const int64_t constant = zero_point * (INT64_C(1) << fraction_bits) + (INT64_C(1) << (fraction_bits - 1));
    if (constant < INT16_MIN || constant > INT16_MAX) return 0;
    return residual_type < 0 || narrow_residual_fits(summary, residual_type, residual_zero);
}

#ifdef __AVX512BW__
#include <immintrin.h>

#define ALWAYS_INLINE static inline __attribute__((always_inline))

ALWAYS_INLINE __m512i load64(const void *p) { return _mm512_loadu_si512(p); }

/* The scalars of a step, spread over vectors. */
typedef struct narrow {
    __m512i constant;      /* (zero_point << k) + 2^(k-1), 16 bits */
    __m512i fraction_bits; /* k, 16 bits */
    __m512i lo, hi;        /* 8 bits */
    __m512i residual_flip; /* 128 turns signed codes into unsigned ones ... */
    __m512i residual_zero; /* ... whose zero point is this, 16 bits */
    int clamps;            /* whether lo or hi is narrower than the type of y */
    int y_signed;
    int left;
} narrow;

ALWAYS_INLINE narrow narrow_of(const narrow_summary *summary, int64_t y_type, int64_t zero_point, int64_t lo,
                               int64_t hi, int64_t fraction_bits, int64_t residual_type, int64_t residual_zero) {
    const int flip = residual_type == INTONLY_S8 ? 128 : 0, y_signed = y_type == INTONLY_S8;
    return (narrow){
        .constant = _mm512_set1_epi16((int16_t)(zero_point * (1 << fraction_bits) + (1 << (fraction_bits - 1)))),
        .fraction_bits = _mm512_set1_epi16((int16_t)fraction_bits),
        .lo = _mm512_set1_epi8((char)lo),
        .hi = _mm512_set1_epi8((char)hi),
        .residual_flip = _mm512_set1_epi8((char)flip),
        .residual_zero = _mm512_set1_epi16((int16_t)(residual_zero + flip)),
        .clamps = lo > (y_signed ? -128 : 0) || hi < (y_signed ? 127 : 255),
        .y_signed = y_signed,
        .left = (int)summary->left,
    };
}

/* Tell the compiler that a step is of the most common kind: no left shift, and y unsigned without clamps of its own. */
ALWAYS_INLINE void narrow_most_common(narrow *n) { n->left = n->y_signed = n->clamps = 0; }

ALWAYS_INLINE int narrow_is_most_common(const narrow *n) { return !(n->left | n->y_signed | n->clamps); }

/* 64 scaled values of 16 bits: ab from the first two vectors of accumulators, cd from the others. */
typedef struct narrow_pair {
    __m512i ab, cd;
} narrow_pair;

/* Return u = (sat16(acc shifted) * m + 2^14) >> 15. */
ALWAYS_INLINE narrow_pair narrow_scale(const narrow *n, const narrow_constants *k, __m512i a, __m512i b, __m512i c,
                                       __m512i d) {
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
ALWAYS_INLINE narrow_pair narrow_join(const narrow *n, const narrow_constants *k, narrow_pair u, __m512i residual) {
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
ALWAYS_INLINE __m512i narrow_codes(const narrow *n, narrow_pair u) {
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
