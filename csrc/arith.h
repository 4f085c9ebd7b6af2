/* SPDX-License-Identifier: Apache-2.0
 *
 * The arithmetic law for one element, to the bit as src/intonly/core/arith.py, which is normative. Kernels include this
 * file for their scalar path and their tails. It compiles alone as C11 and as C++.
 *
 * Sums are formed in uint64_t, where wrapping is defined, and read back as two's complement. Nothing here relies on how
 * a compiler shifts or converts a negative number, and nothing has undefined behaviour for any operand.
 */
#ifndef INTONLY_ARITH_H
#define INTONLY_ARITH_H

#include <stdint.h>

/* Return the two's complement value of a bit pattern. */
static inline int64_t intonly_signed(uint64_t bits) {
    return bits <= (uint64_t)INT64_MAX ? (int64_t)bits : -(int64_t)(~bits) - 1;
}

/* Return the nearest number in lo..hi, lo <= hi: two steps of one comparison each, which vectors have. */
static inline int64_t intonly_clamp(int64_t x, int64_t lo, int64_t hi) {
    const int64_t raised = x < lo ? lo : x;
    return raised > hi ? hi : raised;
}

/* Return floor(x / 2^shift), shift in 0..63: for negative x, floor(x / d) = ~floor(~x / d), and ~x is not negative. */
static inline int64_t intonly_shift_floor(int64_t x, uint64_t shift) {
    const int64_t sign = -(int64_t)(x < 0);
    return (int64_t)((uint64_t)(x ^ sign) >> shift) ^ sign;
}

/* Return (x - zero) * multiplier modulo 2^64. */
static inline uint64_t intonly_product(int64_t x, int32_t zero, int32_t multiplier) {
    return ((uint64_t)x - (uint64_t)(int64_t)zero) * (uint64_t)(int64_t)multiplier;
}

/* Return clamp(zero_point + ((sum + 2^(shift-1)) >> shift), lo, hi), shift in 1..62.
 *
 * After a shift by 1 or more the quotient is below 2^62 in magnitude, so adding the zero point cannot overflow.
 */
static inline int32_t intonly_round_clamp(uint64_t sum, uint64_t shift, int32_t zero_point, int32_t lo, int32_t hi) {
    const int64_t rounded = intonly_shift_floor(intonly_signed(sum + (UINT64_C(1) << (shift - 1))), shift) + zero_point;
    return (int32_t)intonly_clamp(rounded, lo, hi);
}

/* Return one operand's share of the narrow form's sum, value * multiplier / 2^(15 + shift), on 16-bit factors.
 *
 * value: at most 48 bits; |multiplier| below 2^15; shift in -15..30. The result lies in -32767..32767, so two of them
 * and the zero point add up far inside int32.
 */
static inline int32_t intonly_narrow_operand(int64_t value, int64_t multiplier, int64_t shift) {
    const uint64_t right = shift > 0 ? (uint64_t)shift : 0, left = shift > 0 ? 0 : (uint64_t)-shift;
    const int64_t half = (INT64_C(1) << right) >> 1;
    const int64_t moved = intonly_shift_floor(value + half, right) * (INT64_C(1) << left);
    const int64_t t = intonly_clamp(moved, INT16_MIN, INT16_MAX);
    return (int32_t)intonly_shift_floor(t * multiplier + (1 << 14), 15);
}

/* Return clamp((sum + (zero_point << fraction_bits) + 2^(fraction_bits-1)) >> fraction_bits, lo, hi) for the sum of one
 * or two narrow operands, fraction_bits in 4..7, zero_point of 8 bits.
 *
 * In 16 bits, sat16(sat16(sum of both) + constant) gives the same bytes: docs/arithmetic.md, section 5.
 */
static inline int32_t intonly_narrow_clamp(int32_t sum, int fraction_bits, int32_t zero_point, int32_t lo, int32_t hi) {
    const int32_t constant = zero_point * (1 << fraction_bits) + (1 << (fraction_bits - 1));
    return (int32_t)intonly_clamp(intonly_shift_floor((int64_t)sum + constant, (unsigned)fraction_bits), lo, hi);
}

/* Return the number of bits up to the highest one that is set; 0 for 0. */
static inline int intonly_bit_length(uint64_t x) {
    int length = 0;
    for (int step = 32; step > 0; step >>= 1) {
        if (x >> step) {
            x >>= step;
            length += step;
        }
    }
    return length + (x != 0);
}

/* Return floor(n / d) for d >= 1, by restoring division: one step for each bit of the quotient. */
static inline uint64_t intonly_quotient(uint64_t n, uint64_t d) {
    uint64_t quotient = 0;
    for (int place = intonly_bit_length(n) - intonly_bit_length(d); place >= 0; --place) {
        const uint64_t part = d << place;
        const uint64_t take = -(uint64_t)(n >= part);
        n -= part & take;
        quotient |= (UINT64_C(1) << place) & take;
    }
    return quotient;
}

/* Return floor(a / b) of the true quotient, b >= 1. */
static inline int64_t intonly_floor_div_one(int64_t a, int64_t b) {
    const int64_t sign = -(int64_t)(a < 0);
    return (int64_t)intonly_quotient((uint64_t)(a ^ sign), (uint64_t)b) ^ sign;
}

/* Return the upper half of a product of 64-bit numbers. */
static inline uint64_t intonly_upper_half(uint64_t a, uint64_t b) {
    const uint64_t low = UINT32_MAX, a_low = a & low, a_high = a >> 32, b_low = b & low, b_high = b >> 32;
    const uint64_t first = a_high * b_low, second = a_low * b_high;
    const uint64_t carried = (a_low * b_low >> 32) + (first & low) + (second & low);
    return a_high * b_high + (first >> 32) + (second >> 32) + (carried >> 32);
}

/* A divisor that is used often, as a product and shifts that give the same quotients for all dividends of 64 bits:
 * T. Granlund, P. L. Montgomery, Division by Invariant Integers using Multiplication, 1994, figure 4.1. */
typedef struct intonly_divisor {
    uint64_t multiplier;
    unsigned first_shift, second_shift;
} intonly_divisor;

/* Prepare a divisor, 1 <= d < 2^63: multiplier = 1 + floor(2^64 * (2^l - d) / d) with l = ceil(log2 d). */
static inline intonly_divisor intonly_divisor_of(uint64_t d) {
    const int l = intonly_bit_length(d - 1);
    uint64_t rest = (UINT64_C(1) << l) - d, quotient = 0;
    for (int bit = 0; bit < 64; ++bit) {
        rest += rest;
        const uint64_t take = rest >= d;
        rest -= d & -take;
        quotient += quotient + take;
    }
    const intonly_divisor by = {quotient + 1, l > 0, (unsigned)(l > 0 ? l - 1 : 0)};
    return by;
}

/* Return floor(a / d) of the true quotient for a prepared divisor. */
static inline int64_t intonly_floor_div_by(int64_t a, const intonly_divisor *by) {
    const int64_t sign = -(int64_t)(a < 0);
    const uint64_t n = (uint64_t)(a ^ sign), upper = intonly_upper_half(by->multiplier, n);
    return (int64_t)((upper + ((n - upper) >> by->first_shift)) >> by->second_shift) ^ sign;
}

/* Return floor(sqrt(a)) of the true root, a >= 0, one bit of the root at a time. */
static inline int64_t intonly_isqrt_one(int64_t a) {
    uint64_t rest = (uint64_t)a, root = 0, place = UINT64_C(1) << 62;
    while (place > rest) {
        place >>= 2;
    }
    for (; place != 0; place >>= 2) {
        const uint64_t trial = root + place;
        root >>= 1;
        if (rest >= trial) {
            rest -= trial;
            root += place;
        }
    }
    return (int64_t)root;
}

#endif
