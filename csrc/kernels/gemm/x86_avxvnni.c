/* SPDX-License-Identifier: Apache-2.0
 *
 * The gemm step on AVX-VNNI: vpdpbusd adds four products of unsigned codes and signed weights to a 32-bit sum. See
 * add_dot for processors that have it in another encoding.
 */
#include "kernels/gemm/x86_256.h"
#include "kernels/gemm/x86_avx2.h"

size_t intonly_gemm_size_avxvnni(const intonly_weights *weights) {
    if (weights->x_signed || weights->acc_limit > INT32_MAX) return 0;
    return (size_t)gemm_bytes(weights->channels, weights->taps * weights->tap_bytes, 0);
}

void intonly_gemm_pack_avxvnni(const intonly_weights *weights, uint8_t *packed) { gemm_pack(weights, 0, 1, packed); }

int intonly_gemm_accepts_avxvnni(const intonly_gemm *step, const uint8_t *packed) {
    const gemm_header *header = (const gemm_header *)(const void *)packed;
    return gemm_accepts(step, packed) && !header->wide;
}

#define BEGIN(r)                                                                                                       \
    const uint8_t *const x##r = b->x[first + r];                                                                       \
    __m256i c##r##0 = bias0, c##r##1 = bias1;
#define ADD(c, r)                                                                                                      \
    x = spread(x##r + at);                                                                                             \
    c##r##0 = add_dot(c##r##0, x, w0);                                                                                 \
    c##r##1 = add_dot(c##r##1, x, w1);
#define ADD_C(r) ADD(c, r)
#define ADD_D(r) ADD(d, r)
#define GROUP(rows, M)                                                                                                 \
    do {                                                                                                               \
        const __m256i w0 = load32(w), w1 = load32(w + 32);                                                             \
        __m256i x;                                                                                                     \
        ROWS_##rows(M) w += 64;                                                                                        \
        at += 4;                                                                                                       \
    } while (0)

#define TILE_BEGIN(rows)                                                                                               \
    const int64_t tap_bytes = g->step->tap_bytes;                                                                      \
    const int64_t *tap = g->taps, *const last = tap + g->step->taps;                                                   \
    const int8_t *w = p->weights;                                                                                      \
    const __m256i bias0 = load32(p->constants->bias), bias1 = load32(p->constants->bias + 8);                          \
    ROWS_##rows(BEGIN)

#define TILE(rows)                                                                                                     \
    static void tile_##rows(const gemm *g, const gemm_panel *p, const gemm_block *b, int64_t first) {                 \
        TILE_BEGIN(rows)                                                                                               \
        for (; tap < last; ++tap) {                                                                                    \
            int64_t at = *tap;                                                                                         \
            const int64_t end = at + tap_bytes;                                                                        \
            do {                                                                                                       \
                GROUP(rows, ADD_C);                                                                                    \
            } while (at < end);                                                                                        \
        }                                                                                                              \
        FINISH_ROWS(rows)                                                                                              \
    }

/* With few rows the next sum would wait for the one before: every other group has sums of its own. */
#define NONE(r) __m256i d##r##0 = _mm256_setzero_si256(), d##r##1 = _mm256_setzero_si256();
#define JOIN(r) c##r##0 = _mm256_add_epi32(c##r##0, d##r##0), c##r##1 = _mm256_add_epi32(c##r##1, d##r##1);
#define TILE_OF_FEW(rows)                                                                                              \
    static void tile_##rows(const gemm *g, const gemm_panel *p, const gemm_block *b, int64_t first) {                 \
        TILE_BEGIN(rows)                                                                                               \
        ROWS_##rows(NONE)                                                                                              \
        for (; tap < last; ++tap) {                                                                                    \
            int64_t at = *tap;                                                                                         \
            const int64_t end = at + tap_bytes;                                                                        \
            while (at + 4 < end) {                                                                                     \
                GROUP(rows, ADD_C);                                                                                    \
                GROUP(rows, ADD_D);                                                                                    \
            }                                                                                                          \
            if (at < end) GROUP(rows, ADD_C);                                                                          \
        }                                                                                                              \
        ROWS_##rows(JOIN) FINISH_ROWS(rows)                                                                            \
    }
TILE_OF_FEW(1)
TILE_OF_FEW(2)
TILE_OF_FEW(3)
TILE(4)
TILE(5)
TILE(6)

static void run(const gemm *g, const gemm_block *b, int64_t panel, int64_t panel_end) {
    static const gemm_tile tiles[] = {tile_1, tile_2, tile_3, tile_4, tile_5, tile_6};
    for (; panel < panel_end; ++panel) {
        const gemm_panel p = gemm_panel_of(g, panel);
        run_tiles(g, &p, b, tiles, 6);
    }
}

void intonly_gemm_avxvnni(const void *step, uint8_t *const *bases, unsigned part, unsigned parts) {
    gemm_run((const intonly_gemm *)step, bases, part, parts, run, GEMM_ROWS);
}
