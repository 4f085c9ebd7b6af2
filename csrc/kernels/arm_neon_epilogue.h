/* SPDX-License-Identifier: Apache-2.0
 *
 * The narrow form of the law (arith.h) on 8 channels of one pixel, for the NEON kernels. Each instruction is exact:
 *
 * - sqrshl by -p is sat32((acc + 2^(p-1)) >> p) for p >= 1 and sat32(acc * 2^-p) for p <= 0; it rounds before it loses
 *   bits, in more than 32 of them. sqxtn then makes it the sat16 of the law. The same in 16 bits for a residual.
 * - sqrdmulh doubles: sat16((2 * t * m + 2^15) >> 16) = (t * m + 2^14) >> 15. It saturates for t = m = -2^15 alone, and
 *   the law has |m| < 2^15.
 * - sat16(sat16(u + u_r) + constant) is the law's own order, and sshl by -k is a floor.
 */
#ifndef INTONLY_KERNELS_ARM_NEON_EPILOGUE_H
#define INTONLY_KERNELS_ARM_NEON_EPILOGUE_H

#ifdef __ARM_NEON
#include <arm_neon.h>
#include <stdint.h>

#include "intonly.h"
#include "kernels/epilogue.h"

#define ALWAYS_INLINE static inline __attribute__((always_inline))

/* The scalars of a step, spread over vectors of 16 bits. */
typedef struct neon_narrow {
    int fits;               /* whether the functions below may finish this step */
    int joins;              /* whether a residual joins */
    int16x8_t constant;     /* (zero_point << k) + 2^(k-1) */
    int16x8_t down;         /* -k */
    int16x8_t lo, hi;
    uint8x8_t residual_flip; /* 128 turns signed codes into unsigned ones ... */
    int16x8_t residual_zero; /* ... whose zero point is this */
} neon_narrow;

/* The constants of 8 channels. */
typedef struct neon_channels {
    int32x4_t left_a, left_b; /* -p */
    int16x8_t multiplier;
    int16x8_t residual_left; /* -p of the residual */
    int16x8_t residual_multiplier;
} neon_channels;

static inline int neon_within(int32_t x, int32_t lo, int32_t hi) { return x >= lo && x <= hi; }

static inline neon_narrow neon_narrow_of(const intonly_epilogue *e, int64_t y_type, int64_t r_type) {
    const int joins = e->residual_multiplier != NULL, flip = r_type == INTONLY_S8 ? 128 : 0, k = e->fraction_bits;
    const int y_fits = (y_type == INTONLY_U8 && neon_within(e->zero_point, 0, 255)) ||
                       (y_type == INTONLY_S8 && neon_within(e->zero_point, -128, 127));
    const int r_fits = (r_type == INTONLY_U8 || r_type == INTONLY_S8) && neon_within(e->residual_zero, -128, 255);
    neon_narrow n = {.fits = e->form == INTONLY_FORM_NARROW && y_fits && (r_fits || !joins) && neon_within(k, 4, 7) &&
                             neon_within(e->lo, -128, 255) && neon_within(e->hi, -128, 255),
                     .joins = joins};
    if (!n.fits) return n;
    n.constant = vdupq_n_s16((int16_t)(e->zero_point * (1 << k) + (1 << (k - 1))));
    n.down = vdupq_n_s16((int16_t)-k);
    n.lo = vdupq_n_s16((int16_t)e->lo);
    n.hi = vdupq_n_s16((int16_t)e->hi);
    if (!joins) return n;
    n.residual_flip = vdup_n_u8((uint8_t)flip);
    n.residual_zero = vdupq_n_s16((int16_t)(e->residual_zero + flip));
    return n;
}

ALWAYS_INLINE int16x8_t neon_8_int32(const int32_t *x) {
    return vcombine_s16(vmovn_s32(vld1q_s32(x)), vmovn_s32(vld1q_s32(x + 4)));
}

/* Return the constants from index `at` on, or 8 times those at `at` for stride 0. Up to 7 entries behind the arrays are
 * read, and not used. */
ALWAYS_INLINE neon_channels neon_channels_at(const intonly_epilogue *e, int64_t at, int64_t stride) {
    const int8x8_t p = stride ? vld1_s8(e->shift + at) : vdup_n_s8(e->shift[at]);
    const int16x8_t left = vnegq_s16(vmovl_s8(p));
    neon_channels k = {.left_a = vmovl_s16(vget_low_s16(left)), .left_b = vmovl_high_s16(left)};
    k.multiplier = stride ? neon_8_int32(e->multiplier + at) : vdupq_n_s16((int16_t)e->multiplier[at]);
    if (e->residual_multiplier != NULL) {
        k.residual_left = vnegq_s16(vmovl_s8(vld1_s8(e->residual_shift + at)));
        k.residual_multiplier = neon_8_int32(e->residual_multiplier + at);
    }
    return k;
}

/* Return the codes of 8 accumulators. residual: 8 codes, read when a residual joins. */
ALWAYS_INLINE uint8x8_t neon_codes(const neon_narrow *n, const neon_channels *k, int32x4_t a, int32x4_t b,
                                   uint8x8_t residual) {
    const int16x4_t low = vqmovn_s32(vqrshlq_s32(a, k->left_a));
    int16x8_t u = vqrdmulhq_s16(vqmovn_high_s32(low, vqrshlq_s32(b, k->left_b)), k->multiplier);
    if (n->joins) {
        const int16x8_t codes = vreinterpretq_s16_u16(vmovl_u8(veor_u8(residual, n->residual_flip)));
        const int16x8_t t = vqrshlq_s16(vsubq_s16(codes, n->residual_zero), k->residual_left);
        u = vqaddq_s16(u, vqrdmulhq_s16(t, k->residual_multiplier));
    }
    const int16x8_t y = vshlq_s16(vqaddq_s16(u, n->constant), n->down);
    return vreinterpret_u8_s8(vmovn_s16(vminq_s16(vmaxq_s16(y, n->lo), n->hi)));
}

/* Return 8 bytes, of which `count` are in memory. */
ALWAYS_INLINE uint8x8_t neon_load(const uint8_t *p, int64_t count) {
    if (count >= 8) return vld1_u8(p);
    uint8_t bytes[8] = {0};
    for (int64_t i = 0; i < count; ++i) bytes[i] = p[i];
    return vld1_u8(bytes);
}

/* Write the first `count` of 8 bytes. */
ALWAYS_INLINE void neon_store(uint8_t *p, uint8x8_t codes, int64_t count) {
    if (count >= 8) {
        vst1_u8(p, codes);
        return;
    }
    uint8_t bytes[8];
    vst1_u8(bytes, codes);
    for (int64_t i = 0; i < count; ++i) p[i] = bytes[i];
}

/* Finish and store `count` (8 or fewer) channels of a pixel. r: its residual, null when none joins. */
ALWAYS_INLINE void neon_finish(const neon_narrow *n, const neon_channels *k, int32x4_t a, int32x4_t b, const uint8_t *r,
                               uint8_t *y, int64_t count) {
    neon_store(y, neon_codes(n, k, a, b, n->joins ? neon_load(r, count) : vdup_n_u8(0)), count);
}

#endif
#endif
