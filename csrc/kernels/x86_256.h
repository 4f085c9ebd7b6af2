/* SPDX-License-Identifier: Apache-2.0
 *
 * 16 channels at a time, for the kernels on 256-bit vectors: their constants, and from their sums to stored codes.
 *
 * The sums of 16 channels stand in two vectors of 8 slots. A pack of both works within lanes of 16 bytes: with channels
 * 0-3 and 8-11 in the first vector, 4-7 and 12-15 in the second, it gives the channels in order. Interleaving the
 * 16-bit codes of two taps, unpacklo and unpackhi, makes just these two vectors.
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
    int32_t bias[16];              /* by slot, with the rounding 2^(p-1) of a right shift p >= 1 of the narrow form */
    int32_t right[16], left[16];   /* by slot, max(p, 0) and max(-p, 0) */
    int16_t scale[16];             /* by channel */
    int16_t residual_unit[16];     /* by channel, 2^-p of the residual: the vectors have no 16-bit shift by lane */
    int16_t residual_scale[16];    /* by channel */
    int32_t multiplier[16], residual_multiplier[16];
    int8_t shift[16], residual_shift[16];
} panel_constants;

/* Return the slot of a channel, or the channel of a slot: bits 2 and 3 change places. */
static inline int64_t slot_of(int64_t channel) { return (channel & 3) | (channel & 4) << 1 | (channel & 8) >> 1; }

/* Write the constants of channel `c` as number `at` of 16. */
static inline void panel_pack(const intonly_weights *w, int64_t c, int64_t at, panel_constants *to) {
    const int64_t slot = slot_of(at);
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

/* Read `bytes` of 16 bytes and nothing behind them; the rest is 0. */
ALWAYS_INLINE __m128i load_some(const uint8_t *p, int64_t bytes) {
    uint8_t all[16] = {0};
    if (bytes == 16) return load16(p);
    for (int64_t i = 0; i < bytes; ++i) all[i] = p[i];
    return load16(all);
}

/* Write the first `bytes` of 16 bytes. */
ALWAYS_INLINE void store_some(uint8_t *p, __m128i x, int64_t bytes) {
    uint8_t all[16];
    if (bytes == 16) {
        store16(p, x);
        return;
    }
    store16(all, x);
    for (int64_t i = 0; i < bytes; ++i) p[i] = all[i];
}

/* How a step finishes its sums. */
typedef struct finish {
    __m256i constant;               /* (zero_point << k) + 2^(k-1), 16 bits */
    __m256i lo, hi;                 /* 8 bits */
    __m256i residual_zero;          /* 16 bits */
    __m128i fraction_bits;          /* k */
    int fast;                       /* vectors do it; else the law does, element by element */
    int left;                       /* whether a sum is shifted left somewhere */
    int joins, y_signed, r_signed;
    int64_t y_type, r_type, y_bytes, r_bytes;
    intonly_epilogue law; /* without its constants */
} finish;

/* Fill in a finish from a gemm or a window. */
#define FINISH_OF(step, summary, f)                                                                                    \
    do {                                                                                                               \
        (f)->joins = (step)->r_ref >= 0;                                                                               \
        (f)->y_type = (step)->y_type;                                                                                  \
        (f)->r_type = (f)->joins ? (step)->r_type : -1;                                                                \
        memset(&(f)->law, 0, sizeof(f)->law);                                                                          \
        INTONLY_READ_LIMITS(step, &(f)->law);                                                                          \
        finish_spread(summary, f);                                                                                     \
    } while (0)

static inline void finish_spread(const narrow_summary *summary, finish *f) {
    const intonly_epilogue *e = &f->law;
    f->y_bytes = intonly_bytes_of(f->y_type);
    f->r_bytes = intonly_bytes_of(f->r_type);
    f->y_signed = f->y_type == INTONLY_S8;
    f->r_signed = f->r_type == INTONLY_S8;
    f->left = summary->left != 0;
    f->fast = e->form == INTONLY_FORM_NARROW &&
              narrow_fits(summary, f->y_type, e->zero_point, e->fraction_bits, f->r_type, e->residual_zero);
    if (!f->fast) return;
    f->constant = _mm256_set1_epi16((int16_t)(e->zero_point * (1 << e->fraction_bits) + (1 << (e->fraction_bits - 1))));
    f->fraction_bits = _mm_cvtsi32_si128(e->fraction_bits);
    f->lo = _mm256_set1_epi8((char)e->lo);
    f->hi = _mm256_set1_epi8((char)e->hi);
    f->residual_zero = _mm256_set1_epi16((int16_t)e->residual_zero);
}

/* Return the 16-bit values of 16 channels before the last shift, in order of channels. */
ALWAYS_INLINE __m256i finish_scale(const finish *f, const panel_constants *k, __m256i s0, __m256i s1) {
    if (f->left) {
        s0 = _mm256_sllv_epi32(s0, load32(k->left));
        s1 = _mm256_sllv_epi32(s1, load32(k->left + 8));
    }
    s0 = _mm256_srav_epi32(s0, load32(k->right));
    s1 = _mm256_srav_epi32(s1, load32(k->right + 8));
    return _mm256_mulhrs_epi16(_mm256_packs_epi32(s0, s1), load32(k->scale));
}

ALWAYS_INLINE __m256i finish_join(const finish *f, const panel_constants *k, __m256i u, __m128i codes) {
    __m256i r = f->r_signed ? _mm256_cvtepi8_epi16(codes) : _mm256_cvtepu8_epi16(codes);
    r = _mm256_mullo_epi16(_mm256_sub_epi16(r, f->residual_zero), load32(k->residual_unit));
    return _mm256_adds_epi16(u, _mm256_mulhrs_epi16(r, load32(k->residual_scale)));
}

/* Return the codes of two pixels, 16 channels each. */
ALWAYS_INLINE __m256i finish_codes(const finish *f, __m256i u, __m256i v) {
    u = _mm256_sra_epi16(_mm256_adds_epi16(u, f->constant), f->fraction_bits);
    v = _mm256_sra_epi16(_mm256_adds_epi16(v, f->constant), f->fraction_bits);
    __m256i y;
    if (f->y_signed)
        y = _mm256_min_epi8(_mm256_max_epi8(_mm256_packs_epi16(u, v), f->lo), f->hi);
    else
        y = _mm256_min_epu8(_mm256_max_epu8(_mm256_packus_epi16(u, v), f->lo), f->hi);
    return _mm256_permute4x64_epi64(y, 0xD8);
}

/* Finish the sums of one pixel by the law, one by one. */
static inline void finish_plain(const finish *f, const panel_constants *k, __m256i s0, __m256i s1, const uint8_t *r,
                                uint8_t *y, int64_t channels) {
    int32_t sums[16];
    int64_t values[16], residual[16];
    intonly_epilogue e = f->law;
    store32(sums, s0);
    store32(sums + 8, s1);
    for (int64_t c = 0; c < channels; ++c) {
        const uint32_t rounding = e.form == INTONLY_FORM_NARROW ? narrow_rounding(k->shift[c]) : 0;
        values[c] = narrow_signed((uint32_t)sums[slot_of(c)] - rounding);
    }
    e.multiplier = k->multiplier;
    e.shift = k->shift;
    e.residual_multiplier = f->joins ? k->residual_multiplier : NULL;
    e.residual_shift = k->residual_shift;
    if (f->joins) intonly_load(r, f->r_type, f->r_bytes, channels, residual);
    intonly_finish(&e, 0, 1, 0, 0, residual, channels, values);
    intonly_store(values, channels, y, f->y_type, f->y_bytes);
}

/* Finish the sums s of one pixel and t of another, which may be the same one. y, z: where their codes go; q, r: their
 * residuals. All pointers are those of the first of `channels` channels. */
ALWAYS_INLINE void finish_two(const finish *f, const panel_constants *k, __m256i s0, __m256i s1, __m256i t0, __m256i t1,
                              const uint8_t *q, const uint8_t *r, uint8_t *y, uint8_t *z, int64_t channels) {
    if (!f->fast) {
        finish_plain(f, k, s0, s1, q, y, channels);
        if (z != y) finish_plain(f, k, t0, t1, r, z, channels);
        return;
    }
    __m256i u = finish_scale(f, k, s0, s1), v = finish_scale(f, k, t0, t1);
    if (f->joins) {
        u = finish_join(f, k, u, load_some(q, channels));
        v = finish_join(f, k, v, load_some(r, channels));
    }
    const __m256i codes = finish_codes(f, u, v);
    store_some(y, _mm256_castsi256_si128(codes), channels);
    store_some(z, _mm256_extracti128_si256(codes, 1), channels);
}

#endif
#endif
