/* SPDX-License-Identifier: Apache-2.0
 *
 * The law against an oracle of its own: 128-bit integers and the division operator, over extremes and random values.
 * Run under the address and undefined-behaviour sanitizers; every array is allocated to the exact byte.
 * Prints the number of comparisons; the exit status is 0 when all hold.
 */
#include "arith.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "intonly.h"

__extension__ typedef __int128 wide;

static uint64_t state = UINT64_C(0x9E3779B97F4A7C15);
static unsigned long comparisons, inside[2], saturated[2]; /* by form: wide, narrow */

static void require(int holds, const char *what, int line) {
    ++comparisons;
    if (!holds) {
        fprintf(stderr, "arith_test.c:%d: %s\n", line, what);
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

/* Half the numbers are extremes or their neighbours, the others have a random number of bits. */
static int64_t random_s64(void) {
    static const int64_t extremes[] = {0, 1, -1, INT32_MIN, INT32_MAX, INT64_MIN, INT64_MAX, INT64_MIN + 1, 3037000499};
    if (below(2)) return extremes[below(sizeof extremes / sizeof *extremes)];
    return intonly_signed(random64() >> below(64)) * (below(2) ? 1 : -1);
}

static int32_t random_s32(void) {
    static const int32_t extremes[] = {0, 1, -1, INT32_MIN, INT32_MAX, INT32_MIN + 1};
    if (below(3) == 0) return extremes[below(sizeof extremes / sizeof *extremes)];
    return (int32_t)((int64_t)(random64() >> 32) + INT32_MIN) / (1 << below(30));
}

/* A multiplier of the law: |m| in [lowest, 2 * lowest), often at an end. */
static int32_t random_multiplier(int32_t lowest) {
    const int32_t top = lowest - 1;
    const int32_t extra = below(3) == 0 ? (below(2) ? 0 : top) : (int32_t)below((size_t)top + 1);
    const int32_t magnitude = lowest + extra;
    return below(2) ? magnitude : -magnitude;
}

static wide floor_quotient(wide a, wide b) { return a / b - (a % b != 0 && (a < 0) != (b < 0)); }

static const size_t sizes[] = {1, 1, 2, 2, 4, 4, 8};

static int64_t read_element(const void *array, intonly_type type, size_t i) {
    switch (type) {
    case INTONLY_S8: return ((const int8_t *)array)[i];
    case INTONLY_U8: return ((const uint8_t *)array)[i];
    case INTONLY_S16: return ((const int16_t *)array)[i];
    case INTONLY_U16: return ((const uint16_t *)array)[i];
    case INTONLY_S32: return ((const int32_t *)array)[i];
    case INTONLY_U32: return ((const uint32_t *)array)[i];
    default: return ((const int64_t *)array)[i];
    }
}

static void *allocate(size_t bytes) {
    void *memory = malloc(bytes);
    if (memory == NULL) exit(2);
    return memory;
}

static void *random_array(intonly_type type, size_t count) {
    unsigned char *array = (unsigned char *)allocate(count * sizes[type]);
    for (size_t i = 0; i < count; ++i) {
        const int64_t value = type == INTONLY_S64 ? random_s64() : type >= INTONLY_S32 ? random_s32() : random_s32() >> below(20);
        memcpy(array + i * sizes[type], &value, sizes[type]); /* little-endian: the low bytes are the narrower value */
    }
    return array;
}

static wide clamp(wide value, wide lo, wide hi) { return value < lo ? lo : value > hi ? hi : value; }

/* What the wide form gives before the clamp. */
static wide wide_oracle(const intonly_rescale *rescale, size_t k, wide x, wide r) {
    const wide modulus = (wide)1 << 64, divisor = (wide)1 << rescale->shift[k];
    wide sum = x * rescale->multiplier[k] + divisor / 2;
    if (rescale->residual_multiplier != NULL) sum += r * rescale->residual_multiplier[k];
    sum -= floor_quotient(sum + modulus / 2, modulus) * modulus; /* modulo 2^64, signed */
    return floor_quotient(sum, divisor) + rescale->zero_point;
}

static wide narrow_share(wide x, wide m, int shift) {
    const wide divisor = shift > 0 ? (wide)1 << shift : 1, factor = shift > 0 ? 1 : (wide)1 << -shift;
    const wide t = clamp(floor_quotient(x * factor + divisor / 2, divisor), INT16_MIN, INT16_MAX);
    return floor_quotient(t * m + (1 << 14), 1 << 15);
}

/* What the narrow form gives before the clamp. */
static wide narrow_oracle(const intonly_rescale *rescale, size_t k, wide x, wide r) {
    const wide unit = (wide)1 << rescale->fraction_bits;
    wide sum = narrow_share(x, rescale->multiplier[k], rescale->shift[k]);
    if (rescale->residual_multiplier != NULL)
        sum += narrow_share(r, rescale->residual_multiplier[k], rescale->residual_shift[k]);
    return floor_quotient(sum + rescale->zero_point * unit + unit / 2, unit);
}

static void test_requantize(void) {
    static const struct {
        intonly_type type;
        int32_t lo, hi;
    } outputs[] = {{INTONLY_S8, INT8_MIN, INT8_MAX},    {INTONLY_U8, 0, UINT8_MAX},           {INTONLY_S8, -7, 7},
                   {INTONLY_S16, INT16_MIN, INT16_MAX}, {INTONLY_U16, 3, UINT16_MAX},         {INTONLY_S32, INT32_MIN, INT32_MAX},
                   {INTONLY_U32, 0, INT32_MAX},         {INTONLY_S64, INT32_MIN, INT32_MAX}};
    const int narrow = (int)below(2);
    const size_t pick = below(narrow ? 3 : sizeof outputs / sizeof *outputs);
    const size_t rows = 1 + below(4), channels = 1 + below(300), count = rows * channels;
    const intonly_type x_type = (intonly_type)below(narrow ? 5 : 7), r_type = (intonly_type)below(4);
    const int joins = (int)below(2);
    intonly_rescale rescale = {0};
    rescale.period = below(2) ? rows : 1;
    rescale.width = below(2) ? channels : 1;
    rescale.x_zero_width = below(2) ? channels : 1;
    rescale.lo = outputs[pick].lo;
    rescale.hi = outputs[pick].hi;
    rescale.zero_point = narrow ? rescale.lo + (int32_t)below((size_t)(rescale.hi - rescale.lo) + 1) : random_s32() / 2;
    rescale.fraction_bits = narrow ? 4 + (int32_t)below(4) : 0;
    rescale.residual_zero = random_s32();
    const size_t constants = rescale.period * rescale.width;
    int32_t *m = (int32_t *)allocate(constants * sizeof *m), *mr = (int32_t *)allocate(constants * sizeof *mr);
    int8_t *shift = (int8_t *)allocate(constants), *shift_r = (int8_t *)allocate(constants);
    int32_t *zero = (int32_t *)random_array(INTONLY_S32, rescale.x_zero_width);
    for (size_t i = 0; i < constants; ++i) {
        m[i] = below(9) == 0 && (narrow || !joins) ? 0 : random_multiplier(narrow ? 1 << 14 : 1 << 30);
        mr[i] = narrow ? random_multiplier(1 << 14) : random_multiplier(1 << 30) >> below(32);
        shift[i] = (int8_t)(narrow ? (int)below(46) - 15 : 1 + (int)below(62));
        shift_r[i] = (int8_t)((int)below(46) - 15);
    }
    rescale.multiplier = m;
    rescale.shift = shift;
    rescale.x_zero = below(2) ? zero : NULL;
    rescale.residual_multiplier = joins ? mr : NULL;
    rescale.residual_shift = joins && narrow ? shift_r : NULL;
    void *x = random_array(x_type, count), *residual = random_array(r_type, count);
    void *y = allocate(count * sizes[outputs[pick].type]);
    REQUIRE(intonly_requantize(&rescale, x, x_type, joins ? residual : NULL, r_type, rows, channels, y, outputs[pick].type) == INTONLY_OK);
    for (size_t i = 0; i < count; ++i) {
        const size_t row = i / channels % rescale.period, channel = i % channels;
        const size_t k = row * rescale.width + (rescale.width > 1 ? channel : 0);
        const int32_t z = rescale.x_zero == NULL ? 0 : zero[rescale.x_zero_width > 1 ? channel : 0];
        const wide centered = (wide)read_element(x, x_type, i) - z;
        const wide joining = (wide)read_element(residual, r_type, i) - rescale.residual_zero;
        const wide rounded = (narrow ? narrow_oracle : wide_oracle)(&rescale, k, centered, joining);
        const wide expected = clamp(rounded, rescale.lo, rescale.hi);
        expected == rounded ? ++inside[narrow] : ++saturated[narrow];
        REQUIRE(read_element(y, outputs[pick].type, i) == (int64_t)expected);
    }
    free(y);
    free(residual);
    free(x);
    free(zero);
    free(shift_r);
    free(shift);
    free(mr);
    free(m);
}

static void test_division_and_root(void) {
    int64_t a = random_s64(), b = random_s64(), y = 0;
    if (b < 0) b = ~b;
    b += b == 0;
    REQUIRE(intonly_floor_div(&a, 1, &b, 1, &y) == INTONLY_OK);
    REQUIRE((wide)y == floor_quotient(a, b));
    if (a < 0) a = ~a;
    REQUIRE(intonly_isqrt(&a, 1, &y) == INTONLY_OK);
    REQUIRE(y >= 0 && (wide)y * y <= a && a < ((wide)y + 1) * ((wide)y + 1));
    const int64_t pair[2] = {a, 9}, divisors[2] = {b, 2};
    int64_t quotients[2];
    REQUIRE(intonly_floor_div(pair, 2, divisors, 2, quotients) == INTONLY_OK);
    REQUIRE(quotients[0] == a / b && quotients[1] == 4);
    const unsigned shift = (unsigned)below(64);
    const int64_t x = random_s64();
    REQUIRE((wide)intonly_shift_floor(x, shift) == floor_quotient(x, (wide)1 << shift));
}

static void test_packing(void) {
    const unsigned bits = 1 + (unsigned)below(8);
    const int is_signed = (int)below(2);
    const int qmin = is_signed ? -(1 << (bits - 1)) : 0, qmax = is_signed ? (1 << (bits - 1)) - 1 : (1 << bits) - 1;
    const size_t count = below(70), bytes = (count * bits + 7) / 8;
    uint8_t *codes = (uint8_t *)allocate(count + 1), *back = (uint8_t *)allocate(count + !count);
    uint8_t *packed = (uint8_t *)allocate(bytes + !bytes);
    for (size_t i = 0; i < count; ++i) codes[i] = (uint8_t)(qmin + (int)below((size_t)(qmax - qmin) + 1));
    REQUIRE(intonly_packed_size(count, bits) == bytes);
    REQUIRE(intonly_pack(codes, count, bits, qmin, qmax, packed, bytes) == INTONLY_OK);
    for (size_t k = 0; k < 8 * bytes; ++k) {
        const int expected = k < count * bits ? codes[k / bits] >> (k % bits) & 1 : 0;
        REQUIRE((packed[k / 8] >> (k % 8) & 1) == expected);
    }
    REQUIRE(intonly_unpack(packed, bytes, count, bits, qmin, qmax, back) == INTONLY_OK);
    REQUIRE(count == 0 || memcmp(codes, back, count) == 0);
    if (count != 0 && bits < 8) {
        codes[below(count)] = (uint8_t)(below(2) ? qmax + 1 : qmin - 1);
        REQUIRE(intonly_pack(codes, count, bits, qmin, qmax, packed, bytes) == INTONLY_ERROR_RANGE);
    }
    free(packed);
    free(back);
    free(codes);
}

static void test_refusals(void) {
    const int32_t m[2] = {1 << 30, 1 << 30}, small[2] = {1 << 30, (1 << 30) - 1}, lowest[2] = {INT32_MIN, 1 << 30};
    const int8_t shift[2] = {1, 62}, none[2] = {1, 0}, far[2] = {63, 1};
    const int8_t x[2] = {1, 2};
    int8_t y[2];
    intonly_rescale good = {0}, bad;
    good.multiplier = m;
    good.shift = shift;
    good.period = 1;
    good.width = 2;
    good.lo = -128;
    good.hi = 127;
#define RUN(rescale) intonly_requantize(rescale, x, INTONLY_S8, NULL, INTONLY_S8, 1, 2, y, INTONLY_S8)
#define REFUSED(field, value, status) (bad = good, bad.field = (value), REQUIRE(RUN(&bad) == (status)))
    REQUIRE(RUN(&good) == INTONLY_OK);
    REQUIRE(RUN(NULL) == INTONLY_ERROR_NULL);
    REFUSED(multiplier, NULL, INTONLY_ERROR_NULL);
    REFUSED(shift, NULL, INTONLY_ERROR_NULL);
    REFUSED(multiplier, small, INTONLY_ERROR_ARGUMENT);
    REFUSED(multiplier, lowest, INTONLY_ERROR_ARGUMENT);
    REFUSED(shift, none, INTONLY_ERROR_ARGUMENT);
    REFUSED(shift, far, INTONLY_ERROR_ARGUMENT);
    REFUSED(width, 3, INTONLY_ERROR_ARGUMENT);
    REFUSED(period, 0, INTONLY_ERROR_ARGUMENT);
    REFUSED(lo, 128, INTONLY_ERROR_ARGUMENT);  /* above hi */
    REFUSED(hi, 128, INTONLY_ERROR_ARGUMENT);  /* does not fit the output */
    REFUSED(lo, -129, INTONLY_ERROR_ARGUMENT); /* does not fit the output */
    REFUSED(residual_multiplier, m, INTONLY_ERROR_NULL); /* a residual is announced and not given */
    REQUIRE(intonly_requantize(&good, x, INTONLY_S8, x, INTONLY_S8, 1, 2, y, INTONLY_S8) == INTONLY_ERROR_ARGUMENT);
    REQUIRE(intonly_requantize(&good, NULL, INTONLY_S8, NULL, INTONLY_S8, 1, 2, y, INTONLY_S8) == INTONLY_ERROR_NULL);
    REQUIRE(intonly_requantize(&good, NULL, INTONLY_S8, NULL, INTONLY_S8, 0, 2, NULL, INTONLY_S8) == INTONLY_OK);
    bad = good;
    bad.residual_multiplier = m;
    REQUIRE(intonly_requantize(&bad, x, INTONLY_S8, x, INTONLY_S32, 1, 2, y, INTONLY_S8) == INTONLY_ERROR_ARGUMENT);

    const int32_t small_m[2] = {1 << 14, 0}, large_m[2] = {1 << 14, 1 << 15};
    const int8_t edges[2] = {-15, 30}, under[2] = {-16, 0}, over[2] = {0, 31};
    good.multiplier = small_m;
    good.shift = edges;
    good.fraction_bits = 4;
    REQUIRE(RUN(&good) == INTONLY_OK);
    REFUSED(fraction_bits, 3, INTONLY_ERROR_ARGUMENT);
    REFUSED(fraction_bits, 8, INTONLY_ERROR_ARGUMENT);
    REFUSED(fraction_bits, 0, INTONLY_ERROR_ARGUMENT);
    REFUSED(multiplier, large_m, INTONLY_ERROR_ARGUMENT);
    REFUSED(multiplier, m, INTONLY_ERROR_ARGUMENT);
    REFUSED(shift, under, INTONLY_ERROR_ARGUMENT);
    REFUSED(shift, over, INTONLY_ERROR_ARGUMENT);
    REFUSED(zero_point, 128, INTONLY_ERROR_ARGUMENT);
    REFUSED(residual_shift, edges, INTONLY_ERROR_ARGUMENT); /* without a residual */
    REFUSED(residual_multiplier, small_m, INTONLY_ERROR_NULL);
    REQUIRE(intonly_requantize(&good, x, INTONLY_U32, NULL, INTONLY_S8, 1, 0, y, INTONLY_S8) == INTONLY_ERROR_ARGUMENT);
    REQUIRE(intonly_requantize(&good, x, INTONLY_S64, NULL, INTONLY_S8, 1, 0, y, INTONLY_S8) == INTONLY_ERROR_ARGUMENT);
    good.residual_multiplier = small_m;
    good.residual_shift = edges;
    REQUIRE(intonly_requantize(&good, x, INTONLY_S8, x, INTONLY_S8, 1, 2, y, INTONLY_S8) == INTONLY_OK);
    REFUSED(residual_multiplier, large_m, INTONLY_ERROR_ARGUMENT);
    REFUSED(residual_shift, over, INTONLY_ERROR_ARGUMENT);

    const int64_t a[2] = {4, -1}, b[2] = {1, 0};
    int64_t q[2];
    uint8_t byte = 0;
    REQUIRE(intonly_floor_div(a, 2, b, 2, q) == INTONLY_ERROR_DOMAIN);
    REQUIRE(intonly_floor_div(a, 2, b, 3, q) == INTONLY_ERROR_ARGUMENT);
    REQUIRE(intonly_floor_div(a, 2, NULL, 2, q) == INTONLY_ERROR_NULL);
    REQUIRE(intonly_isqrt(a, 2, q) == INTONLY_ERROR_DOMAIN);
    REQUIRE(intonly_isqrt(NULL, 2, q) == INTONLY_ERROR_NULL);
    REQUIRE(intonly_pack(&byte, 1, 9, 0, 1, &byte, 1) == INTONLY_ERROR_ARGUMENT);
    REQUIRE(intonly_pack(&byte, 1, 2, 0, 4, &byte, 1) == INTONLY_ERROR_ARGUMENT);
    REQUIRE(intonly_pack(&byte, 1, 2, -3, 1, &byte, 1) == INTONLY_ERROR_ARGUMENT);
    REQUIRE(intonly_pack(&byte, 1, 2, 0, 3, &byte, 2) == INTONLY_ERROR_ARGUMENT);
    REQUIRE(intonly_pack(NULL, 1, 2, 0, 3, &byte, 1) == INTONLY_ERROR_NULL);
    REQUIRE(intonly_unpack(NULL, 1, 1, 2, 0, 3, &byte) == INTONLY_ERROR_NULL);
    byte = 3;
    REQUIRE(intonly_unpack(&byte, 1, 1, 2, 0, 2, &byte) == INTONLY_ERROR_RANGE);
}

int main(void) {
    for (int round = 0; round < 1500; ++round) test_requantize();
    for (int round = 0; round < 50000; ++round) test_division_and_root();
    for (int round = 0; round < 3000; ++round) test_packing();
    test_refusals();
    for (int form = 0; form < 2; ++form) /* no case is tested in name only */
        REQUIRE(inside[form] > 10000 && saturated[form] > 10000);
    printf("%lu\n", comparisons);
    return 0;
}
