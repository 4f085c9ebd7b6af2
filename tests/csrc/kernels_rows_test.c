/* SPDX-License-Identifier: Apache-2.0
 *
 * attention and norm against loops over exact integers. Tables of the weights are computed anew.
 */
#include <stdlib.h>
#include <string.h>

#include "kernels/attention/scratch.h"
#include "kernels_harness.h"

#define LAST (INTONLY_RANK - 1)

/* Lay out `run` elements of `size` bytes at each place, with gaps; set strides, and return the bytes of all of it. */
static int64_t laid_out(const int64_t *extent, int64_t run, int64_t size, int64_t *strides) {
    int64_t bytes = run * size;
    for (int axis = LAST; axis >= 0; --axis) {
        strides[axis] = bytes + size * (one_in(3) ? below(7) : 0);
        bytes = strides[axis] * (extent[axis] - 1) + bytes;
    }
    return bytes;
}

/* Let an operand be the same at all places of some axes before `end`. */
static void broadcast(int64_t *strides, int end) {
    for (int axis = 0; axis < end; ++axis)
        if (one_in(4)) strides[axis] = 0;
}

static void fill(int64_t ref, int64_t type, int64_t bytes, int64_t lo, int64_t hi) {
    for (int64_t i = 0; i < bytes; i += type_bytes(type)) put(at(ref) + i, type, random_value(lo, hi));
}

static void fill_codes(int64_t ref, int64_t type, int64_t bytes, int64_t reach) {
    const int64_t middle = type == INTONLY_U8 ? 128 : 0;
    for (int64_t i = 0; i < bytes; ++i) put(at(ref) + i, type, between(middle - reach, middle + reach - 1));
}

/* Numbers of the size of scores, or as large as they may be. */
static void fill_bias(int64_t ref, int64_t bytes) {
    const int64_t most = one_in(2) ? 1 << 12 : INT64_C(1) << 29;
    for (int64_t i = 0; i < bytes; i += 4) put(at(ref) + i, INTONLY_S32, one_in(4) ? (one_in(2) ? most : -most) : between(-most, most));
}

static wide floored(wide x, int64_t shift) {
    const wide unit = (wide)1 << shift;
    return x >= 0 ? x / unit : -((-x + unit - 1) / unit);
}

static int64_t clamped(wide x, int64_t lo, int64_t hi) { return (int64_t)(x < lo ? lo : x > hi ? hi : x); }

static double power(double base, int64_t exponent) {
    double product = 1;
    for (; exponent > 0; --exponent) product *= base;
    return product;
}

/* Return the weight of a score that is `difference` below the largest. */
static int64_t weight(wide difference, int64_t shift, int64_t multiplier) {
    const wide moved = shift > 0 ? (difference + ((wide)1 << (shift - 1))) >> shift : difference << -shift;
    int64_t distance = (clamped(moved, 0, 32767) * multiplier + (1 << 14)) >> 15;
    distance = distance > 10239 ? 10239 : distance;
    const int64_t octave = (int64_t)(255 * 128 * power(0.97857206208770013, distance / 32 % 32) + 0.5);
    const int64_t fine = (int64_t)(32768 * power(0.9993233275026507, distance % 32) + 0.5);
    const int64_t product = (octave >> (distance / 1024)) * (fine > 32767 ? 32767 : fine);
    return (((product + (1 << 14)) >> 15) + 64) >> 7;
}

static void set_outer(int64_t *extent, int64_t rows) {
    for (int axis = 0; axis < LAST; ++axis) extent[axis] = 1;
    extent[LAST - 1] = 1 + below(3);
    extent[2] = 1 + below(2);
    extent[LAST] = rows;
}

static void set_codes(int64_t type, int64_t *zero_point, int64_t *lo, int64_t *hi) {
    *lo = random_value(type_lowest(type), type_highest(type) > INT32_MAX ? INT32_MAX : type_highest(type));
    *hi = type_highest(type) > INT32_MAX ? INT32_MAX : type_highest(type);
    if (one_in(2)) *lo = type_lowest(type);
    *zero_point = between(-200, 200);
}

void test_attention(const intonly_kernels *table, outcome *o) {
    intonly_attention s = {.kind = INTONLY_KIND_attention, .words = sizeof s / 8, .parts = 3};
    int64_t score[256], share[256], extent[INTONLY_RANK];
    scene_begin();
    set_outer(s.extent, 1 + below(one_in(2) ? 30 : 5));
    memcpy(extent, s.extent, sizeof extent);
    s.keys = extent[LAST] = 1 + below(one_in(3) ? 250 : 40);
    s.depth = 1 + below(one_in(3) ? 128 : 20);
    s.width = 1 + below(one_in(3) ? 128 : 40);
    s.q_type = below(2), s.k_type = below(2), s.v_type = below(2), s.y_type = below(INTONLY_S32 + 1);
    s.q_zero = random_value(-256, 256), s.v_zero = random_value(-256, 256);
    s.shift = between(-13, 29);
    if (one_in(2)) s.shift = between(0, 12);
    s.weight_multiplier = s.shift < 0 || !one_in(4) ? between(1 << 14, 32767) : between(0, 32767);
    s.multiplier = between(-INT32_MAX, INT32_MAX), s.y_shift = between(20, 62);
    if (one_in(2)) s.y_shift = between(44, 54);
    set_codes(s.y_type, &s.zero_point, &s.lo, &s.hi);

    const int64_t q_bytes = laid_out(s.extent, s.depth, 1, s.q_strides), y_size = type_bytes(s.y_type);
    const int64_t k_bytes = laid_out(extent, s.depth, 1, s.k_strides), v_bytes = laid_out(extent, s.width, 1, s.v_strides);
    s.k_key = s.k_strides[LAST], s.v_key = s.v_strides[LAST];
    s.k_strides[LAST] = s.v_strides[LAST] = 0;
    s.mask_key = 1 + below(2);
    const int64_t m_bytes = laid_out(s.extent, (s.keys - 1) * s.mask_key + 1, 1, s.mask_strides);
    const int64_t y_bytes = laid_out(s.extent, s.width, y_size, s.y_strides);
    const int64_t b_bytes = laid_out(s.extent, s.keys, 4, s.bias_strides);
    broadcast(s.k_strides, LAST);
    broadcast(s.v_strides, LAST);
    broadcast(s.bias_strides, INTONLY_RANK);
    broadcast(s.mask_strides, INTONLY_RANK);
    s.q_ref = place(q_bytes, 0, 1), s.k_ref = place(k_bytes, 0, 1), s.v_ref = place(v_bytes, 0, 1);
    s.bias_ref = one_in(2) ? INTONLY_ABSENT : place(b_bytes, 0, 4);
    s.mask_ref = one_in(2) ? INTONLY_ABSENT : place(m_bytes, 0, 1);
    const int64_t reach = one_in(2) ? 128 : 1 + below(20);
    fill_codes(s.q_ref, s.q_type, q_bytes, reach);
    fill_codes(s.k_ref, s.k_type, k_bytes, reach);
    fill_codes(s.v_ref, s.v_type, v_bytes, 128);
    if (s.bias_ref >= 0) fill_bias(s.bias_ref, b_bytes);
    if (s.mask_ref >= 0) fill(s.mask_ref, INTONLY_U8, m_bytes, 0, 2);
    s.y_ref = place(y_bytes, 0, y_size);
    s.scratch_bytes = intonly_attention_scratch(s.keys, s.depth, s.width), s.scratch = place_scratch(s.parts * s.scratch_bytes);
    expectation e = expect(s.y_ref, s.y_type, y_bytes);

    int64_t index[INTONLY_RANK] = {0};
    do {
        const uint8_t *q = at(s.q_ref) + dot(index, s.q_strides, INTONLY_RANK);
        const uint8_t *k = at(s.k_ref) + dot(index, s.k_strides, INTONLY_RANK);
        const uint8_t *v = at(s.v_ref) + dot(index, s.v_strides, INTONLY_RANK);
        const uint8_t *bias = s.bias_ref < 0 ? NULL : at(s.bias_ref) + dot(index, s.bias_strides, INTONLY_RANK);
        const uint8_t *mask = s.mask_ref < 0 ? NULL : at(s.mask_ref) + dot(index, s.mask_strides, INTONLY_RANK);
        int64_t largest = INT64_MIN, total = 0;
        for (int64_t t = 0; t < s.keys; ++t) {
            score[t] = bias == NULL ? 0 : get(bias + 4 * t, INTONLY_S32);
            for (int64_t c = 0; c < s.depth; ++c)
                score[t] += (get(q + c, s.q_type) - s.q_zero) * get(k + t * s.k_key + c, s.k_type);
            if ((mask == NULL || mask[t * s.mask_key] != 0) && score[t] > largest) largest = score[t];
        }
        for (int64_t t = 0; t < s.keys; ++t) {
            const int counts = mask == NULL || mask[t * s.mask_key] != 0;
            share[t] = counts ? weight((wide)largest - score[t], s.shift, s.weight_multiplier) : 0;
            total += share[t];
        }
        const int64_t reciprocal = (INT64_C(1) << 38) / (total < 255 ? 255 : total);
        for (int64_t c = 0; c < s.width; ++c) {
            wide sum = 0;
            for (int64_t t = 0; t < s.keys; ++t) sum += share[t] * (get(v + t * s.v_key + c, s.v_type) - s.v_zero);
            const wide mean = floored(sum * reciprocal, 16);
            const wide code = s.zero_point + floored(mean * s.multiplier + ((wide)1 << (s.y_shift - 1)), s.y_shift);
            expect_element(&e, dot(index, s.y_strides, INTONLY_RANK) + c * y_size, clamped(code, s.lo, s.hi));
        }
    } while (next_index(index, s.extent, INTONLY_RANK));
    check_beside(table->run[INTONLY_KIND_attention], &s, &e, s.scratch, s.parts * s.scratch_bytes);
    ++o->cases;
}

static int64_t root_of(wide a) {
    int64_t root = 0;
    for (int64_t bit = INT64_C(1) << 31; bit > 0; bit >>= 1)
        if ((wide)(root + bit) * (root + bit) <= a) root += bit;
    return root;
}

void test_norm(const intonly_kernels *table, outcome *o) {
    intonly_norm s = {.kind = INTONLY_KIND_norm, .words = sizeof s / 8, .parts = 3};
    int32_t multiplier[600];
    int8_t shift[600];
    int64_t offset[600];
    scene_begin();
    set_outer(s.extent, 1 + below(one_in(2) ? 40 : 5));
    s.x_type = below(INTONLY_U16 + 1), s.y_type = below(INTONLY_S32 + 1), s.count = 1 + below(one_in(3) ? 600 : 70);
    const int64_t lowest = type_lowest(s.x_type), highest = type_highest(s.x_type);
    s.middle = one_in(2) ? (lowest + highest + 1) / 2 : random_value(lowest, highest);
    s.centered = below(2);
    const int64_t reach = highest - s.middle > s.middle - lowest ? highest - s.middle : s.middle - lowest;
    int64_t under = 2 * (s.count * reach) * (s.count * reach), spare = 0;
    while (under << (spare + 2) < INT64_C(1) << 61) spare += 2;
    s.root_bits = spare / 2 - below(1 + spare / 2 < 4 ? 1 + spare / 2 : 4);
    s.eps_code = 1 + (one_in(3) ? 0 : below(INT64_C(1) << 40));
    int64_t u_bits = 1;
    while (INT64_C(1) << u_bits <= 2 * s.count * reach) ++u_bits;
    s.reciprocal_bits = s.root_bits + below(62 - u_bits - s.root_bits < 1 ? 1 : 62 - u_bits - s.root_bits);
    s.result_bits = below(1 + (s.reciprocal_bits - s.root_bits < 24 ? s.reciprocal_bits - s.root_bits : 24));
    s.least_root = INT64_C(1) << below(12);
    set_codes(s.y_type, &s.zero_point, &s.lo, &s.hi);
    for (int64_t c = 0; c < s.count; ++c) {
        multiplier[c] = (int32_t)between(-INT32_MAX, INT32_MAX);
        shift[c] = (int8_t)(one_in(4) ? between(1, 62) : between(25, 50));
        offset[c] = between(-(INT64_C(1) << 45), INT64_C(1) << 45) + (INT64_C(1) << (shift[c] - 1));
    }
    s.multiplier = place_constant(multiplier, s.count * 4), s.shift = place_constant(shift, s.count);
    s.offset = place_constant(offset, s.count * 8);
    const int64_t x_size = type_bytes(s.x_type), y_size = type_bytes(s.y_type);
    const int64_t x_bytes = laid_out(s.extent, s.count, x_size, s.x_strides);
    const int64_t y_bytes = laid_out(s.extent, s.count, y_size, s.y_strides);
    s.x_ref = place(x_bytes, 0, x_size);
    if (one_in(3))
        fill(s.x_ref, s.x_type, x_bytes, lowest, highest);
    else
        fill(s.x_ref, s.x_type, x_bytes, s.middle - (s.middle - lowest) / 50, s.middle + (highest - s.middle) / 50);
    s.y_ref = place(y_bytes, 0, y_size);
    expectation e = expect(s.y_ref, s.y_type, y_bytes);

    int64_t index[INTONLY_RANK] = {0};
    do {
        const uint8_t *x = at(s.x_ref) + dot(index, s.x_strides, INTONLY_RANK);
        int64_t total = 0, squares = 0;
        for (int64_t c = 0; c < s.count; ++c) {
            const int64_t from = get(x + c * x_size, s.x_type) - s.middle;
            total += s.centered ? from : 0;
            squares += from * from;
        }
        const wide spread = (wide)squares * s.count - (wide)total * total;
        const int64_t found = root_of((spread << (2 * s.root_bits)) + s.eps_code);
        const int64_t root = found < s.least_root ? s.least_root : found;
        const int64_t reciprocal = (INT64_C(1) << s.reciprocal_bits) / root;
        for (int64_t c = 0; c < s.count; ++c) {
            const wide u = (wide)(get(x + c * x_size, s.x_type) - s.middle) * s.count - total;
            const wide result = floored(u * reciprocal, s.reciprocal_bits - s.root_bits - s.result_bits);
            const int64_t sum = modulo64(result * multiplier[c] + offset[c]);
            const wide code = s.zero_point + floored(sum, shift[c]);
            expect_element(&e, dot(index, s.y_strides, INTONLY_RANK) + c * y_size, clamped(code, s.lo, s.hi));
        }
    } while (next_index(index, s.extent, INTONLY_RANK));
    check(table->run[INTONLY_KIND_norm], &s, &e);
    ++o->cases;
}
