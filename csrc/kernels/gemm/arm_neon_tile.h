/* SPDX-License-Identifier: Apache-2.0
 *
 * The tile of plain NEON for bytes: two rows at a time by 8 channels, whose 16 accumulators each hold four partial
 * sums.
 *
 * 16 codes of a channel take three instructions: two products fit in 16 bits, and are then added in pairs to 32 bits.
 * Two products of -128 and -128 do not fit. Our own quantizer has no weight of -128; an imported layer in which two
 * such weights meet is marked when it is packed, and is multiplied with care: one product at a time.
 */
#ifndef INTONLY_GEMM_ARM_NEON_TILE_H
#define INTONLY_GEMM_ARM_NEON_TILE_H

#include "kernels/gemm/arm_neon.h"

#if defined(__ARM_NEON) && !defined(__cplusplus)

/* acc += the products of 16 codes and weights, added in fours. */
ALWAYS_INLINE int32x4_t multiply16(int32x4_t acc, int8x16_t a, int8x16_t w, int careful) {
    int16x8_t products = vmull_s8(vget_low_s8(a), vget_low_s8(w));
    if (careful) {
        acc = vpadalq_s16(acc, products);
        products = vmull_high_s8(a, w);
    } else {
        products = vmlal_high_s8(products, a, w);
    }
    return vpadalq_s16(acc, products);
}

/* Return the sums of four accumulators. */
ALWAYS_INLINE int32x4_t add_up(int32x4_t a, int32x4_t b, int32x4_t c, int32x4_t d) {
    return vpaddq_s32(vpaddq_s32(a, b), vpaddq_s32(c, d));
}

/* One row or two. The accumulators have names, not indices: the compiler then keeps them in registers. */
#define CHANNELS(M) M(0) M(1) M(2) M(3) M(4) M(5) M(6) M(7)
#define BEGIN(c) int32x4_t p##c = vdupq_n_s32(0), q##c = vdupq_n_s32(0);
#define MULTIPLY(c)                                                                                                    \
    {                                                                                                                  \
        const int8x16_t v = neon_weights(w, bits, book, c);                                                            \
        p##c = multiply16(p##c, a, v, careful);                                                                        \
        if (two) q##c = multiply16(q##c, b, v, careful);                                                               \
    }
#define PUT(row, acc)                                                                                                  \
    {                                                                                                                  \
        const int32_t *start = t->start + (row)*t->start_step;                                                         \
        neon_put(t, k, row, neon_add(vld1q_s32(start), add_up(acc##0, acc##1, acc##2, acc##3)),                        \
                 neon_add(vld1q_s32(start + 4), add_up(acc##4, acc##5, acc##6, acc##7)));                              \
    }

ALWAYS_INLINE void rows_of(neon_tile *t, const neon_channels *k, int64_t row, int two, int careful, int64_t bits) {
    const int8_t *w = t->w, *codes = t->codes + row * NEON_DEPTH, *const end = codes + t->blocks * NEON_BLOCK;
    const int8x16_t book = vld1q_s8(t->book);
    CHANNELS(BEGIN)
    do {
        const int8x16_t a = vld1q_s8(codes), b = two ? vld1q_s8(codes + NEON_DEPTH) : a;
        CHANNELS(MULTIPLY)
        codes += NEON_BLOCK;
        w += 16 * bits;
    } while (codes < end);
    PUT(row, p)
    if (two) PUT(row + 1, q)
}

ALWAYS_INLINE void multiply_rows(neon_tile *t, int careful, int64_t bits) {
    const neon_channels k = neon_channels_of(t);
    int64_t row = 0;
    for (; row + 2 <= t->rows; row += 2) rows_of(t, &k, row, 1, careful, bits);
    if (row < t->rows) rows_of(t, &k, row, 0, careful, bits);
}

#endif
#endif
