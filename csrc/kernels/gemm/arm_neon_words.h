/* SPDX-License-Identifier: Apache-2.0
 *
 * The tile of int16 codes, for NEON with and without dotprod: up to 8 rows by 8 channels, 16 accumulators, all of them
 * in registers.
 *
 * The weights are bytes, [K][8]. A vector of them, two codes for 8 channels, is widened once for all rows, and smlal
 * multiplies it with lanes of the codes: 32 of them for 3 other instructions.
 */
#ifndef INTONLY_GEMM_ARM_NEON_WORDS_H
#define INTONLY_GEMM_ARM_NEON_WORDS_H

#include "kernels/gemm/arm_neon.h"

#if defined(__ARM_NEON) && !defined(__cplusplus)

/* The codes of half a block. */
#define WORDS_LOAD(row) const int16x8_t a##row = vreinterpretq_s16_s8(vld1q_s8(codes + row * NEON_DEPTH));
/* A lane of codes must stand in one of the first 16 registers. Left alone, gcc moves them there again and again, and
 * puts products with the same accumulator side by side: see gemm/arm_neon_dotprod.c. */
#define WORDS_ADD(row, w, lane)                                                                                        \
    __asm__ volatile("smlal %0.4s, %1.4h, %2.h[" #lane "]" : "+w"(p##row) : "w"(w), "x"(a##row));                      \
    __asm__ volatile("smlal2 %0.4s, %1.8h, %2.h[" #lane "]" : "+w"(q##row) : "w"(w), "x"(a##row));
#define WORDS_ADD_0(row) WORDS_ADD(row, even, 0)
#define WORDS_ADD_1(row) WORDS_ADD(row, odd, 1)
#define WORDS_ADD_2(row) WORDS_ADD(row, even, 2)
#define WORDS_ADD_3(row) WORDS_ADD(row, odd, 3)
#define WORDS_ADD_4(row) WORDS_ADD(row, even, 4)
#define WORDS_ADD_5(row) WORDS_ADD(row, odd, 5)
#define WORDS_ADD_6(row) WORDS_ADD(row, even, 6)
#define WORDS_ADD_7(row) WORDS_ADD(row, odd, 7)

/* Codes 2 * i and 2 * i + 1 of a block, in these lanes. */
#define WORDS_TWO(rows, bits, i, lane0, lane1)                                                                         \
    {                                                                                                                  \
        const int8x16_t stored = neon_weights(w, bits, book, i);                                                       \
        const int16x8_t even = vmovl_s8(vget_low_s8(stored)), odd = vmovl_high_s8(stored);                             \
        ROWS_##rows(WORDS_ADD_##lane0) ROWS_##rows(WORDS_ADD_##lane1)                                                  \
    }
#define WORDS_HALF(rows, bits, i)                                                                                      \
    {                                                                                                                  \
        ROWS_##rows(WORDS_LOAD)                                                                                        \
        WORDS_TWO(rows, bits, i, 0, 1)                                                                                 \
        WORDS_TWO(rows, bits, i + 1, 2, 3)                                                                             \
        WORDS_TWO(rows, bits, i + 2, 4, 5)                                                                             \
        WORDS_TWO(rows, bits, i + 3, 6, 7)                                                                             \
        codes += 16;                                                                                                   \
    }

#define WORDS_TILE(rows, bits)                                                                                         \
    static inline void words_##rows##_##bits(neon_tile *t) {                                                           \
        const int8_t *w = t->w, *codes = t->codes, *const end = codes + t->blocks * 2 * NEON_BLOCK;                    \
        const int8x16_t book = vld1q_s8(t->book);                                                                      \
        ROWS_##rows(ROW_BEGIN)                                                                                         \
        do {                                                                                                           \
            WORDS_HALF(rows, bits, 0)                                                                                  \
            WORDS_HALF(rows, bits, 4)                                                                                  \
            w += 16 * bits;                                                                                            \
        } while (codes < end);                                                                                         \
        const neon_channels k = neon_channels_of(t);                                                                   \
        ROWS_##rows(ROW_PUT)                                                                                           \
    }
WORDS_TILE(1, 8)
WORDS_TILE(2, 8)
WORDS_TILE(3, 8)
WORDS_TILE(4, 8)
WORDS_TILE(5, 8)
WORDS_TILE(6, 8)
WORDS_TILE(7, 8)
WORDS_TILE(8, 8)
WORDS_TILE(1, 4)
WORDS_TILE(2, 4)
WORDS_TILE(1, 2)
WORDS_TILE(2, 2)

static inline void neon_multiply_words(neon_tile *t, int careful) {
    static void (*const tiles[NEON_ROWS])(neon_tile *) = {words_1_8, words_2_8, words_3_8, words_4_8,
                                                          words_5_8, words_6_8, words_7_8, words_8_8};
    static void (*const few[2][NEON_FEW])(neon_tile *) = {{words_1_4, words_2_4}, {words_1_2, words_2_2}};
    (void)careful;
    (t->bits == 8 ? tiles : few[t->bits == 2])[t->rows - 1](t);
}

#endif
#endif
