/* SPDX-License-Identifier: Apache-2.0
 *
 * The packed form of the AVX-512 VNNI depthwise convolution: a summary, then panels of 64 channels, each with its
 * constants before its weights, int8 [groups of taps][64 slots][4]. The last panel is padded with zero weights.
 *
 * Four taps are a group: the dot product takes the codes of four taps for one channel. Nine taps make three groups, by
 * the columns of 3 x 3: taps 0 3 6, 1 4 7 and 2 5 8, and a fourth of weight 0. All others are taken in order, and the
 * last group is filled with weight 0.
 */
#ifndef INTONLY_WINDOW_X86_AVX512VNNI_H
#define INTONLY_WINDOW_X86_AVX512VNNI_H

#include <stdint.h>

#include "kernels/kernels.h"
#include "kernels/narrow.h"
#include "kernels/x86_avx512.h"

/* Return the number of groups of four taps. */
static inline int64_t window_groups(int64_t taps) { return (taps + 3) >> 2; }

/* Return the tap at a place of a group; `taps` or more where the weight is 0. */
static inline int64_t window_tap(int64_t group, int64_t place, int64_t taps) {
    if (taps != 9) return 4 * group + place;
    return place < 3 ? 3 * place + group : taps;
}

static inline int64_t window_panels(int64_t channels) { return (channels + 63) >> 6; }

static inline int64_t window_panel_bytes(int64_t taps) {
    return (int64_t)sizeof(panel_constants) + window_groups(taps) * 256;
}

/* A step on its way. Taps are in groups of four; those of the last group that are missing have weight 0. */
typedef struct window {
    const intonly_window *step;
    const int64_t *offsets; /* [4 * groups] */
    int64_t groups, last_group[4];
    int has_last_group;
    int64_t weights_step; /* bytes between the weights of groups: 256, or 0 where all are 1 */
    int fast;             /* the epilogue runs on registers; else by the plain law, on a copy */
    int joins;            /* whether a residual does */
    narrow_summary summary;
} window;

/* Pixels of an image, and up to 64 channels of them. The pointers are those of the first of them. */
typedef struct window_area {
    const panel_constants *constants;
    const int8_t *weights, *last_weights;
    int64_t channels, lines, pixels;
    const uint8_t *x, *residual;
    uint8_t *y;
} window_area;

typedef void (*window_kernel)(const window *v, const window_area *a);

size_t intonly_depthwise_size_avx512vnni(const intonly_weights *weights);
void intonly_depthwise_pack_avx512vnni(const intonly_weights *weights, uint8_t *packed);
int intonly_depthwise_accepts_avx512vnni(const intonly_window *step, const uint8_t *packed);
void intonly_window_avx512vnni(const void *step, uint8_t *const *bases, unsigned part, unsigned parts);

#endif
