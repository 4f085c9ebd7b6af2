/* SPDX-License-Identifier: Apache-2.0
 *
 * What the NEON kernels of gemm share. Only the tile differs, the product of up to 8 rows (pixels) and 8 channels:
 * plain NEON multiplies bytes into 16 bits, dotprod has an instruction for four of them.
 *
 * Both multiply signed bytes. The codes of up to 8 rows are gathered into a buffer, once for all channels; there 128 is
 * subtracted from unsigned ones, and 128 * sum(w) is in the bias. So x may be of either sign: wants_signed is -1.
 *
 * The packed form is that of packed.h, with weights at the next multiple of 64 bytes. K = taps * tap_bytes is rounded
 * up to blocks of 16 codes: [channels / 8][K / width][8][width], width 16 or 4 as the tile wants it, the rest 0.
 */
#ifndef INTONLY_GEMM_ARM_NEON_H
#define INTONLY_GEMM_ARM_NEON_H

#include <stddef.h>
#include <stdint.h>

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

/* NEON_DEPTH: codes of a row in the buffer, those of the deepest layers that are common; deeper ones go in pieces. */
enum { NEON_ROWS = 8, NEON_CHANNELS = 8, NEON_BLOCK = 16, NEON_DEPTH = 4608 };

/* Rows by channels on their way. */
typedef struct neon_tile {
    int64_t rows;
    const uint8_t *x[NEON_ROWS], *r[NEON_ROWS]; /* the first channel of each row */
    uint8_t *y[NEON_ROWS];
    int64_t channel, channels; /* the first of the 8, and how many are real */
    const int8_t *w;
    int64_t blocks;       /* of 16 codes, 1 or more */
    const int32_t *start; /* the sums so far: 8 channels, for each row `start_step` further; at first the bias */
    int64_t start_step;
    const neon_epilogue *finish; /* how to finish the sums in registers; null = they go to `sums` */
    int32_t sums[NEON_ROWS][NEON_CHANNELS];
    int8_t codes[NEON_ROWS][NEON_DEPTH];
} neon_tile;

/* Multiply a tile. careful: two products of plain NEON may exceed 16 bits. */
typedef void (*neon_multiply)(neon_tile *tile, int careful);

/* Return the constants of the tile's channels, when it finishes them. */
ALWAYS_INLINE neon_channels neon_channels_of(const neon_tile *t) {
    if (t->finish != NULL) return neon_channels_at(t->finish, t->channel, 1);
    return (neon_channels){.multiplier = vdupq_n_s16(0)};
}

/* Store the sums of a row, finished or not. */
ALWAYS_INLINE void neon_put(neon_tile *t, const neon_channels *k, int64_t row, int32x4_t a, int32x4_t b) {
    if (t->finish != NULL) {
        neon_finish(t->finish, k, a, b, t->r[row] + t->channel, t->y[row] + t->channel, t->channels);
    } else {
        vst1q_s32(t->sums[row], a);
        vst1q_s32(t->sums[row] + 4, b);
    }
}

/* Pack for a tile of this width, 1 << log2. */
void intonly_gemm_pack_neon_width(const intonly_weights *weights, int log2, uint8_t *packed);

/* Run a part of a step with these tiles. */
void intonly_gemm_neon_walk(const intonly_gemm *step, uint8_t *const *bases, unsigned part, unsigned parts,
                            neon_multiply multiply);
#endif
#endif
