/* SPDX-License-Identifier: Apache-2.0
 *
 * The gemm step on AVX-VNNI: vpdpbusd adds four products of unsigned codes and signed weights to a 32-bit sum.
 *
 * It needs neither more registers nor another instruction; see add_dot for processors that have it in another encoding.
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

#define ADD(c, r)                                                                                                      \
    x = spread(a + r * GEMM_ROW_STRIDE);                                                                               \
    c##r##0 = add_dot(c##r##0, x, w0);                                                                                 \
    c##r##1 = add_dot(c##r##1, x, w1);
#define ADD_C(r) ADD(c, r)
#define ADD_D(r) ADD(d, r)
#define GROUP(rows, M)                                                                                                 \
    {                                                                                                                  \
        const __m256i w0 = load32(w), w1 = load32(w + 32);                                                             \
        __m256i x;                                                                                                     \
        ROWS_##rows(M) a += 4;                                                                                         \
        w += 64;                                                                                                       \
    }

#define TILE(rows)                                                                                                     \
    static void tile_##rows(const uint8_t *a, const int8_t *w, int64_t groups, int64_t chain, const int32_t *from,    \
                            int64_t step, int32_t *sums) {                                                             \
        (void)chain;                                                                                                   \
        ROWS_##rows(BEGIN)                                                                                             \
        for (; groups > 0; --groups) GROUP(rows, ADD_C)                                                                \
        ROWS_##rows(KEEP)                                                                                              \
    }

/* With few rows the next sum would wait for the one before: every other group has sums of its own. */
#define NONE(r) __m256i d##r##0 = _mm256_setzero_si256(), d##r##1 = _mm256_setzero_si256();
#define JOIN(r) c##r##0 = _mm256_add_epi32(c##r##0, d##r##0), c##r##1 = _mm256_add_epi32(c##r##1, d##r##1);
#define TILE_OF_FEW(rows)                                                                                              \
    static void tile_##rows(const uint8_t *a, const int8_t *w, int64_t groups, int64_t chain, const int32_t *from,    \
                            int64_t step, int32_t *sums) {                                                             \
        (void)chain;                                                                                                   \
        ROWS_##rows(BEGIN) ROWS_##rows(NONE)                                                                           \
        for (; groups > 1; groups -= 2) {                                                                              \
            GROUP(rows, ADD_C)                                                                                         \
            GROUP(rows, ADD_D)                                                                                         \
        }                                                                                                              \
        if (groups > 0) GROUP(rows, ADD_C)                                                                             \
        ROWS_##rows(JOIN) ROWS_##rows(KEEP)                                                                            \
    }
TILE_OF_FEW(1)
TILE_OF_FEW(2)
TILE_OF_FEW(3)
TILE(4)
TILE(5)
TILE(6)

static const gemm_tile of_rows[] = {tile_1, tile_2, tile_3, tile_4, tile_5, tile_6};
static const gemm_tiles tiles = {6, of_rows};

void intonly_gemm_avxvnni(const void *step, uint8_t *const *bases, unsigned part, unsigned parts) {
    gemm_run((const intonly_gemm *)step, bases, part, parts, &tiles);
}
