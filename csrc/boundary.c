/* SPDX-License-Identifier: Apache-2.0
 *
 * A division in double precision for every pixel would take longer than a layer. So a block is first done in single
 * precision with the reciprocal, and again exactly when one of its values is too close to a tie to be sure.
 *
 * Written so that compilers turn `quick` into vector code: no branches, no conversions, integers compared instead of
 * floats. Compiled with -fno-trapping-math, which changes no result.
 */
#include "boundary.h"

#include <string.h>

enum { BLOCK = 64, FAR = 512 }; /* FAR: more steps from 0 than any code can be from any zero point, |code - z| <= 383 */

/* x * (1 / scale) carries two relative errors of 2^-24, and is at most 512: it is off by at most 2^-14. */
static const float SURE = 0.5f - 0x1p-13f;

/* Below this the reciprocal would be a subnormal number with a larger relative error. */
static const double SMALLEST_RECIPROCAL = 0x1p-100;

typedef struct boundary {
    double scale;
    float reciprocal;
    int32_t zero_point, lo, hi;
} boundary;

static inline int32_t bits_of(float f) {
    int32_t bits;
    memcpy(&bits, &f, sizeof bits);
    return bits;
}

static inline int32_t clamped(const boundary *b, int32_t steps) {
    const int32_t code = steps + b->zero_point;
    return code < b->lo ? b->lo : code > b->hi ? b->hi : code;
}

/* Return 0 when an x is not a number. */
static int exact(const boundary *b, const float *x, size_t count, uint8_t *y) {
    for (size_t i = 0; i < count; ++i) {
        double t = (double)x[i] / b->scale + 0.5;
        if (t != t) return 0;
        t = t < -FAR ? -FAR : t > FAR ? FAR : t;
        int32_t floor = (int32_t)t;
        floor -= (double)floor > t;
        y[i] = (uint8_t)clamped(b, floor);
    }
    return 1;
}

/* Return whether every code is certain.
 *
 * Adding 1.5 * 2^23 rounds to the nearest integer and leaves it in the low bits. What is not a number stays so, and its
 * bits are larger than those of any distance from an integer. */
static inline __attribute__((always_inline)) int quick(const boundary *b, const float *restrict x, size_t count,
                                                       uint8_t *restrict y) {
    const boundary own = *b; /* which y does not change */
    const float shift = 0x1.8p23f, far = FAR;
    const int32_t shift_bits = 0x4b400000;
    int32_t farthest = 0;
    for (size_t i = 0; i < count; ++i) {
        float f = x[i] * own.reciprocal;
        f = f < -far ? -far : f;
        f = f > far ? far : f;
        const float shifted = f + shift;
        const int32_t distance = bits_of(f - (shifted - shift)) & INT32_MAX;
        farthest = farthest > distance ? farthest : distance;
        y[i] = (uint8_t)clamped(&own, bits_of(shifted) - shift_bits);
    }
    return farthest < bits_of(SURE);
}

static inline __attribute__((always_inline)) int all(const boundary *b, const float *x, size_t count, uint8_t *y) {
    size_t i = 0;
    for (; i + BLOCK <= count; i += BLOCK)
        if (!quick(b, x + i, BLOCK, y + i) && !exact(b, x + i, BLOCK, y + i)) return 0;
    return exact(b, x + i, count - i, y + i);
}

static int plain(const boundary *b, const float *x, size_t count, uint8_t *y) { return all(b, x, count, y); }

#if defined(__x86_64__)
#define INTONLY_AVX512 "avx512f,avx512bw,avx512vl,avx512dq"
__attribute__((target("avx2"))) static int avx2(const boundary *b, const float *x, size_t count, uint8_t *y) {
    return all(b, x, count, y);
}
__attribute__((target(INTONLY_AVX512))) static int avx512(const boundary *b, const float *x, size_t count, uint8_t *y) {
    return all(b, x, count, y);
}
#endif

int intonly_codes_of_reals(const float *x, size_t count, double scale, int32_t zero_point, int32_t lo, int32_t hi,
                           uint8_t *y) {
    const boundary b = {scale, (float)(1 / scale), zero_point, lo, hi};
    if (!(1 / scale >= SMALLEST_RECIPROCAL && scale >= SMALLEST_RECIPROCAL)) return exact(&b, x, count, y);
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
        return avx512(&b, x, count, y);
    if (__builtin_cpu_supports("avx2")) return avx2(&b, x, count, y);
#endif
    return plain(&b, x, count, y);
}
