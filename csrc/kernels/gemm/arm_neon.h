/* SPDX-License-Identifier: Apache-2.0
 *
 * What the NEON kernels of gemm share. Only the tile differs, the product of up to 8 rows (pixels) and 8 channels:
 * plain NEON multiplies bytes into 16 bits, dotprod has an instruction for four of them. Codes of 16 bits have one tile
 * for both (gemm/arm_neon_words.h).
 *
 * All multiply signed codes. Those of up to 8 rows are gathered into a buffer, once for all channels; there 128 is
 * subtracted from unsigned ones, and 128 * sum(w) is in the bias. So x may be of either sign: wants_signed is -1.
 *
 * The packed form is that of packed.h, with weights at the next multiple of 64 bytes. K, the codes of all taps, is
 * rounded up to blocks of 16: [channels / 8][K / width][8][width], width 16, 4 or 1 as the tile wants it, the rest 0.
 * Few different weights are places in a book, in groups of a block (book.h), and the book stands before them.
 */
#ifndef INTONLY_GEMM_ARM_NEON_H
#define INTONLY_GEMM_ARM_NEON_H

#include <stddef.h>
#include <stdint.h>

#include "kernels/gemm/rows.h"
#include "kernels/kernels.h"

size_t intonly_gemm_size_neon(const intonly_weights *weights);
void intonly_gemm_pack_neon(const intonly_weights *weights, uint8_t *packed);
int intonly_gemm_accepts_neon(const intonly_gemm *step, const uint8_t *packed);
void intonly_gemm_neon(const void *step, uint8_t *const *bases, unsigned part, unsigned parts);

void intonly_gemm_pack_neon_dotprod(const intonly_weights *weights, uint8_t *packed);
int intonly_gemm_accepts_neon_dotprod(const intonly_gemm *step, const uint8_t *packed);
void intonly_gemm_neon_dotprod(const void *step, uint8_t *const *bases, unsigned part, unsigned parts);

#if defined(__ARM_NEON) && !defined(__cplusplus)
#include "kernels/arm_neon_epilogue.h"

/* NEON_DEPTH: bytes of a row in the buffer, those of the deepest layers that are common; deeper ones go in pieces. */
enum { NEON_ROWS = 8, NEON_CHANNELS = 8, NEON_BLOCK = 16, NEON_DEPTH = 4608, NEON_FEW = 2 };

/* Rows by channels on their way. */
typedef struct neon_tile {
    int64_t rows;
    const uint8_t *x[NEON_ROWS], *r[NEON_ROWS]; /* the first channel of each row */
    uint8_t *y[NEON_ROWS];
    int64_t channel, channels; /* the first of the 8, and how many are real */
    const int8_t *w;
    int64_t bits;         /* of a stored weight; fewer than 8 only with at most NEON_FEW rows */
    const int8_t *book;   /* the weight of each place, 16 */
    int8_t *codes;        /* those of the first row, of 8 or 16 bits; of the next ones NEON_DEPTH bytes further each */
    int64_t blocks;       /* of 16 codes, 1 or more */
    const int32_t *start; /* the sums so far: 8 channels, for each row `start_step` further; at first the bias */
    int64_t start_step;
    const neon_epilogue *finish; /* how to finish the sums in registers; null = they go to `sums` */
    int32_t *sums;               /* [rows][8] */
} neon_tile;

/* Multiply a tile. careful: two products of plain NEON may exceed 16 bits. */
typedef void (*neon_multiply)(neon_tile *tile, int careful);

/* Return the constants of the tile's channels, when it finishes them. */
ALWAYS_INLINE neon_channels neon_channels_of(const neon_tile *t) {
    if (t->finish != NULL) return neon_channels_at(t->finish, t->channel, 1);
    return (neon_channels){.multiplier = vdupq_n_s16(0)};
}

/* Return vector `i` of the 8 that hold the weights of a block, looked up where they have few bits. */
ALWAYS_INLINE int8x16_t neon_weights(const int8_t *block, int64_t bits, int8x16_t book, int i) {
    if (bits == 8) return vld1q_s8(block + 16 * i);
    const uint8x16_t stored = vld1q_u8((const uint8_t *)block + 16 * (i & ((int)bits - 1)));
    const int field = bits == 4 ? 4 * (i >> 2) : 2 * (i >> 1);
    const uint8x16_t place = vshlq_u8(stored, vdupq_n_s8((int8_t)-field));
    return vqtbl1q_s8(book, vandq_u8(place, vdupq_n_u8(bits == 4 ? 15 : 3)));
}

/* Store the sums of a row, finished or not. */
ALWAYS_INLINE void neon_put(neon_tile *t, const neon_channels *k, int64_t row, int32x4_t a, int32x4_t b) {
    if (t->finish != NULL) {
        neon_finish(t->finish, k, a, b, t->r[row] + t->channel, t->y[row] + t->channel, t->channels);
    } else {
        vst1q_s32(t->sums + row * NEON_CHANNELS, a);
        vst1q_s32(t->sums + row * NEON_CHANNELS + 4, b);
    }
}

#define ROW_BEGIN(row)                                                                                                 \
    int32x4_t p##row = vld1q_s32(t->start + row * t->start_step);                                                      \
    int32x4_t q##row = vld1q_s32(t->start + row * t->start_step + 4);
#define ROW_PUT(row) neon_put(t, &k, row, p##row, q##row);

/* Pack for a tile of bytes of this width, 1 << log2. */
void intonly_gemm_pack_neon_width(const intonly_weights *weights, int log2, uint8_t *packed);

/* Run a part of a step, with these tiles where codes are bytes. */
void intonly_gemm_neon_walk(const intonly_gemm *step, uint8_t *const *bases, unsigned part, unsigned parts,
                            neon_multiply multiply);
#endif
#endif
