/* SPDX-License-Identifier: Apache-2.0
 *
 * The float boundary against its formula, over ties, their neighbours and extremes, on each instruction set that this
 * processor has. Run under the address and undefined-behaviour sanitizers; every array is allocated to the exact byte.
 * Prints the number of comparisons, and how many codes the quick way was sure of and how many it left open.
 */
#include "boundary.c"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

static uint64_t state = UINT64_C(0x9E3779B97F4A7C15);
static unsigned long comparisons, sure, open_codes;

static void require(int holds, const char *what, int line) {
    ++comparisons;
    if (!holds) {
        fprintf(stderr, "boundary_test.c:%d: %s\n", line, what);
        exit(1);
    }
}

#define REQUIRE(condition) require(condition, #condition, __LINE__)

static uint64_t random64(void) {
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return state * UINT64_C(2685821657736338717);
}

static size_t below(size_t limit) { return (size_t)(random64() % limit); }

static double uniform(double low, double high) { return low + (high - low) * ((double)(random64() >> 11) * 0x1p-53); }

/* A positive number: of everyday size, a fraction as images have it, a power of two, or anything there is. */
static double random_size(int wild) {
    switch (below(wild ? 5 : 4)) {
    case 0: return uniform(0.001, 2);
    case 1: return (double)(1 + below(4)) / (double)(1 + below(256));
    case 2: return ldexp(1, (int)below(24) - 16);
    case 3: return ldexp(uniform(1, 2), (int)below(100) - 50);
    default: return ldexp(uniform(1, 2), (int)below(2040) - 1020);
    }
}

static intonly_type random_type(int64_t *lo, int64_t *hi) {
    static const int64_t limits[][2] = {{INT8_MIN, INT8_MAX},   {0, UINT8_MAX},         {INT16_MIN, INT16_MAX},
                                        {0, UINT16_MAX},        {INT32_MIN, INT32_MAX}, {0, UINT32_MAX}};
    const size_t type = below(5) ? below(4) : below(6);
    *lo = limits[type][0];
    *hi = limits[type][1];
    if (below(4) == 0) *lo /= 1 + (int64_t)below(20), *hi /= 1 + (int64_t)below(20);
    return (intonly_type)type;
}

static double formula(const intonly_boundary *b, size_t channel, double x) {
    const double code = floor((x - b->mean[channel]) / b->std[channel] / b->scale + 0.5) + (double)b->zero_point;
    return code < (double)b->lo ? (double)b->lo : code > (double)b->hi ? (double)b->hi : code;
}

/* A number whose code is anything, for hard cases one near a tie, or an extreme. */
static double random_real(const intonly_boundary *b, size_t channel, int x_is_double, int hard) {
    static const double extremes[] = {0, -0.0, INFINITY, -INFINITY, FLT_MAX, -FLT_MAX, FLT_MIN, 1e-45, -1e-45, 1, -1};
    if (hard && below(8) == 0) return extremes[below(sizeof extremes / sizeof *extremes)];
    const double span = (double)(b->hi - b->lo), zero = (double)b->zero_point;
    double steps = uniform((double)b->lo - zero - 0.1 * span - 3, (double)b->hi - zero + 0.1 * span + 3);
    if (hard && below(4)) steps = floor(steps) + (below(3) ? 0.5 : 0);
    double x = steps * b->scale * b->std[channel] + b->mean[channel];
    if (!x_is_double) x = x > FLT_MAX ? FLT_MAX : x < -FLT_MAX ? -FLT_MAX : (double)(float)x;
    for (size_t i = hard ? below(3) : 0; i > 0; --i) {
        const double end = below(2) ? INFINITY : -INFINITY;
        x = x_is_double ? nextafter(x, end) : (double)nextafterf((float)x, (float)end);
    }
    return x;
}

static void put(uint8_t *x, int x_is_double, size_t i, double value) {
    const float narrow = (float)value;
    if (x_is_double)
        memcpy(x + i * sizeof value, &value, sizeof value);
    else
        memcpy(x + i * sizeof narrow, &narrow, sizeof narrow);
}

static int64_t code_at(const uint8_t *codes, intonly_type type, size_t i) {
    union { int8_t s8; uint8_t u8; int16_t s16; uint16_t u16; int32_t s32; uint32_t u32; } code = {0};
    const size_t bytes = type <= INTONLY_U8 ? 1 : type <= INTONLY_U16 ? 2 : 4;
    memcpy(&code, codes + i * bytes, bytes);
    switch (type) {
    case INTONLY_S8: return code.s8;
    case INTONLY_U8: return code.u8;
    case INTONLY_S16: return code.s16;
    case INTONLY_U16: return code.u16;
    case INTONLY_S32: return code.s32;
    default: return code.u32;
    }
}

/* What quick is sure of is right, taken alone: beside a tie, a whole chunk would go the exact way. */
static void check_quick(const job *j, intonly_type type, size_t i, int64_t expected) {
    constants c;
    uint32_t code;
    uint8_t bytes[4];
    const uint8_t *x = j->x + i * (j->x_is_double ? sizeof(double) : sizeof(float));
    spread(j->boundary, i, 1, &c);
    if (quick(j->boundary, &c, x, j->x_is_double, 1, &code)) {
        ++open_codes;
        return;
    }
    ++sure;
    store(&code, 1, bytes, j->code_bytes);
    REQUIRE(code_at(bytes, type, 0) == expected);
}

static void test_round(const converter *copies) {
    static const size_t inners[] = {1, 1, 2, 7, 49, 255, 256, 257, 600};
    int64_t lo, hi;
    const intonly_type type = random_type(&lo, &hi);
    const size_t channels = below(3) ? 1 + below(5) : 1 + below(300), wild = below(6) == 0;
    const size_t inner = channels > 5 ? 1 + below(3) : inners[below(sizeof inners / sizeof *inners)];
    const size_t count = (1 + below(3)) * channels * inner, hard = below(2);
    double *mean = malloc(channels * sizeof *mean), *std = malloc(channels * sizeof *std);
    const double scale = random_size((int)wild);
    const int plain = below(4) == 0;
    for (size_t i = 0; i < channels; ++i) {
        std[i] = plain ? 1 : random_size((int)wild);
        mean[i] = plain ? 0 : uniform(-1, 1) * (below(8) ? 300 : 1e6) * std[i] * scale;
        if (!isfinite(mean[i])) mean[i] = 1;
    }
    const int64_t code = lo + (int64_t)below((size_t)(hi - lo) + 1);
    const int32_t zero_point = below(8) && code <= INT32_MAX ? (int32_t)code : (int32_t)(random64() >> 33) - (1 << 30);
    const intonly_boundary b = {scale, mean, std, channels, inner, zero_point, lo, hi};
    const job j = {.boundary = &b, .x_is_double = (int)below(2), .count = count, .quick = quick_serves(&b),
                   .code_bytes = type <= INTONLY_U8 ? 1 : type <= INTONLY_U16 ? 2 : 4, .divides = divides(&b)};
    const size_t x_bytes = count * (j.x_is_double ? sizeof(double) : sizeof(float)), shift = below(3);
    uint8_t *x = malloc(x_bytes + shift), *codes = malloc(count * j.code_bytes + shift);
    int64_t *expected = malloc(count * sizeof *expected);
    for (size_t i = 0; i < count; ++i) {
        put(x + shift, j.x_is_double, i, random_real(&b, i / inner % channels, j.x_is_double, (int)hard));
        expected[i] = (int64_t)formula(&b, i / inner % channels, real_at(x + shift, j.x_is_double, i));
    }
    for (const converter *copy = copies; *copy; ++copy) {
        job one = j;
        one.x = x + shift;
        one.codes = codes + shift;
        memset(codes, 0x5A, count * j.code_bytes + shift);
        REQUIRE(convert_all(&one, *copy) == 1);
        for (size_t i = 0; i < count; ++i) REQUIRE(code_at(one.codes, type, i) == expected[i]);
        for (size_t i = 0; copy == copies && j.quick && i < count; ++i) check_quick(&one, type, i, expected[i]);
    }
    REQUIRE(intonly_codes_of_reals(&b, x + shift, j.x_is_double, count, codes + shift, type) == 1);
    for (size_t i = 0; i < count; ++i) REQUIRE(code_at(codes + shift, type, i) == expected[i]);

    /* NaN with any payload, anywhere. */
    uint64_t nan = below(2) ? UINT64_C(0x7FF8000000000000) : UINT64_C(0xFFF0000000000001) | (random64() >> 12);
    uint32_t narrow = below(2) ? UINT32_C(0x7FC00000) : UINT32_C(0xFF800001) | (uint32_t)(random64() >> 41);
    if (j.x_is_double)
        memcpy(x + shift + below(count) * sizeof nan, &nan, sizeof nan);
    else
        memcpy(x + shift + below(count) * sizeof narrow, &narrow, sizeof narrow);
    for (const converter *copy = copies; *copy; ++copy) {
        job one = j;
        one.x = x + shift;
        one.codes = codes + shift;
        REQUIRE(convert_all(&one, *copy) == 0);
    }
    free(mean), free(std), free(x), free(codes), free(expected);
}

int main(void) {
    converter copies[4] = {convert_baseline};
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2")) copies[1] = convert_avx2;
    if (best() == convert_avx512) copies[2] = convert_avx512;
#endif
    for (int round = 0; round < 4000; ++round) test_round(copies);
    printf("%lu %lu %lu\n", comparisons, sure, open_codes);
    return 0;
}
