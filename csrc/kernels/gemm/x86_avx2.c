/* SPDX-License-Identifier: Apache-2.0
 *
 * The gemm step on AVX2, which has no exact product of bytes: vpmaddubsw adds two products in 16 bits and saturates.
 *
 * Codes of 16 bits, and any weights: codes and weights are widened to int16 (x86_256_words.h). Codes of 8 bits and
 * weights whose pairs satisfy |w_2i| + |w_2i+1| <= 128 keep every pair of products within 255 * 128 = 32640: bytes,
 * vpmaddubsw, then vpmaddwd by ones, at half the memory. Smaller weights go further: when such pairs of 2, 4 or 8
 * consecutive groups of a tap stay within 128 together, their products are summed in 16 bits first. 6 bits always allow
 * 2, 5 bits 4 and 4 bits 8.
 */
#include "kernels/gemm/x86_avx2.h"

#include "kernels/gemm/x86_256.h"
#include "kernels/gemm/x86_256_book.h"
#include "kernels/gemm/x86_256_words.h"

/* Return the sum of the magnitudes of a pair of weights. */
static int64_t pair(const int8_t *w, int64_t left) {
    return (w[0] < 0 ? -w[0] : w[0]) + (left < 2 ? 0 : w[1] < 0 ? -w[1] : w[1]);
}

/* Return whether `chain` groups, counted from the first one of each tap, never exceed 16 bits when summed. */
static int chain_holds(const intonly_weights *weights, const int8_t *w, int64_t chain) {
    const int64_t depth = weights->depth;
    for (int64_t tap = 0; tap < weights->taps; ++tap, w += depth)
        for (int64_t half = 0; half < 4; half += 2)
            for (int64_t at = half, sum = 0; at < depth; at += 4) {
                if (((at >> 2) & (chain - 1)) == 0) sum = 0;
                sum += pair(w + at, depth - at);
                if (sum > 128) return 0;
            }
    return 1;
}

/* Return the longest chain, 8, 4, 2 or 1, that all channels hold; 0 when codes or weights want 16 bits. */
static int64_t longest_chain(const intonly_weights *weights) {
    int64_t chain = weights->x_words ? 0 : 8;
    for (int64_t c = 0; c < weights->channels; ++c) {
        const int8_t *w = weights->w + c * weights->taps * weights->depth;
        while (chain > 0 && !chain_holds(weights, w, chain)) chain >>= 1;
    }
    return chain;
}

size_t intonly_gemm_size_avx2(const intonly_weights *weights) {
    if (weights->x_signed || weights->acc_limit > INT32_MAX) return 0;
    return gemm_size(weights, longest_chain(weights) == 0);
}

void intonly_gemm_pack_avx2(const intonly_weights *weights, uint8_t *packed) {
    const int64_t chain = longest_chain(weights);
    gemm_pack(weights, chain == 0, chain == 0 ? 1 : chain, packed);
}

int intonly_gemm_accepts_avx2(const intonly_gemm *step, const uint8_t *packed) { return gemm_accepts(step, packed); }

/* Return the sums of neighbours. Three rows of everything fill all registers, so the ones stay in memory. */
ALWAYS_INLINE __m256i add_pairs(__m256i x) {
    static const int16_t ones[16] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
    __asm__("vpmaddwd %1, %0, %0" : "+x"(x) : "m"(ones));
    return x;
}

#define BEGIN(r)                                                                                                       \
    const uint8_t *const x##r = b->x[first + r];                                                                       \
    __m256i c##r##0 = from0, c##r##1 = from1;
#define CHAIN(r) __m256i d##r##0, d##r##1;
#define CHAIN_BEGIN(r)                                                                                                 \
    x = spread(x##r + at);                                                                                             \
    d##r##0 = _mm256_maddubs_epi16(x, w.w0);                                                                           \
    d##r##1 = _mm256_maddubs_epi16(x, w.w1);
#define CHAIN_ADD(r)                                                                                                   \
    x = spread(x##r + at);                                                                                             \
    d##r##0 = _mm256_add_epi16(d##r##0, _mm256_maddubs_epi16(x, w.w0));                                                \
    d##r##1 = _mm256_add_epi16(d##r##1, _mm256_maddubs_epi16(x, w.w1));
#define CHAIN_END(r)                                                                                                   \
    c##r##0 = _mm256_add_epi32(c##r##0, add_pairs(d##r##0));                                                           \
    c##r##1 = _mm256_add_epi32(c##r##1, add_pairs(d##r##1));

/* Left alone, gcc computes where a chain ends anew behind it, and jumps to and fro for chains of one group. */
#define STEP_BY_STEP(at) __asm__("" : "+r"(at))

#define BYTES_TILE(rows, bits)                                                                                         \
    static void bytes_##rows##_##bits(const gemm *g, const gemm_panel *p, const gemm_block *b, int64_t first,          \
                                      const stretch *k) {                                                              \
        const int64_t bytes = k->bytes, chain = 4 * g->header->chain;                                                  \
        const __m256i from0 = load32(k->from), from1 = load32(k->from + 8);                                            \
        const int8_t *stored = k->w;                                                                                   \
        const __m256i book = book_at(g);                                                                               \
        ROWS_##rows(BEGIN)                                                                                             \
        for (const int64_t *tap = k->tap, *const last = k->last; tap < last; ++tap) {                                  \
            int64_t at = *tap + k->at;                                                                                 \
            const int64_t end = at + bytes;                                                                            \
            do {                                                                                                       \
                const int64_t stop = end - at < chain ? end : at + chain;                                              \
                group_weights w = look_up(stored, bits, book);                                                         \
                __m256i x;                                                                                             \
                ROWS_##rows(CHAIN)                                                                                     \
                ROWS_##rows(CHAIN_BEGIN)                                                                               \
                at += 4;                                                                                               \
                stored += 8 * bits;                                                                                    \
                while (at < stop) {                                                                                    \
                    w = look_up(stored, bits, book);                                                                   \
                    ROWS_##rows(CHAIN_ADD)                                                                             \
                    at += 4;                                                                                           \
                    stored += 8 * bits;                                                                                \
                    STEP_BY_STEP(at);                                                                                  \
                }                                                                                                      \
                ROWS_##rows(CHAIN_END)                                                                                 \
            } while (at < end);                                                                                        \
        }                                                                                                              \
        END_STRETCH(rows, k)                                                                                           \
    }
BYTES_TILE(1, 8)
BYTES_TILE(2, 8)
BYTES_TILE(3, 8)
BYTES_TILE(1, 4)
BYTES_TILE(2, 4)
BYTES_TILE(1, 2)
BYTES_TILE(2, 2)

static void bytes_run(const gemm *g, const gemm_block *b, int64_t panel, int64_t panel_end) {
    static const gemm_tiles tiles = {{bytes_1_8, bytes_2_8, bytes_3_8},
                                     {{bytes_1_4, bytes_2_4}, {bytes_1_2, bytes_2_2}}};
    run_bytes(g, b, panel, panel_end, &tiles, 3);
}

void intonly_gemm_avx2(const void *step, uint8_t *const *bases, unsigned part, unsigned parts) {
    const intonly_gemm *s = step;
    const gemm_header *header = (const gemm_header *)(const void *)intonly_at(bases, s->packed);
    if (header->wide)
        words_gemm(s, bases, part, parts, header);
    else
        gemm_run(s, bases, part, parts, bytes_run, bytes_rows(header));
}
