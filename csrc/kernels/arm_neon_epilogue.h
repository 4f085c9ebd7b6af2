/* SPDX-License-Identifier: Apache-2.0
 *
 * The law (arith.h) on 8 channels of one pixel, for the NEON kernels. The narrow form, in registers, is exact
 * instruction by instruction:
 *
 * - sqrshl by -p is sat32((acc + 2^(p-1)) >> p) for p >= 1 and sat32(acc * 2^-p) for p <= 0; it rounds before it loses
 *   bits, in more than 32 of them. sqxtn then makes it the sat16 of the law. The same in 16 bits for a residual.
 * - sqrdmulh doubles: sat16((2 * t * m + 2^15) >> 16) = (t * m + 2^14) >> 15. It saturates for t = m = -2^15 alone, and
 *   the law has |m| < 2^15.
 * - sat16(sat16(u + u_r) + constant) is the law's own order, and sshl by -k is a floor.
 *
 * All else is finished from memory. There, the wide form with s >= 32 is h = floor(acc * m / 2^31), which is sqdmulh,
 * and then (h + 2^(p-1)) >> p for p = s - 31, which is srshl: two floors in a row are one.
 */
#ifndef INTONLY_KERNELS_ARM_NEON_EPILOGUE_H
#define INTONLY_KERNELS_ARM_NEON_EPILOGUE_H

#if defined(__ARM_NEON) && !defined(__cplusplus)
#include <arm_neon.h>
#include <stdint.h>
#include <string.h>

#include "intonly.h"
#include "kernels/elements.h"
#include "kernels/epilogue.h"

#define ALWAYS_INLINE static inline __attribute__((always_inline))

/* How a step finishes its accumulators. */
typedef struct neon_epilogue {
    intonly_epilogue law;
    int64_t y_type, r_type;
    int in_registers; /* the narrow form, with scalars that the vectors below hold */
    int is_wide;      /* the wide form, with shifts of 32 or more */
    int joins;        /* whether a residual joins */
    int16x8_t constant; /* (zero_point << k) + 2^(k-1) */
    int16x8_t down;     /* -k */
    int16x8_t lo, hi;
    uint8x8_t residual_flip; /* 128 turns signed codes into unsigned ones ... */
    int16x8_t residual_zero; /* ... whose zero point is this */
} neon_epilogue;

static inline int neon_within(int32_t x, int32_t lo, int32_t hi) { return x >= lo && x <= hi; }

/* Prepare an epilogue, the law with its constants. channels: of the constants, when the channel is their index. */
static inline void neon_prepare(neon_epilogue *e, int64_t y_type, int64_t r_type, int64_t channels) {
    const intonly_epilogue *law = &e->law;
    const int y_fits = (y_type == INTONLY_U8 && neon_within(law->zero_point, 0, 255)) ||
                       (y_type == INTONLY_S8 && neon_within(law->zero_point, -128, 127));
    const int r_fits = (r_type == INTONLY_U8 || r_type == INTONLY_S8) && neon_within(law->residual_zero, -128, 255);
    const int32_t k = law->fraction_bits, flip = r_type == INTONLY_S8 ? 128 : 0;
    e->y_type = y_type;
    e->r_type = r_type;
    e->joins = law->residual_multiplier != NULL;
    e->in_registers = law->form == INTONLY_FORM_NARROW && y_fits && (r_fits || !e->joins) && neon_within(k, 4, 7) &&
                      neon_within(law->lo, -128, 255) && neon_within(law->hi, -128, 255);
    e->is_wide = law->form == INTONLY_FORM_WIDE && !e->joins && channels > 0;
    for (int64_t c = 0; e->is_wide && c < channels; ++c) e->is_wide = law->shift[c] >= 32;
    if (!e->in_registers) return;
    e->constant = vdupq_n_s16((int16_t)(law->zero_point * (1 << k) + (1 << (k - 1))));
    e->down = vdupq_n_s16((int16_t)-k);
    e->lo = vdupq_n_s16((int16_t)law->lo);
    e->hi = vdupq_n_s16((int16_t)law->hi);
    e->residual_flip = vdup_n_u8((uint8_t)flip);
    e->residual_zero = vdupq_n_s16((int16_t)(e->joins ? law->residual_zero + flip : 0));
}

/* The constants of 8 channels. */
typedef struct neon_channels {
    int32x4_t left_a, left_b; /* -p */
    int16x8_t multiplier;
    int16x8_t residual_left; /* -p of the residual */
    int16x8_t residual_multiplier;
} neon_channels;

/* Return a + b modulo 2^32: what has been added to a bias may leave its sums with codes out of range on the way. */
ALWAYS_INLINE int32x4_t neon_add(int32x4_t a, int32x4_t b) {
    return vreinterpretq_s32_u32(vaddq_u32(vreinterpretq_u32_s32(a), vreinterpretq_u32_s32(b)));
}

ALWAYS_INLINE int16x8_t neon_8_int32(const int32_t *x) {
    return vcombine_s16(vmovn_s32(vld1q_s32(x)), vmovn_s32(vld1q_s32(x + 4)));
}

/* Return the constants from index `at` on, or 8 times those at `at` for stride 0, where none are of a residual. Up to 7
 * entries behind the arrays are read, and not used. */
ALWAYS_INLINE neon_channels neon_channels_at(const neon_epilogue *e, int64_t at, int64_t stride) {
    const intonly_epilogue *law = &e->law;
    const int16x8_t left = vnegq_s16(vmovl_s8(stride ? vld1_s8(law->shift + at) : vdup_n_s8(law->shift[at])));
    neon_channels k = {.left_a = vmovl_s16(vget_low_s16(left)), .left_b = vmovl_high_s16(left)};
    k.multiplier = stride ? neon_8_int32(law->multiplier + at) : vdupq_n_s16((int16_t)law->multiplier[at]);
    if (e->joins) {
        k.residual_left = vnegq_s16(vmovl_s8(vld1_s8(law->residual_shift + at)));
        k.residual_multiplier = neon_8_int32(law->residual_multiplier + at);
    }
    return k;
}

/* Return the codes of 8 accumulators. residual: 8 codes, read when a residual joins. */
ALWAYS_INLINE uint8x8_t neon_codes(const neon_epilogue *e, const neon_channels *k, int32x4_t a, int32x4_t b,
                                   uint8x8_t residual) {
    const int16x4_t low = vqmovn_s32(vqrshlq_s32(a, k->left_a));
    int16x8_t u = vqrdmulhq_s16(vqmovn_high_s32(low, vqrshlq_s32(b, k->left_b)), k->multiplier);
    if (e->joins) {
        const int16x8_t codes = vreinterpretq_s16_u16(vmovl_u8(veor_u8(residual, e->residual_flip)));
        const int16x8_t t = vqrshlq_s16(vsubq_s16(codes, e->residual_zero), k->residual_left);
        u = vqaddq_s16(u, vqrdmulhq_s16(t, k->residual_multiplier));
    }
    const int16x8_t y = vshlq_s16(vqaddq_s16(u, e->constant), e->down);
    return vreinterpret_u8_s8(vmovn_s16(vminq_s16(vmaxq_s16(y, e->lo), e->hi)));
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

/* Finish in registers and store `count` (8 or fewer) channels. r: their residual, null when none joins. */
ALWAYS_INLINE void neon_finish(const neon_epilogue *e, const neon_channels *k, int32x4_t a, int32x4_t b,
                               const uint8_t *r, uint8_t *y, int64_t count) {
    neon_store(y, neon_codes(e, k, a, b, e->joins ? neon_load(r, count) : vdup_n_u8(0)), count);
}

/* Return the wide form of four accumulators; left: 31 - s. */
ALWAYS_INLINE int32x4_t neon_wide(const intonly_epilogue *law, const int32_t *acc, const int32_t *m, int32x4_t left) {
    const int32x4_t y = vrshlq_s32(vqdmulhq_s32(vld1q_s32(acc), vld1q_s32(m)), left);
    const int32x4_t moved = vqaddq_s32(y, vdupq_n_s32(law->zero_point));
    return vminq_s32(vmaxq_s32(moved, vdupq_n_s32(law->lo)), vdupq_n_s32(law->hi));
}

/* Finish 8 accumulators in memory and store `count` of them; `at`, stride: index of their constants. */
static inline void neon_finish_memory(const neon_epilogue *e, const int32_t *acc, int64_t at, int64_t stride,
                                      const uint8_t *r, uint8_t *y, int64_t count) {
    const int64_t y_bytes = intonly_bytes_of(e->y_type);
    int64_t values[8], residual[8];
    int32_t wide[8];
    if (e->is_wide) {
        const int16x8_t left = vsubq_s16(vdupq_n_s16(31), vmovl_s8(vld1_s8(e->law.shift + at)));
        const int32_t *m = e->law.multiplier + at;
        vst1q_s32(wide, neon_wide(&e->law, acc, m, vmovl_s16(vget_low_s16(left))));
        vst1q_s32(wide + 4, neon_wide(&e->law, acc + 4, m + 4, vmovl_high_s16(left)));
        acc = wide;
    }
    if (count == 8 && y_bytes == 2 && e->is_wide) {
        vst1q_u8(y, vreinterpretq_u8_s16(neon_8_int32(wide)));
        return;
    }
    for (int64_t c = 0; c < count; ++c) values[c] = acc[c];
    if (!e->is_wide) {
        if (e->joins) intonly_load(r, e->r_type, intonly_bytes_of(e->r_type), count, residual);
        intonly_finish(&e->law, at, stride, 0, 0, residual, count, values);
    }
    intonly_store(values, count, y, e->y_type, y_bytes);
}

#endif
#endif
