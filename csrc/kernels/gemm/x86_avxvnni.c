/* SPDX-License-Identifier: Apache-2.0
 *
 * The gemm step on AVX-VNNI: vpdpbusd adds four products of unsigned codes and signed weights to a 32-bit sum, vpdpwssd
 * two of int16 ones. See kernels/x86_256.h for processors that have them in another encoding.
 */
#include "kernels/gemm/x86_256.h"
#include "kernels/gemm/x86_256_book.h"
#include "kernels/gemm/x86_256_words.h"
#include "kernels/gemm/x86_avx2.h"

size_t intonly_gemm_size_avxvnni(const intonly_weights *weights) {
    if (weights->x_signed || weights->acc_limit > INT32_MAX) return 0;
    return gemm_size(weights, weights->x_words);
}

void intonly_gemm_pack_avxvnni(const intonly_weights *weights, uint8_t *packed) {
    gemm_pack(weights, weights->x_words, 1, packed);
}

int intonly_gemm_accepts_avxvnni(const intonly_gemm *step, const uint8_t *packed) {
    const gemm_header *header = (const gemm_header *)(const void *)packed;
    return gemm_accepts(step, packed) && header->wide == (step->x_type == INTONLY_S16);
}

#define BEGIN(r)                                                                                                       \
    const uint8_t *const x##r = b->x[first + r];                                                                       \
    __m256i c##r##0 = from0, c##r##1 = from1;
#define ADD(c, r)                                                                                                      \
    x = spread(x##r + at);                                                                                             \
    c##r##0 = add_dot(c##r##0, x, w.w0);                                                                               \
    c##r##1 = add_dot(c##r##1, x, w.w1);
#define ADD_C(r) ADD(c, r)
#define ADD_D(r) ADD(d, r)
#define GROUP(rows, bits, M)                                                                                           \
    do {                                                                                                               \
        const group_weights w = look_up(stored, bits, book);                                                           \
        __m256i x;                                                                                                     \
        ROWS_##rows(M) stored += 8 * bits;                                                                             \
        at += 4;                                                                                                       \
    } while (0)

#define TILE_BEGIN(rows)                                                                                               \
    const int64_t bytes = k->bytes, *tap = k->tap, *const last = k->last;                                              \
    const __m256i from0 = load32(k->from), from1 = load32(k->from + 8);                                                \
    const int8_t *stored = k->w;                                                                                       \
    const __m256i book = book_at(g);                                                                                   \
    ROWS_##rows(BEGIN)

#define TILE(rows)                                                                                                     \
    static void tile_##rows##_8(const gemm *g, const gemm_panel *p, const gemm_block *b, int64_t first,                \
                                const stretch *k) {                                                                    \
        TILE_BEGIN(rows)                                                                                               \
        for (; tap < last; ++tap) {                                                                                    \
            int64_t at = *tap + k->at;                                                                                 \
            const int64_t end = at + bytes;                                                                            \
            do {                                                                                                       \
                GROUP(rows, 8, ADD_C);                                                                                 \
            } while (at < end);                                                                                        \
        }                                                                                                              \
        END_STRETCH(rows, k)                                                                                           \
    }

#define TILE_OF_FEW(rows, bits)                                                                                        \
    static void tile_##rows##_##bits(const gemm *g, const gemm_panel *p, const gemm_block *b, int64_t first,           \
                                     const stretch *k) {                                                               \
        TILE_BEGIN(rows)                                                                                               \
        ROWS_##rows(NONE)                                                                                              \
        for (; tap < last; ++tap) {                                                                                    \
            int64_t at = *tap + k->at;                                                                                 \
            const int64_t end = at + bytes;                                                                            \
            while (at + 4 < end) {                                                                                     \
                GROUP(rows, bits, ADD_C);                                                                              \
                GROUP(rows, bits, ADD_D);                                                                              \
            }                                                                                                          \
            if (at < end) GROUP(rows, bits, ADD_C);                                                                    \
        }                                                                                                              \
        ROWS_##rows(JOIN) END_STRETCH(rows, k)                                                                         \
    }
TILE_OF_FEW(1, 8)
TILE_OF_FEW(2, 8)
TILE_OF_FEW(3, 8)
TILE(4)
TILE(5)
TILE(6)
TILE_OF_FEW(1, 4)
TILE_OF_FEW(2, 4)
TILE_OF_FEW(1, 2)
TILE_OF_FEW(2, 2)

static void run(const gemm *g, const gemm_block *b, int64_t panel, int64_t panel_end) {
    static const gemm_tiles tiles = {{tile_1_8, tile_2_8, tile_3_8, tile_4_8, tile_5_8, tile_6_8},
                                     {{tile_1_4, tile_2_4}, {tile_1_2, tile_2_2}}};
    run_bytes(g, b, panel, panel_end, &tiles, 6);
}

void intonly_gemm_avxvnni(const void *step, uint8_t *const *bases, unsigned part, unsigned parts) {
    const intonly_gemm *s = step;
    const gemm_header *header = (const gemm_header *)(const void *)intonly_at(bases, s->packed);
    if (header->wide)
        words_gemm(s, bases, part, parts, header);
    else
        gemm_run(s, bases, part, parts, run, bytes_rows(header));
}
