/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels_harness.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

unsigned long comparisons, inside_limits, at_limits, edges, matrices;

void require(int holds, const char *what, const char *file, int line) {
    ++comparisons;
    if (!holds) {
        fprintf(stderr, "%s:%d: %s\n", file, line, what);
        exit(1);
    }
}

/* Random numbers. */

static uint64_t state = UINT64_C(0x9E3779B97F4A7C15);

void random_begin(uint64_t seed) { state += seed * UINT64_C(0xD1342543DE82EF95); }

uint64_t random64(void) {
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return state * UINT64_C(2685821657736338717);
}

int64_t below(int64_t limit) { return (int64_t)((random64() >> 1) % (uint64_t)limit); }

int64_t between(int64_t lo, int64_t hi) {
    const uint64_t last = (uint64_t)hi - (uint64_t)lo, draw = random64();
    return (int64_t)(lo + (wide)(last == UINT64_MAX ? draw : draw % (last + 1)));
}

int one_in(int64_t n) { return below(n) == 0; }

/* Element types: those with even numbers are signed. */

int64_t type_bytes(int64_t type) { return INT64_C(1) << (type >> 1); }

int64_t type_lowest(int64_t type) {
    return type & 1 ? 0 : type == INTONLY_S64 ? INT64_MIN : -(INT64_C(1) << (8 * type_bytes(type) - 1));
}

int64_t type_highest(int64_t type) {
    return type == INTONLY_S64 ? INT64_MAX : (INT64_C(1) << (8 * type_bytes(type) - !(type & 1))) - 1;
}

int64_t get(const uint8_t *from, int64_t type) {
    wide value = 0;
    for (int64_t i = 0; i < type_bytes(type); ++i) value += (wide)from[i] << (8 * i);
    return (int64_t)(value > type_highest(type) ? value - ((wide)1 << (8 * type_bytes(type))) : value);
}

void put(uint8_t *to, int64_t type, int64_t value) {
    for (int64_t i = 0; i < type_bytes(type); ++i) to[i] = (uint8_t)((uint64_t)value >> (8 * i));
}

int64_t random_value(int64_t lo, int64_t hi) {
    const int64_t ends[] = {lo, hi, lo + (lo < hi), hi - (lo < hi)};
    if (one_in(4)) return ends[below(4)];
    if (one_in(2)) return between(lo, hi);
    const int64_t near = between(-100, 100); /* small numbers, where there are such */
    return near < lo ? lo : near > hi ? hi : near;
}

int64_t type_holding(int64_t lo, int64_t hi, int64_t types) {
    for (;;) {
        const int64_t type = below(types);
        if (type_lowest(type) <= lo && hi <= type_highest(type)) return type;
    }
}

/* Memory. */

enum { SPACES = 16, BLOCK = 1 << 25 };

uint8_t *bases[SPACES];
static size_t bytes_of_space[SPACES];
static int64_t lowest[2]; /* first byte in use of constants and arena */
static int spaces;

static uint8_t *allocate(size_t bytes) {
    uint8_t *memory = (uint8_t *)malloc(bytes);
    if (memory == NULL) exit(2);
    return memory;
}

void scene_begin(void) {
    for (int s = INTONLY_CALLER; s < spaces; ++s) free(bases[s]);
    for (int s = 0; s < INTONLY_CALLER; ++s) {
        if (bases[s] == NULL) bases[s] = (uint8_t *)aligned_alloc(64, bytes_of_space[s] = BLOCK);
        if (bases[s] == NULL) exit(2);
        lowest[s] = BLOCK - INTONLY_SLACK;
    }
    spaces = INTONLY_CALLER;
}

uint8_t *at(int64_t ref) { return intonly_at(bases, ref); }

static int64_t reference(int64_t space, int64_t offset) { return (space << INTONLY_SPACE_SHIFT) + offset; }

static int64_t take(int space, int64_t bytes, int64_t align) {
    lowest[space] = (lowest[space] - bytes) & ~(align - 1);
    REQUIRE(lowest[space] >= 0);
    return reference(space, lowest[space]);
}

int64_t place_constant(const void *data, int64_t bytes) {
    const int64_t ref = take(INTONLY_CONSTANTS, bytes, 64);
    if (data != NULL) memcpy(at(ref), data, (size_t)bytes);
    return ref;
}

int64_t place_scratch(int64_t bytes) { return take(INTONLY_ARENA, bytes, 64); }

int64_t place(int64_t bytes, int64_t tail, int64_t align) {
    if (one_in(2)) return take(INTONLY_ARENA, bytes, align);
    REQUIRE(spaces < SPACES);
    const int64_t before = align * below(4);
    bytes_of_space[spaces] = (size_t)(before + bytes + tail);
    bases[spaces] = allocate(bytes_of_space[spaces]);
    memset(bases[spaces], 0x77, bytes_of_space[spaces]);
    return reference(spaces++, before);
}

/* A sum over all memory of the step that tells whether a byte has changed. */
static uint64_t digest(void) {
    uint64_t sum = 0;
    for (int s = 0; s < spaces; ++s)
        for (size_t i = s < INTONLY_CALLER ? (size_t)lowest[s] : 0; i < bytes_of_space[s]; ++i)
            sum = (sum ^ bases[s][i]) * UINT64_C(0x100000001B3);
    return sum;
}

/* Images and tensors. */

image new_image(int64_t type, int64_t n, int64_t h, int64_t w, int64_t c, int64_t tail) {
    const int64_t size = type_bytes(type);
    image m = {.type = type, .n = n, .h = h, .w = w, .c = c};
    m.stride_w = (c + (one_in(2) ? below(9) : 0)) * size;
    m.stride_h = w * m.stride_w + (one_in(2) ? below(9) : 0) * size;
    m.stride_n = h * m.stride_h + (one_in(2) ? below(9) : 0) * size;
    m.bytes = offset_in(&m, n - 1, h - 1, w - 1, c);
    m.ref = place(m.bytes, tail, size);
    return m;
}

int64_t offset_in(const image *m, int64_t n, int64_t h, int64_t w, int64_t c) {
    return n * m->stride_n + h * m->stride_h + w * m->stride_w + c * type_bytes(m->type);
}

void fill_image(const image *m, int64_t lo, int64_t hi) {
    uint8_t *memory = at(m->ref);
    for (int64_t i = 0; i < m->bytes; ++i) memory[i] = (uint8_t)random64();
    for (int64_t n = 0; n < m->n; ++n)
        for (int64_t h = 0; h < m->h; ++h)
            for (int64_t w = 0; w < m->w; ++w)
                for (int64_t c = 0; c < m->c; ++c) put(memory + offset_in(m, n, h, w, c), m->type, random_value(lo, hi));
}

tensor new_tensor(int64_t type, const int64_t *extent, const int64_t *reduced, int broadcasts) {
    enum { AXES = INTONLY_RANK + INTONLY_REDUCED };
    tensor t = {.type = type};
    int order[AXES];
    for (int i = 0; i < AXES; ++i) order[i] = i;
    if (one_in(2)) {
        for (int i = AXES - 1; i > 0; --i) {
            const int j = (int)below(i + 1), axis = order[i];
            order[i] = order[j];
            order[j] = axis;
        }
    } else if (one_in(3)) { /* the last summed axis is contiguous */
        for (int i = 0; i < AXES; ++i) order[i] = AXES - 1 - i;
    } else { /* the last axis of the output is contiguous, as it mostly is */
        for (int i = 0; i < AXES; ++i) order[i] = AXES - 1 - (i + INTONLY_REDUCED) % AXES;
    }
    int64_t stride = type_bytes(type), last = 0, gaps = 2; /* each gap may triple the bytes */
    if (one_in(4)) stride *= 1 + below(3);
    for (int i = 0; i < AXES; ++i) {
        const int axis = order[i];
        const int64_t length = axis < INTONLY_RANK ? extent[axis] : reduced == NULL ? 1 : reduced[axis - INTONLY_RANK];
        int64_t *at_axis = axis < INTONLY_RANK ? &t.strides[axis] : &t.reduced[axis - INTONLY_RANK];
        if (broadcasts && one_in(4)) {
            *at_axis = 0;
            continue;
        }
        *at_axis = stride;
        last += (length - 1) * stride;
        stride *= length;
        if (length > 1 && gaps > 0 && one_in(6)) {
            stride += type_bytes(type) * below(5);
            --gaps;
        }
    }
    t.bytes = last + type_bytes(type);
    t.ref = place(t.bytes, 0, type_bytes(type));
    return t;
}

void fill_tensor(const tensor *t, int64_t lo, int64_t hi) {
    for (int64_t i = 0; i + type_bytes(t->type) <= t->bytes; i += type_bytes(t->type))
        put(at(t->ref) + i, t->type, random_value(lo, hi));
}

void random_extents(int64_t *extent, int axes, int64_t most, int64_t longest) {
    for (int i = 0; i < axes; ++i) extent[i] = 1;
    const int last_is_long = !one_in(3);
    if (last_is_long) extent[axes - 1] = 1 + below(longest);
    int64_t elements = extent[axes - 1];
    for (int tries = 0; tries < axes; ++tries) {
        const int axis = (int)below(axes - last_is_long);
        const int64_t length = 1 + below(7);
        if (extent[axis] != 1 || elements * length > most) continue;
        extent[axis] = length;
        elements *= length;
    }
}

int next_index(int64_t *index, const int64_t *extent, int axes) {
    for (int axis = axes - 1; axis >= 0; --axis) {
        if (++index[axis] < extent[axis]) return 1;
        index[axis] = 0;
    }
    return 0;
}

int64_t dot(const int64_t *index, const int64_t *strides, int axes) {
    int64_t sum = 0;
    for (int i = 0; i < axes; ++i) sum += index[i] * strides[i];
    return sum;
}

/* The law. */

static wide floor_quotient(wide a, wide b) { return a / b - (a % b != 0 && (a < 0) != (b < 0)); }

static wide power(int64_t exponent) { return (wide)1 << exponent; }

static wide clamp(wide x, wide lo, wide hi) { return x < lo ? lo : x > hi ? hi : x; }

int64_t modulo64(wide x) { return (int64_t)(x - floor_quotient(x + power(63), power(64)) * power(64)); }

/* A multiplier with `bits` bits, often at an end of its range. */
static int32_t random_multiplier(int64_t bits) {
    const int64_t m = random_value(INT64_C(1) << (bits - 1), (INT64_C(1) << bits) - 1);
    const int64_t sized = one_in(2) ? m : between(INT64_C(1) << (bits - 1), (INT64_C(1) << bits) - 1);
    return (int32_t)(one_in(4) ? -sized : sized);
}

static int8_t random_shift(int64_t middle, int64_t lo, int64_t hi) {
    return (int8_t)clamp(one_in(8) ? between(lo, hi) : middle + between(-4, 4), lo, hi);
}

void random_law(law *l, int64_t form, int joins, int64_t r_type, int64_t count, int64_t acc_bits) {
    static const int64_t limits[][2] = {{INT8_MIN, INT8_MAX}, {0, UINT8_MAX}, {-7, 7}, {0, 15}, {-127, 127}, {INT16_MIN, INT16_MAX},
                                        {0, UINT16_MAX}, {INT32_MIN, INT32_MAX}, {0, INT32_MAX}};
    const int64_t *limit = limits[below(form == INTONLY_FORM_NARROW ? 5 : 9)];
    int64_t out_bits = 1;
    while (INT64_C(1) << out_bits <= limit[1]) ++out_bits;
    memset(l, 0, sizeof *l);
    REQUIRE(count <= MOST_CONSTANTS);
    l->form = form;
    l->count = count;
    l->joins = joins;
    l->lo = one_in(3) ? random_value(limit[0], limit[1]) : limit[0];
    l->hi = one_in(3) ? random_value(l->lo, limit[1]) : limit[1];
    l->zero_point = one_in(2) ? random_value(l->lo, l->hi) : limit[0] <= 0 ? 0 : limit[0];
    if (form == INTONLY_FORM_WIDE && one_in(16)) l->zero_point = random_value(INT32_MIN, INT32_MAX);
    l->residual_zero = random_value(type_lowest(r_type), type_highest(r_type));
    l->fraction_bits = form == INTONLY_FORM_NARROW ? between(4, 7) : 0;
    for (int64_t i = 0; i < count; ++i) {
        if (form == INTONLY_FORM_NARROW) {
            l->multiplier[i] = one_in(32) ? 0 : random_multiplier(15);
            l->residual_multiplier[i] = one_in(32) ? 0 : random_multiplier(15);
            l->shift[i] = random_shift(acc_bits - out_bits - l->fraction_bits, -15, 30);
            l->residual_shift[i] = random_shift(8 * type_bytes(r_type) - out_bits - l->fraction_bits, -15, 30);
        } else {
            l->multiplier[i] = one_in(32) ? 0 : random_multiplier(31);
            l->residual_multiplier[i] = random_multiplier(31) / (INT32_C(1) << below(31));
            l->shift[i] = random_shift(acc_bits + 31 - out_bits, 1, 62);
        }
        l->x_zero[i] = (int32_t)random_value(-200, 200);
    }
}

static wide narrow_operand(wide value, int32_t multiplier, int shift) {
    const wide moved = shift >= 1 ? floor_quotient(value + power(shift - 1), power(shift)) : value * power(-shift);
    return floor_quotient(clamp(moved, INT16_MIN, INT16_MAX) * multiplier + power(14), power(15));
}

int64_t apply_law(const law *l, wide acc, int64_t residual, int64_t constant, int64_t zero) {
    if (l->form == INTONLY_FORM_ACC) return modulo64(acc);
    const wide x = acc - (l->has_x_zero ? l->x_zero[zero] : 0), r = (wide)residual - l->residual_zero;
    wide rounded;
    if (l->form == INTONLY_FORM_WIDE) {
        const int shift = l->shift[constant];
        const wide joined = l->joins ? r * l->residual_multiplier[constant] : 0;
        const wide sum = modulo64(x * l->multiplier[constant] + joined + power(shift - 1));
        rounded = floor_quotient(sum, power(shift)) + l->zero_point;
    } else {
        wide sum = narrow_operand(x, l->multiplier[constant], l->shift[constant]);
        if (l->joins) sum += narrow_operand(r, l->residual_multiplier[constant], l->residual_shift[constant]);
        rounded = floor_quotient(sum + l->zero_point * power(l->fraction_bits) + power(l->fraction_bits - 1), power(l->fraction_bits));
    }
    rounded <= l->lo || rounded >= l->hi ? ++at_limits : ++inside_limits;
    return (int64_t)clamp(rounded, l->lo, l->hi);
}

/* Comparison. */

expectation expect(int64_t ref, int64_t type, int64_t bytes) {
    expectation e = {.ref = ref, .type = type, .bytes = bytes};
    e.value = allocate((size_t)bytes);
    e.inside = allocate((size_t)bytes);
    memset(e.inside, 0, (size_t)bytes);
    return e;
}

void expect_element(expectation *e, int64_t offset, int64_t value) {
    REQUIRE(type_lowest(e->type) <= value && value <= type_highest(e->type));
    put(e->value + offset, e->type, value);
    for (int64_t i = 0; i < type_bytes(e->type); ++i) {
        REQUIRE(!e->inside[offset + i]);
        e->inside[offset + i] = 1;
    }
}

void check(intonly_kernel kernel, const void *step, expectation *e) { check_beside(kernel, step, e, e->ref, 0); }

void check_beside(intonly_kernel kernel, const void *step, expectation *e, int64_t scratch, int64_t scratch_bytes) {
    enum { LEFT = 0xA5, RIGHT = 0x5A }; /* what a byte that is not written holds in one run and in the other */
    const size_t bytes = (size_t)e->bytes;
    uint8_t *y = at(e->ref), *left = allocate(bytes), *written = allocate(bytes);
    memset(y, 0, bytes);
    memset(at(scratch), 0, (size_t)scratch_bytes);
    const uint64_t before = digest();
    for (unsigned parts = 1; parts <= 3; ++parts) {
        memset(written, 0, bytes);
        for (unsigned part = 0; part < parts; ++part) {
            memset(y, LEFT, bytes);
            kernel(step, bases, part, parts);
            memcpy(left, y, bytes);
            memset(y, RIGHT, bytes);
            kernel(step, bases, part, parts);
            for (size_t i = 0; i < bytes; ++i) {
                if (left[i] != y[i]) {
                    REQUIRE(left[i] == LEFT && y[i] == RIGHT);
                    continue;
                }
                REQUIRE(y[i] == e->value[i]);
                ++written[i];
            }
        }
        REQUIRE(memcmp(written, e->inside, bytes) == 0);
    }
    memset(y, 0, bytes);
    memset(at(scratch), 0, (size_t)scratch_bytes);
    REQUIRE(digest() == before);
    free(written);
    free(left);
    free(e->inside);
    free(e->value);
}
