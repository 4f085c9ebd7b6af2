/* SPDX-License-Identifier: Apache-2.0
 *
 * gemm in plain C. Two output pixels share every multiplication: with x = x0 + 2^32 * x1, the 64-bit sum of x * w holds
 * the sum of x0 * w in its lower half and, but for a borrow, the sum of x1 * w in its upper half. Sums are modulo 2^64,
 * so each half is right modulo 2^32, which is enough: the accumulator that comes out fits in 32 bits.
 *
 * Weights are packed [channels / GROUP][taps][depth][GROUP], the order in which they are read; missing channels are 0.
 * They keep 8 bits however few different ones there are: a look-up of one weight takes as many instructions as its
 * product, and the layers whose weights take the memory, matrix by vector, have only one product to share it. Here
 * such a layer waits for its multiplications, not for its memory, so that nothing would pay for the look-ups.
 */
#include "kernels/gemm/gemm.h"

#include <string.h>

#include "kernels/elements.h"
#include "kernels/epilogue.h"
#include "kernels/packed.h"

#define GROUP 4                 /* channels that are summed together, in registers */
#define BLOCK (INTONLY_CHUNK / 2) /* channels that are finished together, for two pixels */

static int64_t groups_of(int64_t channels) { return (channels + GROUP - 1) >> 2; }

static intonly_packed layout(int64_t channels, int64_t codes) {
    return intonly_packed_layout(channels, groups_of(channels) * codes * GROUP);
}

size_t intonly_gemm_size_ref(const intonly_weights *weights) {
    if (weights->acc_limit > INT32_MAX) return 0;
    return (size_t)layout(weights->channels, weights->taps * weights->depth).bytes;
}

void intonly_gemm_pack_ref(const intonly_weights *weights, uint8_t *packed) {
    const int64_t codes = weights->taps * weights->depth;
    int8_t *target = intonly_packed_begin(weights, groups_of(weights->channels) * codes * GROUP, packed);
    for (int64_t c = 0; c < weights->channels; ++c) {
        int8_t *group = target + (c >> 2) * codes * GROUP + (c & (GROUP - 1));
        for (int64_t k = 0; k < codes; ++k) group[k * GROUP] = weights->w[c * codes + k];
    }
}

int intonly_gemm_accepts_ref(const intonly_gemm *step, const uint8_t *packed) {
    if (step->packed_bytes < (int64_t)sizeof(int64_t)) return 0;
    const int64_t depth = intonly_packed_depth(packed), limit = step->packed_bytes;
    const int64_t tap_codes = step->tap_bytes >> (step->x_type == INTONLY_S16);
    if (depth < 1 || depth > tap_codes || !intonly_product_within(depth, step->taps, limit)) return 0;
    const int64_t codes = depth * step->taps;
    if (!intonly_product_within(codes, step->oc, limit)) return 0;
    const intonly_packed at = layout(step->oc, codes);
    return at.bytes == limit && intonly_packed_constants_hold(packed, &at, step->oc, step->form, step->r_ref >= 0);
}

/* The sums of GROUP channels at two pixels. w: the weights of the group. */
#define SUMS(name, code)                                                                                               \
    static void name(const uint8_t *left, const uint8_t *right, const int64_t *offsets, int64_t taps, int64_t depth,   \
                     const int8_t *w, uint64_t *sums) {                                                                \
        uint64_t s0 = 0, s1 = 0, s2 = 0, s3 = 0;                                                                       \
        for (int64_t t = 0; t < taps; ++t) {                                                                           \
            const code *l = (const code *)(left + offsets[t]), *r = (const code *)(right + offsets[t]);                \
            for (int64_t k = 0; k < depth; ++k, w += GROUP) {                                                          \
                const uint64_t x = (uint64_t)(int64_t)l[k] + ((uint64_t)(int64_t)r[k] << 32);                          \
                s0 += x * (uint64_t)(int64_t)w[0];                                                                     \
                s1 += x * (uint64_t)(int64_t)w[1];                                                                     \
                s2 += x * (uint64_t)(int64_t)w[2];                                                                     \
                s3 += x * (uint64_t)(int64_t)w[3];                                                                     \
            }                                                                                                          \
        }                                                                                                              \
        sums[0] = s0, sums[1] = s1, sums[2] = s2, sums[3] = s3;                                                        \
    }
SUMS(sums_u8, uint8_t)
SUMS(sums_s8, int8_t)
SUMS(sums_s16, int16_t)

/* Return the accumulator whose value modulo 2^32 is this. */
static int64_t low_half(uint64_t sum) {
    const int64_t bits = (int64_t)(sum & UINT32_MAX);
    return bits <= INT32_MAX ? bits : bits - (INT64_C(1) << 32);
}

typedef void (*gemm_sums)(const uint8_t *left, const uint8_t *right, const int64_t *offsets, int64_t taps,
                          int64_t depth, const int8_t *w, uint64_t *sums);

typedef struct gemm {
    const intonly_gemm *step;
    gemm_sums sums; /* of the type of x */
    const uint8_t *x, *r; /* r may be null */
    uint8_t *y;
    const int64_t *offsets;
    int64_t depth;
    const int32_t *bias;
    const int8_t *w;
    intonly_epilogue epilogue;
} gemm;

/* Write channels `first`.. of one pixel. */
static void finish(const gemm *g, int64_t *acc, int64_t pixel, int64_t residual, int64_t first, int64_t count) {
    int64_t joining[BLOCK];
    const int64_t r_bytes = intonly_bytes_of(g->step->r_type), y_bytes = intonly_bytes_of(g->step->y_type);
    if (g->epilogue.residual_multiplier != NULL)
        intonly_load(g->r + residual + first * r_bytes, g->step->r_type, r_bytes, count, joining);
    intonly_finish(&g->epilogue, first, 1, 0, 0, joining, count, acc);
    intonly_store(acc, count, g->y + pixel + first * y_bytes, g->step->y_type, y_bytes);
}

/* Channels `first`.. (at most BLOCK) of pixels j and j + 1 of row i; a last pixel without a neighbour is its own. */
static void pair(const gemm *g, int64_t image, int64_t i, int64_t j, int64_t first, int64_t count) {
    const intonly_gemm *s = g->step;
    const int64_t next = j + 1 < s->ow, panel = s->taps * g->depth * GROUP;
    const uint8_t *x = g->x + image * s->x_n + i * s->x_h + j * s->x_w;
    const int8_t *w = g->w + (first >> 2) * panel;
    uint64_t sums[BLOCK];
    int64_t left[BLOCK], right[BLOCK];
    for (int64_t c = 0; c < count; c += GROUP, w += panel)
        g->sums(x, x + next * s->x_w, g->offsets, s->taps, g->depth, w, sums + c);
    for (int64_t c = 0; c < count; ++c) {
        const uint64_t sum = sums[c] + (uint64_t)(int64_t)g->bias[first + c] * ((UINT64_C(1) << 32) + 1);
        left[c] = low_half(sum);
        right[c] = low_half((sum - (uint64_t)left[c]) >> 32);
    }
    const int64_t y = image * s->y_n + i * s->y_h + j * s->y_w, r = image * s->r_n + i * s->r_h + j * s->r_w;
    finish(g, left, y, r, first, count);
    if (next) finish(g, right, y + s->y_w, r + s->r_w, first, count);
}

static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

/* Channels first..end of row i. */
static void row(const gemm *g, int64_t image, int64_t i, int64_t first, int64_t end) {
    for (int64_t j = 0; j < g->step->ow; j += 2)
        for (int64_t c = first; c < end; c += BLOCK) pair(g, image, i, j, c, smaller(BLOCK, end - c));
}

/* Channels first..end of rows row_first..row_end, counted over all images. */
static void rows(const gemm *g, int64_t row_first, int64_t row_end, int64_t first, int64_t end) {
    for (int64_t image = 0, top = 0; image < g->step->n; ++image, top += g->step->oh) {
        const int64_t from = row_first > top ? row_first - top : 0, to = smaller(row_end - top, g->step->oh);
        for (int64_t i = from; i < to; ++i) row(g, image, i, first, end);
    }
}

void intonly_gemm_ref(const void *step, uint8_t *const *bases, unsigned part, unsigned parts) {
    const intonly_gemm *s = (const intonly_gemm *)step;
    const uint8_t *packed = intonly_at(bases, s->packed);
    gemm g;
    g.step = s;
    g.sums = s->x_type == INTONLY_S16 ? sums_s16 : s->x_type == INTONLY_U8 ? sums_u8 : sums_s8;
    g.x = intonly_at(bases, s->x_ref);
    g.y = intonly_at(bases, s->y_ref);
    g.r = intonly_at_or_null(bases, s->r_ref);
    g.offsets = (const int64_t *)(const void *)intonly_at(bases, s->tap_offsets);
    g.depth = intonly_packed_depth(packed);
    const intonly_packed at = layout(s->oc, s->taps * g.depth);
    g.bias = intonly_packed_int32(packed, at.bias);
    g.w = intonly_packed_int8(packed, at.weights);
    INTONLY_READ_LIMITS(s, &g.epilogue);
    intonly_packed_constants(packed, &at, g.r != NULL, &g.epilogue);

    int64_t row_first = 0, row_end = s->n * s->oh, first = 0, end = groups_of(s->oc);
    if (row_end >= parts)
        intonly_share(row_end, part, parts, &row_first, &row_end);
    else
        intonly_share(end, part, parts, &first, &end);
    first *= GROUP;
    end = smaller(end * GROUP, s->oc);
    if (!s->channels_first) {
        rows(&g, row_first, row_end, first, end);
    } else {
        for (int64_t c = first; c < end; c += BLOCK) rows(&g, row_first, row_end, c, smaller(c + BLOCK, end));
    }
}
