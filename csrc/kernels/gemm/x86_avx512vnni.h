/* SPDX-License-Identifier: Apache-2.0
 *
 * The packed form of the AVX-512 VNNI gemm: a head, then panels of output channels, each with all its constants before
 * its weights, so that a panel is one stream.
 *
 * Panels have 64 channels while more than 48 are left; the rest makes panels of 32 and 16. The last one is padded with
 * zero weights.
 * Weights: [K / 4][16 * vectors][4], K = taps * tap_bytes, in slot order (kernels/x86_avx512.h) for the narrow form,
 * in the order of the channels for the others. With int16 x, two weights of 16 bits stand in the place of four. Few different ones are
 * places in the book of the head (book.h), in groups of `16 * vectors * 4`; a tile looks them up in registers.
 */
#ifndef INTONLY_GEMM_X86_AVX512VNNI_H
#define INTONLY_GEMM_X86_AVX512VNNI_H

#include <stdint.h>

#include "kernels/gemm/book.h"
#include "kernels/kernels.h"
#include "kernels/x86_avx512.h"

/* What stands before the panels. */
typedef struct gemm_head {
    narrow_summary summary;
    int64_t bits;    /* of a stored weight: 8, 4 or 2; 16 where x is int16, and K counts its bytes */
    int8_t book[16]; /* the weight of each place; not read with 8 bits */
    int64_t joins_short; /* whether the wide form with a residual gives less than 2^30 before it is clamped */
} gemm_head;

/* A panel of a packed form. */
typedef struct gemm_panel {
    const panel_constants *constants;
    const uint8_t *weights;
    int64_t vectors;  /* of 16 channels: 4, 2 or 1 */
    int64_t channel;  /* its first */
    int64_t channels; /* without the padding */
} gemm_panel;

/* Return the vectors of the panel that begins `left` channels before the end. */
static inline int64_t gemm_vectors(int64_t left) { return left > 48 ? 4 : left > 16 ? 2 : 1; }

/* Return the number of panels. */
static inline int64_t gemm_panels(int64_t channels) {
    const int64_t wide = (channels + 15) >> 6, rest = channels - 64 * wide;
    return wide + (rest > 0) + (rest > 32);
}

/* Return the first channel of panel `index`: only the very last can follow one that is narrower than 64. */
static inline int64_t gemm_channel(int64_t index, int64_t channels) {
    const int64_t wide = (channels + 15) >> 6;
    return index > wide ? 64 * wide + 32 : 64 * index;
}

/* Return panel `index`. */
static inline gemm_panel gemm_panel_of(const uint8_t *packed, int64_t index, int64_t channels, int64_t k,
                                       int64_t bits) {
    const int64_t channel = gemm_channel(index, channels), left = channels - channel;
    const int64_t at = PACKED_HEAD + index * (int64_t)sizeof(panel_constants) + (channel * k >> book_dense(bits));
    gemm_panel p;
    p.constants = (const panel_constants *)(const void *)(packed + at);
    p.weights = (const uint8_t *)(p.constants + 1);
    p.vectors = gemm_vectors(left);
    p.channel = channel;
    p.channels = left < 16 * p.vectors ? left : 16 * p.vectors;
    return p;
}

/* Return the bytes of a packed form, whole cache lines. */
static inline int64_t gemm_bytes(int64_t channels, int64_t k, int64_t bits) {
    const int64_t panels = gemm_panels(channels), last = gemm_channel(panels - 1, channels);
    const int64_t width = last + 16 * gemm_vectors(channels - last);
    const int64_t weights = ((width * k >> book_dense(bits)) + 63) & ~INT64_C(63);
    return PACKED_HEAD + panels * (int64_t)sizeof(panel_constants) + weights;
}

size_t intonly_gemm_size_avx512vnni(const intonly_weights *weights);
void intonly_gemm_pack_avx512vnni(const intonly_weights *weights, uint8_t *packed);
int intonly_gemm_accepts_avx512vnni(const intonly_gemm *step, const uint8_t *packed);
void intonly_gemm_avx512vnni(const void *step, uint8_t *const *bases, unsigned part, unsigned parts);

#endif
