/* SPDX-License-Identifier: Apache-2.0
 *
 * What the AVX-512 kernels share: how the constants of the narrow form stand in a packed form, and words for vectors.
 *
 * Four vectors of accumulators become one vector of bytes by two packs. A pack works within lanes of 16 bytes, so the
 * value of vector v, lane l, element e (accumulator slot 16 v + 4 l + e) lands in byte 16 l + 4 v + e. The kernels lay
 * out their weights so that this byte order is the order of the channels in memory: no shuffle is left at run time.
 *
 * Steps end in x86_avx512_narrow.h where narrow_fits says so (narrow.h), else in x86_avx512_plain.h.
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

/* Return by how many bits a channel's weights and bias can be shifted left in place of its accumulator: weights of few
 * bits have room for all of it, which then costs nothing. */
static inline int narrow_lift(const intonly_weights *w, int64_t channel) {
    const int8_t *row = w->w + channel * w->taps * w->depth;
    int lift = 0, lo = 0, hi = 0;
    if (w->form != INTONLY_FORM_NARROW) return 0;
    for (int64_t i = 0; w->shift[channel] < 0 && i < w->taps * w->depth; ++i) {
        lo = row[i] < lo ? row[i] : lo;
        hi = row[i] > hi ? row[i] : hi;
    }
    while (lift < -w->shift[channel] && lo * (2 << lift) >= INT8_MIN && hi * (2 << lift) <= INT8_MAX &&
           w->acc_limit * (2 << lift) <= INT32_MAX)
        ++lift;
    return lift;
}

/* Write the constants of channel `channel`, which is lifted, for the value that lands in a byte. */
static inline void narrow_pack(const intonly_weights *w, int64_t channel, int lift, int64_t byte,
                               narrow_constants *to) {
    const int64_t slot = slot_of_byte(byte), place = place_of_byte(byte);
    to->bias[slot] = w->bias[channel];
    if (w->form != INTONLY_FORM_NARROW) return;
    const int p = w->shift[channel] + lift;
    to->bias[slot] = narrow_signed(((uint32_t)w->bias[channel] << lift) + narrow_rounding(p));
    to->right[slot] = p > 0 ? p : 0;
    to->left[slot] = p < 0 ? -p : 0;
    to->multiplier[place] = (int16_t)w->multiplier[channel];
    if (w->residual_multiplier == NULL) return;
    to->residual_left[place] = (int16_t)(w->residual_shift[channel] < 0 ? -w->residual_shift[channel] : 0);
    to->residual_multiplier[place] = (int16_t)w->residual_multiplier[channel];
}

static inline void plain_pack(const intonly_weights *w, int64_t channel, int lift, int64_t at, plain_constants *to) {
    if (w->multiplier != NULL) to->multiplier[at] = w->multiplier[channel];
    if (w->shift != NULL) to->shift[at] = (int8_t)(w->shift[channel] + lift);
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
ALWAYS_INLINE __m256i load32(const void *p) { return _mm256_loadu_si256((const __m256i *)p); }

/* Return up to sixteen integers of at most 16 bits, in 32 bits each. */
ALWAYS_INLINE __m512i load_sixteen(const uint8_t *x, int64_t type, __mmask16 mask) {
    switch (type) {
    case INTONLY_S8: return _mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(mask, x));
    case INTONLY_U8: return _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(mask, x));
    case INTONLY_S16: return _mm512_cvtepi16_epi32(_mm256_maskz_loadu_epi16(mask, x));
    default: return _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, x));
    }
}

/* Return the mask of the first `count` bytes, 1 to 64. */
ALWAYS_INLINE __mmask64 first_bytes(int64_t count) { return ~UINT64_C(0) >> (64 - count); }

/* Some headers are written for vectors of BYTES bytes and included with BYTES 64 and with 32: half a vector takes half
 * the time. VECTOR is the type, OP(f) the intrinsic, NAME(f) the function for this width. */
#define VECTOR_64 __m512i
#define VECTOR_32 __m256i
#define MASK_64 __mmask64
#define MASK_32 __mmask32
#define OP_64(f) _mm512_##f
#define OP_32(f) _mm256_##f
#define PASTE_(a, b) a##b
#define PASTE(a, b) PASTE_(a, b)
#define VECTOR PASTE(VECTOR_, BYTES)
#define MASK PASTE(MASK_, BYTES)
#define OP(f) PASTE(OP_, BYTES)(f)
#define NAME(f) PASTE(f##_, BYTES)
#define LOAD(p) PASTE(load, BYTES)(p)

/* Return the narrow_scalars of a step that has the fields of an epilogue and of a residual. */
#define NARROW_SCALARS(bytes, step, summary)                                                                           \
    PASTE(narrow_scalars_of_, bytes)((int)(summary)->left, (step)->y_type, (step)->zero_point, (step)->lo, (step)->hi, \
                                     (step)->fraction_bits, (step)->r_type, (step)->residual_zero)

#define BYTES 64
#include "kernels/x86_avx512_narrow.h"
#undef BYTES
#define BYTES 32
#include "kernels/x86_avx512_narrow.h"
#undef BYTES

#endif
#endif
