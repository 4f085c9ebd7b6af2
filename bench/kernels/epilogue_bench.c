/* SPDX-License-Identifier: Apache-2.0
 *
 * What the two forms of a rescale cost at the end of a product, per channel, with and without a residual (ADR 9).
 *
 * One register tile of 6 rows by 64 channels computes a 1x1 convolution; only what happens to its 24 accumulators differs.
 * Constants are arbitrary, so results mean nothing; tests compare the real kernels.
 *
 *     cc -O3 -mavx512f -mavx512bw -mavx512vl -mavx512vnni bench/kernels/epilogue_bench.c -o epilogue_bench
 *     taskset -c 0 ./epilogue_bench
 */
#define _POSIX_C_SOURCE 200809L
#include <immintrin.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { ROWS = 6, WIDTH = 64, FRACTION = 6, ROUNDS = 25 };
enum { NONE, NARROW, WIDE, FORMS };

/* Per-channel constants of the layer, each array 64 entries a panel. */
typedef struct constants {
    const int32_t *bias, *shift;             /* both forms */
    const int16_t *multiplier, *joined;      /* narrow: of accumulator and residual */
    const int32_t *even, *odd, *rounding;    /* wide: multipliers of even and odd lanes, rounding term */
    const int32_t *joined_even, *joined_odd; /* wide: of the residual */
} constants;

static inline __m512i load(const void *p) { return _mm512_loadu_si512(p); }

/* Return 64 codes in channel order from the order that two packs leave. */
static inline __m512i in_order(__m512i packed) {
    return _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), packed);
}

static inline __m512i packed(const __m512i c[4]) {
    return in_order(_mm512_packus_epi16(_mm512_packs_epi32(c[0], c[1]), _mm512_packs_epi32(c[2], c[3])));
}

static inline __m512i narrow(const __m512i c[4], const constants *k, int n, const uint8_t *residual) {
    __m512i s[4], lower, upper;
    for (int i = 0; i < 4; ++i) s[i] = _mm512_srav_epi32(c[i], load(k->shift + n + 16 * i));
    lower = _mm512_mulhrs_epi16(_mm512_packs_epi32(s[0], s[1]), load(k->multiplier + n));
    upper = _mm512_mulhrs_epi16(_mm512_packs_epi32(s[2], s[3]), load(k->multiplier + n + 32));
    if (residual) {
        const __m512i r = in_order(load(residual)), zero = _mm512_setzero_si512();
        const __m512i rl = _mm512_slli_epi16(_mm512_unpacklo_epi8(r, zero), FRACTION);
        const __m512i ru = _mm512_slli_epi16(_mm512_unpackhi_epi8(r, zero), FRACTION);
        lower = _mm512_adds_epi16(lower, _mm512_mulhrs_epi16(rl, load(k->joined + n)));
        upper = _mm512_adds_epi16(upper, _mm512_mulhrs_epi16(ru, load(k->joined + n + 32)));
    }
    const __m512i half = _mm512_set1_epi16(1 << (FRACTION - 1));
    lower = _mm512_srai_epi16(_mm512_adds_epi16(lower, half), FRACTION);
    upper = _mm512_srai_epi16(_mm512_adds_epi16(upper, half), FRACTION);
    return in_order(_mm512_packus_epi16(lower, upper));
}

static inline __m512i wide(const __m512i c[4], const constants *k, int n, const uint8_t *residual) {
    __m512i s[4];
    for (int i = 0; i < 4; ++i) {
        const int at = n + 16 * i;
        __m512i even = _mm512_mul_epi32(c[i], load(k->even + at));
        __m512i odd = _mm512_mul_epi32(_mm512_srli_epi64(c[i], 32), load(k->odd + at));
        if (residual) {
            const __m512i r = _mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)(residual + 16 * i)));
            even = _mm512_add_epi64(even, _mm512_mul_epi32(r, load(k->joined_even + at)));
            odd = _mm512_add_epi64(odd, _mm512_mul_epi32(_mm512_srli_epi64(r, 32), load(k->joined_odd + at)));
        }
        const __m512i high = _mm512_mask_shuffle_epi32(odd, 0x5555, even, _MM_PERM_DDBB);
        s[i] = _mm512_srav_epi32(_mm512_add_epi32(high, load(k->rounding + at)), load(k->shift + at));
    }
    return packed(s);
}

/* Volatile, so that the compiler keeps the order and with it all accumulators in registers. */
#define DOT(c, x, w) __asm__ volatile("vpdpbusd %2, %1, %0" : "+v"(c) : "v"(x), "v"(w))

/* Compute ROWS rows of one panel; `form` and `joins` are constants where this is inlined. */
static inline __attribute__((always_inline)) void tile(const uint8_t *x, const int8_t *w, int depth, const constants *k, int n,
                                                       const uint8_t *residual, uint8_t *y, int width, int form, int joins) {
    __m512i c[ROWS][4];
#pragma GCC unroll 6
    for (int row = 0; row < ROWS; ++row)
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) c[row][i] = load(k->bias + n + 16 * i);
    for (int d = 0; d < depth; d += 4, w += 4 * WIDTH) {
        const __m512i w0 = load(w), w1 = load(w + 64), w2 = load(w + 128), w3 = load(w + 192);
#pragma GCC unroll 6
        for (int row = 0; row < ROWS; ++row) {
            __m512i v;
            __asm__ volatile("vpbroadcastd %1, %0" : "=v"(v) : "m"(*(const int32_t *)(const void *)(x + row * depth + d)));
            DOT(c[row][0], v, w0);
            DOT(c[row][1], v, w1);
            DOT(c[row][2], v, w2);
            DOT(c[row][3], v, w3);
        }
    }
#pragma GCC unroll 6
    for (int row = 0; row < ROWS; ++row) {
        const uint8_t *r = joins ? residual + row * width : NULL;
        const __m512i codes = form == NARROW ? narrow(c[row], k, n, r) : form == WIDE ? wide(c[row], k, n, r) : packed(c[row]);
        _mm512_storeu_si512(y + row * width, codes);
    }
}

typedef void (*tile_function)(const uint8_t *, const int8_t *, int, const constants *, int, const uint8_t *, uint8_t *, int);
#define TILE(name, form, joins)                                                                                               \
    static __attribute__((noinline)) void name(const uint8_t *x, const int8_t *w, int depth, const constants *k, int n,       \
                                               const uint8_t *residual, uint8_t *y, int width) {                             \
        tile(x, w, depth, k, n, residual, y, width, form, joins);                                                             \
    }
TILE(tile_none, NONE, 0)
TILE(tile_narrow, NARROW, 0)
TILE(tile_wide, WIDE, 0)
TILE(tile_narrow_joined, NARROW, 1)
TILE(tile_wide_joined, WIDE, 1)

static const struct {
    const char *name;
    tile_function run;
} TILES[] = {{"none", tile_none},
             {"narrow", tile_narrow},
             {"wide", tile_wide},
             {"narrow, residual", tile_narrow_joined},
             {"wide, residual", tile_wide_joined}};
enum { COUNT = sizeof TILES / sizeof *TILES };

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void *filled(size_t bytes, int byte) {
    void *p = aligned_alloc(64, (bytes + 127) & ~(size_t)63);
    if (!p) exit(1);
    return memset(p, byte, bytes);
}

static void layer(int rows, int depth, int width) {
    const size_t ints = 4 * (size_t)width + 256, shorts = 2 * (size_t)width + 256;
    const constants k = {filled(ints, 0), filled(ints, 0), filled(shorts, 64), filled(shorts, 32),
                         filled(ints, 64), filled(ints, 65), filled(ints, 0), filled(ints, 33), filled(ints, 34)};
    uint8_t *x = filled((size_t)rows * (size_t)depth, 3), *y = filled((size_t)rows * (size_t)width, 0);
    uint8_t *residual = filled((size_t)rows * (size_t)width, 5);
    int8_t *w = filled((size_t)depth * (size_t)width, -2);
    double best[COUNT];
    for (int t = 0; t < COUNT; ++t) best[t] = 1e9;
    for (int round = 0; round < ROUNDS; ++round)
        for (int t = 0; t < COUNT; ++t) {
            const double start = now();
            for (int n = 0; n < width; n += WIDTH)
                for (int row = 0; row < rows; row += ROWS)
                    TILES[t].run(x + (size_t)row * (size_t)depth, w + (size_t)n * (size_t)depth, depth, &k, n,
                                 residual + (size_t)row * (size_t)width + n, y + (size_t)row * (size_t)width + n, width);
            const double seconds = now() - start;
            if (seconds < best[t]) best[t] = seconds;
        }
    printf("1x1, %d -> %d channels, %d pixels\n", depth, width, rows);
    for (int t = 0; t < COUNT; ++t)
        printf("    %-18s %7.1f us  %5.0f GMAC/s  x%.2f\n", TILES[t].name, 1e6 * best[t],
               1e-9 * (double)rows * depth * width / best[t], best[t] / best[0]);
}

int main(void) {
    if (!__builtin_cpu_supports("avx512vnni")) {
        puts("this processor has no AVX-512 VNNI");
        return 0;
    }
    layer(3150, 64, 256);
    layer(210, 256, 1024);
    return 0;
}
