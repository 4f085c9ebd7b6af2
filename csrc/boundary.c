/* SPDX-License-Identifier: Apache-2.0
 *
 * The float boundary, a chunk of elements at a time. `exact` computes the formula as it stands, with two divisions an
 * element. `quick` computes almost the same with one multiplication, and says when "almost" may not do: then, and for
 * constants out of the ordinary, the chunk goes through `exact`. No loop has a branch or a conversion to an integer, so
 * that compilers turn them into vector code; -fno-trapping-math, which changes no result, lets them.
 *
 * quick: let V = x * factor + offset in double, where factor is nearly 1 / (std * scale), and offset is nearly
 * 1.5 * 2^20 + zero_point + 1/2 + 4u - mean * factor, with u = 2^-32. Between 2^20 and 2^21 a double has 32 bits behind
 * the point: V holds the code in its upper word and the fraction in its lower one, in units of u. Where the code does
 * not saturate, |x * factor| < 2^18 and |mean * factor| <= 2^16, and V differs from the real number that it stands for
 * by less than 2u: 1/2 for its own rounding, 1/2 for that of offset, 0.375 for x * factor (three roundings of 2^-53),
 * 0.1 for mean * factor, and 0.25 for the four roundings of the formula itself. So the formula lies 2u to 6u below V,
 * and whenever the fraction of V is 8u or more, both have the same floor. Where the code saturates, the errors are as
 * small beside the distance to the last code.
 */
#include "boundary.h"

#include <float.h>
#include <string.h>

_Static_assert(FLT_EVAL_METHOD == 0, "double arithmetic must round to double");

#define CHUNK 256
#define INLINE static inline __attribute__((always_inline))

#define POINT 0x1.8p20   /* the point of V stands between the words of a double near this */
#define WHOLE 0x1.8p52   /* a double near this holds integers only */
#define DOUBTFUL 8       /* fractions below this, in units of u, say nothing */
#define SMALL 0x1p16     /* quick: bound of |zero_point|, |lo|, |hi| and |mean * factor| */
#define ORDINARY 0x1p100 /* quick: bound of std, scale, std * scale and of their reciprocals */

/* Constants for each element of a chunk. */
typedef struct constants {
    double mean[CHUNK], std[CHUNK];
    double factor[CHUNK], offset[CHUNK];
} constants;

typedef struct job {
    const intonly_boundary *boundary;
    const uint8_t *x;
    int x_is_double;
    size_t count;
    uint8_t *codes;
    size_t code_bytes;
    int quick;   /* whether all constants are ordinary */
    int divides; /* whether some std is not 1 */
} job;

INLINE uint64_t bits_of(double value) {
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

INLINE double real_at(const uint8_t *x, int x_is_double, size_t i) {
    double wide;
    float narrow;
    if (x_is_double) {
        memcpy(&wide, x + i * sizeof wide, sizeof wide);
        return wide;
    }
    memcpy(&narrow, x + i * sizeof narrow, sizeof narrow);
    return (double)narrow;
}

/* Return t within low..high, or NaN when it is NaN. */
INLINE double clamped(double t, double low, double high) {
    const double above = low > t ? low : t;
    return high < above ? high : above;
}

/* Write the codes, correct in their lower 32 bits; return whether an x is NaN. */
INLINE int exact(const intonly_boundary *b, const constants *c, const uint8_t *x, int x_is_double, int divides,
                 size_t n, uint32_t *codes) {
    const double scale = b->scale, zero = (double)b->zero_point;
    const double low = (double)b->lo - zero, high = (double)b->hi - zero, whole_zero = WHOLE + zero;
    uint64_t nan = 0;
    for (size_t i = 0; i < n; ++i) {
        const double real = real_at(x, x_is_double, i);
        const double normal = divides ? (real - c->mean[i]) / c->std[i] : real - c->mean[i];
        const double t = clamped(normal / scale + 0.5, low, high);
        const double nearest = (t + WHOLE) - WHOLE;
        const double below = nearest - (nearest > t ? 1.0 : 0.0);
        nan |= (uint64_t)(real != real);
        codes[i] = (uint32_t)bits_of(below + whole_zero);
    }
    return nan != 0;
}

/* Write the codes, correct in their lower 16 bits; return whether one is in doubt, or an x is NaN. */
INLINE int quick(const intonly_boundary *b, const constants *c, const uint8_t *x, int x_is_double, size_t n,
                 uint32_t *codes) {
    /* Bit 61 is set in the exponent of NaN, not in that of V: then bits above the fraction are set, too. */
    const uint64_t fraction_or_nan = UINT64_C(1) << 61 | UINT32_MAX;
    const double low = POINT + 0.5 + (double)b->lo, high = POINT + 0.5 + (double)b->hi;
    uint64_t doubt = 0;
    for (size_t i = 0; i < n; ++i) {
        const uint64_t v = bits_of(clamped(real_at(x, x_is_double, i) * c->factor[i] + c->offset[i], low, high));
        doubt |= (v & fraction_or_nan) - DOUBTFUL;
        codes[i] = (uint32_t)(v >> 32);
    }
    return doubt >> 32 != 0;
}

INLINE void store(const uint32_t *codes, size_t n, uint8_t *y, size_t code_bytes) {
    if (code_bytes == 1) {
        for (size_t i = 0; i < n; ++i) y[i] = (uint8_t)codes[i];
    } else if (code_bytes == 2) {
        for (size_t i = 0; i < n; ++i) {
            const uint16_t code = (uint16_t)codes[i];
            memcpy(y + 2 * i, &code, sizeof code);
        }
    } else {
        memcpy(y, codes, 4 * n);
    }
}

/* Convert the `n` elements that stand `at` elements behind the first; return whether none of them is NaN. */
INLINE int convert(const job *j, const constants *c, size_t at, size_t n, int x_is_double) {
    const uint8_t *x = j->x + at * (x_is_double ? sizeof(double) : sizeof(float));
    uint32_t codes[CHUNK];
    if (!j->quick || quick(j->boundary, c, x, x_is_double, n, codes)) {
        const int nan = j->divides ? exact(j->boundary, c, x, x_is_double, 1, n, codes)
                                   : exact(j->boundary, c, x, x_is_double, 0, n, codes);
        if (nan) return 0;
    }
    store(codes, n, j->codes + at * j->code_bytes, j->code_bytes);
    return 1;
}

/* The same loops for each instruction set: only the width of the vectors differs. */
#define COPY(isa, attribute)                                                                                           \
    attribute static int convert_##isa(const job *j, const constants *c, size_t at, size_t n) {                        \
        return j->x_is_double ? convert(j, c, at, n, 1) : convert(j, c, at, n, 0);                                     \
    }

typedef int (*converter)(const job *j, const constants *c, size_t at, size_t n);

COPY(baseline, )
#if defined(__x86_64__)
COPY(avx2, __attribute__((target("avx2"))))
#if defined(__clang__)
COPY(avx512, __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl"))))
#else /* GCC takes half of a vector register unless it is told otherwise */
COPY(avx512, __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512"))))
#endif

static converter best(void) {
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl"))
        return convert_avx512;
    return __builtin_cpu_supports("avx2") ? convert_avx2 : convert_baseline;
}
#else
static converter best(void) { return convert_baseline; }
#endif

/* Fill in the constants of `n` elements from the one that stands `at` elements behind the first. */
static void spread(const intonly_boundary *b, size_t at, size_t n, constants *c) {
    const double base = POINT + (double)b->zero_point + 0.5 + 4 * 0x1p-32;
    size_t channel = at / b->inner % b->channels, end = b->inner - at % b->inner;
    for (size_t i = 0; i < n; end += b->inner) {
        const double mean = b->mean[channel], std = b->std[channel], factor = 1.0 / (std * b->scale);
        const double offset = base - mean * factor;
        for (; i < n && i < end; ++i) {
            c->mean[i] = mean;
            c->std[i] = std;
            c->factor[i] = factor;
            c->offset[i] = offset;
        }
        if (++channel == b->channels) channel = 0;
    }
}

static size_t least(size_t a, size_t b) { return a < b ? a : b; }

/* Constants are spread once for as long as they hold: for a run of one channel when it is longer than a chunk, for the
 * whole array when a chunk has room for all channels. */
static int convert_all(const job *j, converter convert_chunk) {
    const size_t inner = j->boundary->inner, period = j->boundary->channels * inner;
    constants c;
    if (inner >= CHUNK) {
        for (size_t run = 0; run < j->count; run += inner) {
            spread(j->boundary, run, CHUNK, &c);
            for (size_t i = 0; i < inner; i += CHUNK)
                if (!convert_chunk(j, &c, run + i, least(CHUNK, inner - i))) return 0;
        }
        return 1;
    }
    const size_t step = period <= CHUNK ? CHUNK - CHUNK % period : CHUNK;
    for (size_t at = 0; at < j->count; at += step) {
        const size_t n = least(step, j->count - at);
        if (at == 0 || period > CHUNK) spread(j->boundary, at, n, &c);
        if (!convert_chunk(j, &c, at, n)) return 0;
    }
    return 1;
}

static int ordinary(double value) { return value >= 1 / ORDINARY && value <= ORDINARY; }

static int small(double value) { return value >= -SMALL && value <= SMALL; }

static int quick_serves(const intonly_boundary *b) {
    int serves = ordinary(b->scale) && small((double)b->zero_point) && small((double)b->lo) && small((double)b->hi);
    for (size_t i = 0; i < b->channels && serves; ++i) {
        const double step = b->std[i] * b->scale;
        serves = ordinary(b->std[i]) && ordinary(step) && small(b->mean[i] * (1.0 / step));
    }
    return serves;
}

static int divides(const intonly_boundary *b) {
    for (size_t i = 0; i < b->channels; ++i)
        if (b->std[i] < 1.0 || b->std[i] > 1.0) return 1;
    return 0;
}

int intonly_codes_of_reals(const intonly_boundary *boundary, const void *x, int x_is_double, size_t count, void *codes,
                           intonly_type type) {
    const job j = {
        .boundary = boundary,
        .x = (const uint8_t *)x,
        .x_is_double = x_is_double,
        .count = count,
        .codes = (uint8_t *)codes,
        .code_bytes = type <= INTONLY_U8 ? 1 : type <= INTONLY_U16 ? 2 : 4,
        .quick = quick_serves(boundary),
        .divides = divides(boundary),
    };
    return convert_all(&j, best());
}
