/* SPDX-License-Identifier: Apache-2.0
 *
 * The tile of the gemm step on NEON with dotprod: 8 rows by 8 channels, 16 accumulators, all of them in registers.
 *
 * For a block of 16 codes, each row is one vector, and each of its four lanes is multiplied with four codes of 8
 * channels: 64 sdot for 8 + 8 loads. All else is shared with plain NEON.
 */
#include "kernels/gemm/arm_neon.h"

void intonly_gemm_pack_neon_dotprod(const intonly_weights *weights, uint8_t *packed) {
    intonly_gemm_pack_neon_width(weights, 2, packed);
}

int intonly_gemm_accepts_neon_dotprod(const intonly_gemm *step, const uint8_t *packed) {
    return intonly_gemm_accepts_neon(step, packed);
}

#define LOAD(row) const int8x16_t a##row = vld1q_s8(codes + row * NEON_DEPTH);
#define WEIGHTS(lane, bits)                                                                                            \
    const int8x16_t u##lane = neon_weights(w, bits, book, 2 * lane);                                                   \
    const int8x16_t v##lane = neon_weights(w, bits, book, 2 * lane + 1);
/* Volatile statements stay in order, the next with the same accumulator 16 dot products later. Left alone, gcc puts
 * some side by side, and a processor that works in order waits. */
#define DOT(acc, w, a, lane) __asm__ volatile("sdot %0.4s, %1.16b, %2.4b[" #lane "]" : "+w"(acc) : "w"(w), "w"(a));
#define LANE(row, lane) DOT(p##row, u##lane, a##row, lane) DOT(q##row, v##lane, a##row, lane)
#define LANE_0(row) LANE(row, 0)
#define LANE_1(row) LANE(row, 1)
#define LANE_2(row) LANE(row, 2)
#define LANE_3(row) LANE(row, 3)

#define TILE(rows, bits)                                                                                               \
    static void multiply_##rows##_##bits(neon_tile *t) {                                                               \
        const int8_t *w = t->w, *codes = t->codes, *const end = codes + t->blocks * NEON_BLOCK;                        \
        const int8x16_t book = vld1q_s8(t->book);                                                                      \
        ROWS_##rows(ROW_BEGIN)                                                                                         \
        do {                                                                                                           \
            ROWS_##rows(LOAD)                                                                                          \
            WEIGHTS(0, bits) WEIGHTS(1, bits) ROWS_##rows(LANE_0)                                                      \
            WEIGHTS(2, bits) ROWS_##rows(LANE_1)                                                                       \
            WEIGHTS(3, bits) ROWS_##rows(LANE_2)                                                                       \
            ROWS_##rows(LANE_3)                                                                                        \
            codes += NEON_BLOCK;                                                                                       \
            w += 16 * bits;                                                                                            \
        } while (codes < end);                                                                                         \
        const neon_channels k = neon_channels_of(t);                                                                   \
        ROWS_##rows(ROW_PUT)                                                                                           \
    }
TILE(1, 8)
TILE(2, 8)
TILE(3, 8)
TILE(4, 8)
TILE(5, 8)
TILE(6, 8)
TILE(7, 8)
TILE(8, 8)
TILE(1, 4)
TILE(2, 4)
TILE(1, 2)
TILE(2, 2)

static void multiply(neon_tile *t, int careful) {
    static void (*const tiles[NEON_ROWS])(neon_tile *) = {multiply_1_8, multiply_2_8, multiply_3_8, multiply_4_8,
                                                          multiply_5_8, multiply_6_8, multiply_7_8, multiply_8_8};
    static void (*const few[2][NEON_FEW])(neon_tile *) = {{multiply_1_4, multiply_2_4}, {multiply_1_2, multiply_2_2}};
    (void)careful;
    (t->bits == 8 ? tiles : few[t->bits == 2])[t->rows - 1](t);
}

void intonly_gemm_neon_dotprod(const void *step, uint8_t *const *bases, unsigned part, unsigned parts) {
    intonly_gemm_neon_walk(step, bases, part, parts, multiply);
}
