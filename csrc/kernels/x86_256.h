/* SPDX-License-Identifier: Apache-2.0
 *
 * From sums to stored codes on 256-bit vectors, 32 at a time: two halves of 16 channels.
 *
 * Four vectors of sums become one of bytes by two packs, which work within lanes of 16 bytes: vector v, lane l, element
 * e lands in byte 16 l + 4 v + e. So the halves stand in the lanes, four channels in each vector (`columns`); or, where
 * each half has two vectors of its own (`rows`), channels 0-3 and 8-11 of it in one, 4-7 and 12-15 in the other, and
 * the middle quarters of the bytes are exchanged in the end.
 */
#ifndef INTONLY_KERNELS_X86_256_H
#define INTONLY_KERNELS_X86_256_H

#include <stdint.h>
#include <string.h>

#include "intonly.h"
#include "kernels/elements.h"
#include "kernels/epilogue.h"
#include "kernels/kernels.h"
#include "kernels/narrow.h"
#include "kernels/packed.h"

/* Constants of 16 channels: as the vectors want them, then as the law has them. Those that a form lacks are 0. */
typedef struct panel_constants {
    int32_t bias[16];            /* in the order of the sums, with the rounding 2^(p-1) of the narrow form */
    int32_t right[16], left[16]; /* in the same order, max(p, 0) and max(-p, 0) */
    int16_t scale[16];
    int16_t residual_unit[16];   /* 2^-p of the residual: there is no 16-bit shift by lane */
    int16_t residual_scale[16];
    int32_t multiplier[16], residual_multiplier[16];
    int8_t shift[16], residual_shift[16];
} panel_constants;

/* Write the constants of channel `c` as number `at` of 16, whose sum is number `slot`. */
static inline void panel_pack(const intonly_weights *w, int64_t c, int64_t at, int64_t slot, panel_constants *to) {
    to->bias[slot] = w->bias[c];
    if (w->form == INTONLY_FORM_ACC) return;
    to->multiplier[at] = w->multiplier[c];
    to->shift[at] = w->shift[c];
    if (w->residual_multiplier != NULL) to->residual_multiplier[at] = w->residual_multiplier[c];
    if (w->residual_shift != NULL) to->residual_shift[at] = w->residual_shift[c];
    if (w->form != INTONLY_FORM_NARROW) return;
    const int p = w->shift[c], left = -to->residual_shift[at];
    to->bias[slot] = narrow_signed((uint32_t)w->bias[c] + narrow_rounding(p));
    to->right[slot] = p > 0 ? p : 0;
    to->left[slot] = p < 0 ? -p : 0;
    to->scale[at] = (int16_t)w->multiplier[c];
    to->residual_unit[at] = (int16_t)(left == 15 ? INT16_MIN : 1 << (left > 0 ? left : 0));
    to->residual_scale[at] = (int16_t)to->residual_multiplier[at];
}

/* Return whether the first `channels` entries of constants at `at` of a packed form are ones that the law has. */
static inline int panel_holds(const uint8_t *packed, int64_t at, int64_t channels, int64_t form, int joins) {
    intonly_packed in;
    memset(&in, 0, sizeof in);
    in.multiplier = at + (int64_t)offsetof(panel_constants, multiplier);
    in.residual_multiplier = at + (int64_t)offsetof(panel_constants, residual_multiplier);
    in.shift = at + (int64_t)offsetof(panel_constants, shift);
    in.residual_shift = at + (int64_t)offsetof(panel_constants, residual_shift);
    return intonly_packed_constants_hold(packed, &in, channels, form, joins);
}

#ifdef __AVX2__
#include <immintrin.h>

#define ALWAYS_INLINE static inline __attribute__((always_inline))

ALWAYS_INLINE __m256i load32(const void *p) { return _mm256_loadu_si256((const __m256i *)p); }
ALWAYS_INLINE __m128i load16(const void *p) { return _mm_loadu_si128((const __m128i *)p); }
ALWAYS_INLINE void store32(void *p, __m256i x) { _mm256_storeu_si256((__m256i *)p, x); }
ALWAYS_INLINE void store16(void *p, __m128i x) { _mm_storeu_si128((__m128i *)p, x); }
ALWAYS_INLINE __m256i both(__m128i low, __m128i high) {
    return _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
}
ALWAYS_INLINE __m256i load_both(const void *low, const void *high) { return both(load16(low), load16(high)); }

/* Read `bytes` bytes, fewer than 16, and nothing behind them; the rest is 0. */
static __attribute__((noinline, unused)) __m128i load_few(const uint8_t *p, int64_t bytes) {
    uint8_t all[16] = {0};
    for (int64_t i = 0; i < bytes; ++i) all[i] = p[i];
    return load16(all);
}

/* Write the first `bytes` of 16 bytes. */
static __attribute__((noinline, unused)) void store_few(uint8_t *p, __m128i x, int64_t bytes) {
    uint8_t all[16];
    store16(all, x);
    for (int64_t i = 0; i < bytes; ++i) p[i] = all[i];
}

ALWAYS_INLINE __m128i load_some(const uint8_t *p, int64_t bytes) {
    return bytes >= 16 ? load16(p) : load_few(p, bytes);
}

ALWAYS_INLINE void store_some(uint8_t *p, __m128i x, int64_t bytes) {
    if (bytes >= 16)
        store16(p, x);
    else
        store_few(p, x, bytes);
}

/* How a step finishes its sums. */
typedef struct finish {
    __m256i residual_flip; /* 128 turns signed codes into unsigned ones ... */
    __m256i residual_zero; /* ... whose zero point is this, 16 bits */
    __m256i constant;      /* (zero_point << k) + 2^(k-1), 16 bits */
    __m256i lo, hi;        /* 8 bits */
    __m128i fraction_bits; /* k */
    int fast;              /* vectors do it; else the law does, element by element */
    int left;              /* whether a sum is shifted left somewhere */
    int joins, y_signed;
    int64_t y_type, r_type, y_bytes, r_bytes;
    intonly_epilogue law; /* without its constants */
} finish;

/* Fill in a finish from a gemm or a window. */
#define FINISH_OF(step, summary, f)                                                                                    \
    do {                                                                                                               \
        memset(f, 0, sizeof *(f));                                                                                     \
        INTONLY_READ_LIMITS(step, &(f)->law);                                                                          \
        (f)->joins = (step)->r_ref >= 0;                                                                               \
        (f)->y_type = (step)->y_type;                                                                                  \
        (f)->r_type = (f)->joins ? (step)->r_type : -1;                                                                \
        finish_spread(summary, f);                                                                                     \
    } while (0)

static inline void finish_spread(const narrow_summary *summary, finish *f) {
    const intonly_epilogue *e = &f->law;
    const int flip = f->r_type == INTONLY_S8 ? 128 : 0;
    f->y_bytes = intonly_bytes_of(f->y_type);
    f->r_bytes = intonly_bytes_of(f->r_type);
    f->y_signed = f->y_type == INTONLY_S8;
    f->left = summary->left != 0;
    f->fast = e->form == INTONLY_FORM_NARROW &&
              narrow_fits(summary, f->y_type, e->zero_point, e->fraction_bits, f->r_type, e->residual_zero);
    if (!f->fast) return;
    f->residual_flip = _mm256_set1_epi8((char)flip);
    f->residual_zero = _mm256_set1_epi16((int16_t)(e->residual_zero + flip));
    f->constant = _mm256_set1_epi16((int16_t)(e->zero_point * (1 << e->fraction_bits) + (1 << (e->fraction_bits - 1))));
    f->fraction_bits = _mm_cvtsi32_si128(e->fraction_bits);
    f->lo = _mm256_set1_epi8((char)e->lo);
    f->hi = _mm256_set1_epi8((char)e->hi);
}

/* The constants of 32 values, beside those of a finish. */
typedef struct lanes {
    __m256i right0, right1, right2, right3, left0, left1, left2, left3;
    __m256i scale0, scale1; /* 16 bits, in the order of the packs; so are the residual's */
    __m256i residual_unit0, residual_unit1, residual_scale0, residual_scale1;
} lanes;

/* Return them for sums in columns: k of the first half, l of the second. */
ALWAYS_INLINE lanes lanes_of_columns(const panel_constants *k, const panel_constants *l) {
    lanes n;
    n.right0 = load_both(k->right, l->right), n.right1 = load_both(k->right + 4, l->right + 4);
    n.right2 = load_both(k->right + 8, l->right + 8), n.right3 = load_both(k->right + 12, l->right + 12);
    n.left0 = load_both(k->left, l->left), n.left1 = load_both(k->left + 4, l->left + 4);
    n.left2 = load_both(k->left + 8, l->left + 8), n.left3 = load_both(k->left + 12, l->left + 12);
    n.scale0 = load_both(k->scale, l->scale), n.scale1 = load_both(k->scale + 8, l->scale + 8);
    n.residual_unit0 = load_both(k->residual_unit, l->residual_unit);
    n.residual_unit1 = load_both(k->residual_unit + 8, l->residual_unit + 8);
    n.residual_scale0 = load_both(k->residual_scale, l->residual_scale);
    n.residual_scale1 = load_both(k->residual_scale + 8, l->residual_scale + 8);
    return n;
}

/* Return them for sums in rows, the same channels of two pixels. */
ALWAYS_INLINE lanes lanes_of_rows(const panel_constants *k) {
    lanes n;
    n.right0 = n.right2 = load32(k->right), n.right1 = n.right3 = load32(k->right + 8);
    n.left0 = n.left2 = load32(k->left), n.left1 = n.left3 = load32(k->left + 8);
    n.scale0 = n.scale1 = load32(k->scale);
    n.residual_unit0 = n.residual_unit1 = load32(k->residual_unit);
    n.residual_scale0 = n.residual_scale1 = load32(k->residual_scale);
    return n;
}

/* 32 sums. */
typedef struct sums32 {
    __m256i s0, s1, s2, s3;
} sums32;

/* Return the codes of sums in the order of the packs; so are the codes of the residual, which may be absent. */
ALWAYS_INLINE __m256i finish_fast(const finish *f, const lanes *n, sums32 s, __m256i residual) {
    if (f->left) {
        s.s0 = _mm256_sllv_epi32(s.s0, n->left0), s.s1 = _mm256_sllv_epi32(s.s1, n->left1);
        s.s2 = _mm256_sllv_epi32(s.s2, n->left2), s.s3 = _mm256_sllv_epi32(s.s3, n->left3);
    }
    s.s0 = _mm256_srav_epi32(s.s0, n->right0), s.s1 = _mm256_srav_epi32(s.s1, n->right1);
    s.s2 = _mm256_srav_epi32(s.s2, n->right2), s.s3 = _mm256_srav_epi32(s.s3, n->right3);
    __m256i u = _mm256_mulhrs_epi16(_mm256_packs_epi32(s.s0, s.s1), n->scale0);
    __m256i v = _mm256_mulhrs_epi16(_mm256_packs_epi32(s.s2, s.s3), n->scale1);
    if (f->joins) {
        const __m256i codes = _mm256_xor_si256(residual, f->residual_flip), none = _mm256_setzero_si256();
        __m256i q = _mm256_sub_epi16(_mm256_unpacklo_epi8(codes, none), f->residual_zero);
        __m256i r = _mm256_sub_epi16(_mm256_unpackhi_epi8(codes, none), f->residual_zero);
        q = _mm256_mulhrs_epi16(_mm256_mullo_epi16(q, n->residual_unit0), n->residual_scale0);
        r = _mm256_mulhrs_epi16(_mm256_mullo_epi16(r, n->residual_unit1), n->residual_scale1);
        u = _mm256_adds_epi16(u, q);
        v = _mm256_adds_epi16(v, r);
    }
    u = _mm256_sra_epi16(_mm256_adds_epi16(u, f->constant), f->fraction_bits);
    v = _mm256_sra_epi16(_mm256_adds_epi16(v, f->constant), f->fraction_bits);
    if (f->y_signed) return _mm256_min_epi8(_mm256_max_epi8(_mm256_packs_epi16(u, v), f->lo), f->hi);
    return _mm256_min_epu8(_mm256_max_epu8(_mm256_packus_epi16(u, v), f->lo), f->hi);
}

/* Compiled for AVX-512 the instructions of AVX-VNNI have their EVEX form, so that a processor which has only that one
 * can test the kernels. */
#if defined(__AVXVNNI__)
#define DOT_BYTES _mm256_dpbusd_avx_epi32
#define DOT_WORDS _mm256_dpwssd_avx_epi32
#elif defined(__AVX512VL__) && defined(__AVX512VNNI__)
#define DOT_BYTES _mm256_dpbusd_epi32
#define DOT_WORDS _mm256_dpwssd_epi32
#endif

#ifdef DOT_BYTES
/* Return sums with the products of four codes and four weights in each lane added. */
ALWAYS_INLINE __m256i add_dot(__m256i sums, __m256i codes, __m256i weights) { return DOT_BYTES(sums, codes, weights); }
#endif

/* Return sums with the products of two codes and two weights of 16 bits in each lane added. */
ALWAYS_INLINE __m256i add_pair(__m256i sums, __m256i codes, __m256i weights) {
#ifdef DOT_WORDS
    return DOT_WORDS(sums, codes, weights);
#else
    return _mm256_add_epi32(sums, _mm256_madd_epi16(codes, weights));
#endif
}

/* Exchange the middle quarters. */
ALWAYS_INLINE __m256i swap_middle(__m256i x) { return _mm256_permute4x64_epi64(x, 0xD8); }

#endif
#endif
