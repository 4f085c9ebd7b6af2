/* SPDX-License-Identifier: Apache-2.0
 *
 * The gemm step on AVX2, which has no exact product of bytes: vpmaddubsw adds two products in 16 bits and saturates.
 *
 * Any weights: codes and weights are widened to int16, and vpmaddwd adds two products in 32 bits. Weights whose pairs
 * satisfy |w_2i| + |w_2i+1| <= 128 keep every pair of products within 255 * 128 = 32640: bytes, vpmaddubsw, then
 * vpmaddwd by ones, at half the memory. Smaller weights go further: when 2, 4 or 8 pairs of consecutive groups stay
 * within 128 together, their products are summed in 16 bits first. 6 bits always allow 2, 5 bits 4 and 4 bits 8.
 */
#include "kernels/gemm/x86_avx2.h"

#include "kernels/gemm/x86_256.h"

/* Return the sum of the magnitudes of a pair of weights. */
static int64_t pair(const int8_t *w, int64_t left) {
    return (w[0] < 0 ? -w[0] : w[0]) + (left < 2 ? 0 : w[1] < 0 ? -w[1] : w[1]);
}

/* Return whether `chain` groups, counted from the first one of a channel, never exceed 16 bits when summed. */
static int chain_holds(const intonly_weights *weights, const int8_t *w, int64_t chain) {
    const int64_t per_tap = weights->tap_bytes >> 2;
    int64_t sums[2] = {0, 0}, in_chain = 0;
    for (int64_t tap = 0; tap < weights->taps; ++tap, w += weights->depth) {
        for (int64_t group = 0; group < per_tap; ++group) {
            for (int64_t half = 0; half < 2; ++half) {
                const int64_t at = group * 4 + half * 2;
                if (at < weights->depth) sums[half] += pair(w + at, weights->depth - at);
                if (sums[half] > 128) return 0;
            }
            if (++in_chain == chain) sums[0] = sums[1] = in_chain = 0;
        }
    }
    return 1;
}

/* Return the longest chain, 8, 4, 2 or 1, that all channels hold; 0 when the weights want 16 bits. */
static int64_t longest_chain(const intonly_weights *weights) {
    int64_t chain = 8;
    for (int64_t c = 0; c < weights->channels; ++c) {
        const int8_t *w = weights->w + c * weights->taps * weights->depth;
        while (chain > 0 && !chain_holds(weights, w, chain)) chain >>= 1;
    }
    return chain;
}

size_t intonly_gemm_size_avx2(const intonly_weights *weights) {
    if (weights->x_signed || weights->acc_limit > INT32_MAX) return 0;
    return (size_t)gemm_bytes(weights->channels, weights->taps * weights->tap_bytes, longest_chain(weights) == 0);
}

void intonly_gemm_pack_avx2(const intonly_weights *weights, uint8_t *packed) {
    const int64_t chain = longest_chain(weights);
    gemm_pack(weights, chain == 0, chain == 0 ? 1 : chain, packed);
}

int intonly_gemm_accepts_avx2(const intonly_gemm *step, const uint8_t *packed) { return gemm_accepts(step, packed); }

#define SUM_WORDS(r)                                                                                                   \
    x = spread(a + r * GEMM_ROW_STRIDE);                                                                               \
    c##r##0 = _mm256_add_epi32(c##r##0, _mm256_madd_epi16(x, w0));                                                     \
    c##r##1 = _mm256_add_epi32(c##r##1, _mm256_madd_epi16(x, w1));

#define TILE_WORDS(rows)                                                                                               \
    static void words_##rows(const uint8_t *a, const int8_t *w, int64_t groups, int64_t chain, const int32_t *from,   \
                             int64_t step, int32_t *sums) {                                                            \
        (void)chain;                                                                                                   \
        ROWS_##rows(BEGIN)                                                                                             \
        for (; groups > 0; --groups, a += 4, w += 64) {                                                                \
            const __m256i w0 = load32(w), w1 = load32(w + 32);                                                         \
            __m256i x;                                                                                                 \
            ROWS_##rows(SUM_WORDS)                                                                                     \
        }                                                                                                              \
        ROWS_##rows(KEEP)                                                                                              \
    }
TILE_WORDS(1)
TILE_WORDS(2)
TILE_WORDS(3)
TILE_WORDS(4)
TILE_WORDS(5)
TILE_WORDS(6)

/* Return the sums of neighbours. Six rows of everything fill all registers, so the ones stay in memory. */
ALWAYS_INLINE __m256i add_pairs(__m256i x) {
    static const int16_t ones[16] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
    __asm__("vpmaddwd %1, %0, %0" : "+x"(x) : "m"(ones));
    return x;
}

#define BEGIN_CHAIN(r)                                                                                                 \
    x = spread(a + r * GEMM_ROW_STRIDE);                                                                               \
    d##r##0 = _mm256_maddubs_epi16(x, w0);                                                                             \
    d##r##1 = _mm256_maddubs_epi16(x, w1);
#define SUM_BYTES(r)                                                                                                   \
    x = spread(a + r * GEMM_ROW_STRIDE);                                                                               \
    d##r##0 = _mm256_add_epi16(d##r##0, _mm256_maddubs_epi16(x, w0));                                                  \
    d##r##1 = _mm256_add_epi16(d##r##1, _mm256_maddubs_epi16(x, w1));
#define END_CHAIN(r)                                                                                                   \
    c##r##0 = _mm256_add_epi32(c##r##0, add_pairs(d##r##0));                                                           \
    c##r##1 = _mm256_add_epi32(c##r##1, add_pairs(d##r##1));
#define CHAINS(r) __m256i d##r##0, d##r##1;

#define TILE_BYTES(rows)                                                                                               \
    static void bytes_##rows(const uint8_t *a, const int8_t *w, int64_t groups, int64_t chain, const int32_t *from,   \
                             int64_t step, int32_t *sums) {                                                            \
        ROWS_##rows(BEGIN)                                                                                             \
        while (groups > 0) {                                                                                           \
            __m256i x, w0 = load32(w), w1 = load32(w + 32);                                                            \
            ROWS_##rows(CHAINS)                                                                                        \
            ROWS_##rows(BEGIN_CHAIN)                                                                                   \
            a += 4, w += 64;                                                                                           \
            for (int64_t i = groups < chain ? groups : chain; i > 1; --i, a += 4, w += 64) {                           \
                w0 = load32(w), w1 = load32(w + 32);                                                                   \
                ROWS_##rows(SUM_BYTES)                                                                                 \
            }                                                                                                          \
            ROWS_##rows(END_CHAIN)                                                                                     \
            groups -= chain;                                                                                           \
        }                                                                                                              \
        ROWS_##rows(KEEP)                                                                                              \
    }
TILE_BYTES(1)
TILE_BYTES(2)
TILE_BYTES(3)

static const gemm_tile words[] = {words_1, words_2, words_3, words_4, words_5, words_6};
static const gemm_tile bytes[] = {bytes_1, bytes_2, bytes_3};
static const gemm_tiles tiles_of_words = {6, words}, tiles_of_bytes = {3, bytes};

void intonly_gemm_avx2(const void *step, uint8_t *const *bases, unsigned part, unsigned parts) {
    const intonly_gemm *s = step;
    const gemm_header *header = (const gemm_header *)(const void *)intonly_at(bases, s->packed);
    gemm_run(s, bases, part, parts, header->wide ? &tiles_of_words : &tiles_of_bytes);
}
