/* SPDX-License-Identifier: Apache-2.0 */
#include "exec_programs.h"
#include "kernels/attention/scratch.h"

#include <string.h>

#include "kernels/elements.h"

enum { MOST_VALUES = 64, MOST_CHANNELS = 160, MOST_TAPS = 9 };

typedef struct value {
    int64_t ref, type, count; /* contiguous */
} value;

int64_t words[MOST_WORDS];
size_t word_count;
int64_t constants_used;
static int64_t arena_used;
static value values[MOST_VALUES];
static int value_count;
const intonly_kernels *kernels;

static int64_t constant(const void *data, int64_t bytes) {
    const int64_t offset = constants_used;
    constants_used += (bytes + 63) & ~INT64_C(63);
    REQUIRE(constants_used <= (int64_t)space_bytes[INTONLY_CONSTANTS]);
    memcpy(bases[INTONLY_CONSTANTS] + offset, data, (size_t)bytes);
    return offset;
}

/* The same at the end of the constants, before the slack. */
static int64_t last_constant(const void *data, int64_t bytes) {
    const int64_t offset = ((int64_t)space_bytes[INTONLY_CONSTANTS] - bytes) & ~INT64_C(7);
    memcpy(bases[INTONLY_CONSTANTS] + offset, data, (size_t)bytes);
    return offset;
}

/* Return where a new result stands: in the arena or in an output, whose values nobody reads. */
static int64_t result(int64_t type, int64_t count) {
    const int64_t bytes = count * intonly_bytes_of(type), space = between(OUTPUT, SPACES - 1);
    if (one_in(5) && bytes <= (int64_t)space_bytes[space])
        return ref_of(space, (int64_t)space_bytes[space] - bytes -
                                 (below(4) == 0 ? 0 : ((int64_t)space_bytes[space] - bytes) & 8));
    const int64_t offset = arena_used;
    arena_used += (bytes + 63) & ~INT64_C(63);
    REQUIRE(arena_used <= (int64_t)space_bytes[INTONLY_ARENA]);
    if (value_count < MOST_VALUES) values[value_count++] = (value){ref_of(INTONLY_ARENA, offset), type, count};
    return ref_of(INTONLY_ARENA, offset);
}

/* Packed forms differ in size from table to table, and must not decide which steps a program has. */
static int has_room(void) {
    return arena_used + 20000 < (int64_t)space_bytes[INTONLY_ARENA] && word_count + 400 < MOST_WORDS;
}

static value some_value(int64_t most_type) {
    for (;;) {
        const value v = values[below(value_count)];
        if (v.type <= most_type) return v;
    }
}

#define PUSH(step, name)                                                                                               \
    do {                                                                                                               \
        (step).kind = INTONLY_KIND_##name;                                                                             \
        (step).words = sizeof(step) / sizeof(int64_t);                                                                 \
        if ((step).parts == 0) (step).parts = one_in(3) ? 1 : between(2, 64);                                                                 \
        memcpy(words + word_count, &(step), sizeof(step));                                                             \
        word_count += sizeof(step) / sizeof(int64_t);                                                                  \
    } while (0)

/* The numbers and constants of an epilogue, `channels` of each. */
typedef struct law {
    int64_t form, y_type, zero_point, lo, hi, fraction_bits;
    int32_t multiplier[MOST_CHANNELS], residual_multiplier[MOST_CHANNELS];
    int8_t shift[MOST_CHANNELS], residual_shift[MOST_CHANNELS];
} law;

static law some_law(int64_t form) {
    law l = {.form = form, .y_type = form == INTONLY_FORM_ACC ? INTONLY_S32 : below(2)};
    const int64_t lowest = l.y_type == INTONLY_S8 ? -128 : 0;
    for (int i = 0; i < MOST_CHANNELS; ++i) {
        const int narrow = form == INTONLY_FORM_NARROW;
        l.multiplier[i] = (int32_t)(narrow ? between(1 << 14, (1 << 15) - 1) : between(1 << 30, INT32_MAX));
        if (one_in(3)) l.multiplier[i] = -l.multiplier[i];
        l.residual_multiplier[i] = (int32_t)between(1 << 14, (1 << 15) - 1);
        l.shift[i] = (int8_t)(narrow ? between(-1, 12) : between(31, 40));
        l.residual_shift[i] = (int8_t)between(-8, 1);
    }
    if (form == INTONLY_FORM_ACC) return l;
    l.zero_point = lowest + below(256);
    l.lo = lowest + below(64);
    l.hi = lowest + between(128, 255);
    l.fraction_bits = form == INTONLY_FORM_NARROW ? between(4, 7) : 0;
    return l;
}

#define SET_LIMITS(step, l)                                                                                            \
    ((step).form = (l).form, (step).zero_point = (l).zero_point, (step).lo = (l).lo, (step).hi = (l).hi,               \
     (step).fraction_bits = (l).fraction_bits)
#define NO_CONSTANTS(step)                                                                                             \
    ((step).multiplier = (step).shift = (step).residual_multiplier = (step).residual_shift = (step).x_zero = -1)
#define SET_CONSTANTS(step, l)                                                                                         \
    do {                                                                                                               \
        SET_LIMITS(step, l);                                                                                           \
        NO_CONSTANTS(step);                                                                                            \
        if ((l).form != INTONLY_FORM_ACC) {                                                                            \
            (step).multiplier = constant((l).multiplier, sizeof((l).multiplier));                                      \
            (step).shift = constant((l).shift, sizeof((l).shift));                                                     \
        }                                                                                                              \
    } while (0)

/* The last two axes are rows of columns; the rest have one place. */
static void matrix(int64_t *extent, int64_t rows, int64_t columns) {
    for (int i = 0; i < INTONLY_RANK; ++i) extent[i] = 1;
    extent[INTONLY_RANK - 2] = rows;
    extent[INTONLY_RANK - 1] = columns;
}

static void strides_of(int64_t *strides, int64_t row, int64_t column) {
    for (int i = 0; i < INTONLY_RANK; ++i) strides[i] = 0;
    strides[INTONLY_RANK - 2] = row;
    strides[INTONLY_RANK - 1] = column;
}

static void add_copy(void) {
    const value v = some_value(INTONLY_S64);
    const int64_t size = intonly_bytes_of(v.type), columns = between(1, v.count < 40 ? v.count : 40);
    const int64_t rows = between(1, v.count / columns), type = below(7), turned = one_in(2);
    intonly_copy s = {.a_ref = v.ref, .a_type = v.type, .y_type = type};
    if (rows * columns > 600) return;
    matrix(s.extent, rows, columns);
    if (turned)
        strides_of(s.a_strides, size, rows * size);
    else
        strides_of(s.a_strides, columns * size, size);
    if (one_in(4)) { /* from the last row to the first */
        s.a_ref += (rows - 1) * s.a_strides[INTONLY_RANK - 2];
        s.a_strides[INTONLY_RANK - 2] *= -1;
    }
    s.y_ref = result(type, rows * columns);
    strides_of(s.y_strides, columns * intonly_bytes_of(type), intonly_bytes_of(type));
    PUSH(s, copy);
}

static void add_map(void) {
    const int64_t op = below(INTONLY_MAP_OPS);
    const value a = some_value(op == INTONLY_MAP_LOOKUP ? INTONLY_U16 : INTONLY_S32), b = some_value(INTONLY_S32);
    const int64_t columns = between(1, a.count < 50 ? a.count : 50), rows = between(1, a.count / columns);
    const int plain = op == INTONLY_MAP_FLOOR_DIV || op == INTONLY_MAP_ISQRT;
    const law l = some_law(plain ? INTONLY_FORM_ACC : below(2));
    intonly_map s = {
        .op = op, .sign = one_in(2) ? 1 : -1, .a_ref = a.ref, .a_type = a.type, .b_ref = -1, .c_ref = -1, .r_ref = -1};
    if (rows * columns > 600 || (columns > 64 && l.form)) return;
    matrix(s.extent, rows, columns);
    strides_of(s.a_strides, columns * intonly_bytes_of(a.type), intonly_bytes_of(a.type));
    if (op == INTONLY_MAP_LOOKUP) {
        uint64_t table[300];
        for (int i = 0; i < 300; ++i) table[i] = random64();
        s.b_type = below(7);
        s.b_count =
            one_in(2) ? 256 : between(1, 300); /* fewer than there are codes: the last entry stands for the rest */
        const int64_t bytes = s.b_count * intonly_bytes_of(s.b_type);
        s.b_ref = one_in(3) ? last_constant(table, bytes) : constant(table, bytes);
        s.offset = a.type == INTONLY_S8 ? -128 : between(-3, 3) * one_in(2);
    } else if (op != INTONLY_MAP_IDENTITY && op != INTONLY_MAP_ISQRT) {
        if (b.count < columns) return;
        s.b_ref = b.ref;
        s.b_type = b.type;
        strides_of(s.b_strides, 0, intonly_bytes_of(b.type)); /* broadcast */
        s.a_zero = between(-300, 300);
        s.b_zero = between(-300, 300);
    }
    if (op == INTONLY_MAP_SELECT) {
        s.c_ref = a.ref;
        s.c_type = a.type;
    }
    SET_CONSTANTS(s, l);
    if (l.form && one_in(2)) s.x_zero = constant(l.residual_multiplier, sizeof l.residual_multiplier);
    if (columns <= 64 && one_in(2)) s.constant_strides[INTONLY_RANK - 1] = s.zero_strides[INTONLY_RANK - 1] = 1;
    s.y_type = l.form ? l.y_type : INTONLY_S64;
    s.y_ref = result(s.y_type, rows * columns);
    strides_of(s.y_strides, columns * intonly_bytes_of(s.y_type), intonly_bytes_of(s.y_type));
    PUSH(s, map);
}

static void add_contract(void) {
    const value a = some_value(INTONLY_S64), b = some_value(INTONLY_S64);
    const int64_t k = between(1, a.count < 30 ? a.count : 30), m = between(1, a.count / k);
    const int64_t n = b.count / k < 20 ? b.count / k : 20, a_size = intonly_bytes_of(a.type),
                  b_size = intonly_bytes_of(b.type);
    const law l = some_law(below(2));
    const int maximum = one_in(4);
    intonly_contract s = {.op = maximum ? INTONLY_MAX : INTONLY_SUM_PRODUCTS,
                          .a_ref = a.ref,
                          .a_type = a.type,
                          .b_ref = -1,
                          .bias = -1,
                          .r_ref = -1};
    if (n < 1 || m * n > 400) return;
    matrix(s.extent, m, n);
    for (int i = 0; i < INTONLY_REDUCED; ++i) s.reduced[i] = i == 3 ? k : 1;
    strides_of(s.a_strides, k * a_size, 0);
    s.a_reduced[3] = a_size;
    if (!maximum) {
        s.a_zero = between(-200, 200);
        s.b_ref = b.ref;
        s.b_type = b.type;
        s.b_zero = between(-200, 200);
        strides_of(s.b_strides, 0, k * b_size);
        s.b_reduced[3] = b_size;
        s.bias = constant(l.multiplier, sizeof l.multiplier);
        strides_of(s.bias_strides, 0, 4);
    }
    SET_CONSTANTS(s, l);
    s.constant_strides[INTONLY_RANK - 1] = one_in(2);
    s.y_type = l.form ? l.y_type : INTONLY_S64;
    s.y_ref = result(s.y_type, m * n);
    strides_of(s.y_strides, n * intonly_bytes_of(s.y_type), intonly_bytes_of(s.y_type));
    PUSH(s, contract);
}

static void add_gather(void) {
    const value a = some_value(INTONLY_S64), data = some_value(INTONLY_S64);
    const int64_t size = intonly_bytes_of(a.type), row = between(1, a.count < 9 ? a.count : 9);
    intonly_gather s = {.a_ref = a.ref, .outer = 1, .rows = a.count / row, .row_bytes = row * size};
    if (one_in(2)) {
        uint16_t indices[40];
        for (int i = 0; i < 40; ++i) indices[i] = (uint16_t)below(s.rows);
        s.count = between(1, 40);
        s.index_ref = constant(indices, sizeof indices);
        s.index_type = INTONLY_U16;
    } else { /* most of these indices are none of the rows */
        s.count = data.count < 40 ? data.count : 40;
        s.index_ref = data.ref;
        s.index_type = data.type;
    }
    s.y_ref = result(a.type, s.count * row);
    PUSH(s, gather);
}

/* An image of 8-bit codes: `first` pixel of its margin, if any; h and w with the margin. */
typedef struct picture {
    int64_t first, n, h, w, c, stride_n, stride_h;
} picture;

/* The end of an input, behind which nothing may be read. */
static picture given_picture(int64_t n, int64_t h, int64_t w, int64_t c) {
    const int64_t bytes = n * h * w * c;
    return (picture){ref_of(INPUT, (int64_t)space_bytes[INPUT] - bytes), n, h, w, c, h * w * c, w * c};
}

/* An image in the arena, copied from an input, with a margin of one pixel. */
static picture padded_picture(int64_t n, int64_t h, int64_t w, int64_t c) {
    const int64_t row = (w + 2) * c, whole = (h + 2) * row, inside = ref_of(INTONLY_ARENA, arena_used + row + c);
    const picture p = {ref_of(INTONLY_ARENA, arena_used), n, h + 2, w + 2, c, whole, row};
    uint8_t pattern[MOST_CHANNELS];
    arena_used += (n * whole + 63) & ~INT64_C(63);

    intonly_copy copy = {.a_ref = values[0].ref, .a_type = INTONLY_U8, .y_ref = inside, .y_type = INTONLY_U8};
    for (int i = 0; i < INTONLY_RANK; ++i) copy.extent[i] = 1;
    const int64_t extents[4] = {n, h, w, c}, a[4] = {h * w * c, w * c, c, 1}, y[4] = {whole, row, c, 1};
    memcpy(copy.extent + 4, extents, sizeof extents);
    memcpy(copy.a_strides + 4, a, sizeof a);
    memcpy(copy.y_strides + 4, y, sizeof y);
    PUSH(copy, copy);

    intonly_halo halo = {.x_ref = inside, .x_type = INTONLY_U8, .x_n = whole, .x_h = row, .x_w = c};
    halo.n = n, halo.h = h, halo.w = w, halo.pixel_bytes = c;
    halo.top = halo.left = halo.bottom = halo.right = 1;
    for (int i = 0; i < MOST_CHANNELS; ++i) pattern[i] = (uint8_t)(c % 2 ? 7 : i);
    halo.pattern = constant(pattern, c);
    PUSH(halo, halo);
    return p;
}

/* Pack constants for a gemm or a depthwise window. x_words: whether x is int16. */
static int64_t add_packed(const law *l, const int32_t *bias, int64_t channels, int64_t taps, int64_t depth, int is_gemm,
                          int x_words, int joins, int64_t *bytes) {
    static int8_t weights[MOST_CHANNELS * MOST_TAPS * MOST_CHANNELS];
    static uint8_t packed[1 << 19];
    const int64_t count = channels * taps * depth, most = one_in(2) ? 127 : between(1, 7);
    for (int64_t i = 0; i < count; ++i) weights[i] = (int8_t)between(-most, most);
    const intonly_weights w = {.channels = channels,
                               .taps = taps,
                               .depth = depth,
                               .w = weights,
                               .bias = bias,
                               .tap_bytes = is_gemm ? (depth * (1 + x_words) + 3) & ~INT64_C(3) : 1,
                               .form = l->form,
                               .multiplier = l->form ? l->multiplier : NULL,
                               .shift = l->form ? l->shift : NULL,
                               .residual_multiplier = joins ? l->residual_multiplier : NULL,
                               .residual_shift = joins ? l->residual_shift : NULL,
                               .fraction_bits = l->fraction_bits,
                               .acc_limit = 5000 + 127 * (x_words ? 32768 : 255) * taps * depth,
                               .x_words = x_words};
    const size_t size = is_gemm ? kernels->gemm_size(&w) : kernels->depthwise_size(&w);
    REQUIRE(size > 0 && size <= sizeof packed && size % 64 == 0);
    (is_gemm ? kernels->gemm_pack : kernels->depthwise_pack)(&w, packed);
    *bytes = (int64_t)size;
    return constant(packed, *bytes);
}

/* The images and taps of a step that reads windows of a picture. */
#define SET_WINDOWS(step, p, l, kernel, out, size)                                                                     \
    do {                                                                                                               \
        const int64_t oh_ = (p).h - (kernel) + 1, ow_ = (p).w - (kernel) + 1;                                          \
        int64_t taps_[MOST_TAPS];                                                                                      \
        for (int64_t t = 0; t < (kernel) * (kernel); ++t)                                                              \
            taps_[t] = t / (kernel) * (p).stride_h + t % (kernel) * (p).c;                                             \
        (step).x_ref = (p).first, (step).x_type = INTONLY_U8;                                                          \
        (step).x_n = (p).stride_n, (step).x_h = (p).stride_h, (step).x_w = (p).c;                                      \
        (step).n = (p).n, (step).oh = oh_, (step).ow = ow_, (step).taps = (kernel) * (kernel);                         \
        (step).tap_offsets = constant(taps_, (step).taps * 8);                                                         \
        (step).y_type = (l).y_type, (step).y_ref = result((l).y_type, (p).n * oh_ * ow_ * (out));                      \
        (step).y_n = oh_ * ow_ * (out) * (size), (step).y_h = ow_ * (out) * (size), (step).y_w = (out) * (size);       \
        (step).r_ref = -1, (step).r_n = oh_ * ow_ * (out), (step).r_h = ow_ * (out), (step).r_w = (out);               \
        (step).r_type = INTONLY_U8, (step).residual_zero = between(0, 255);                                            \
    } while (0)

static void add_image(void) {
    const int64_t c = one_in(3) ? between(1, 140) : 4 * between(1, 20), n = between(1, 2), kernel = between(1, 3);
    const int64_t h = between(3, 6), w = between(3, 6), what = below(3), out = what == 0 ? between(1, 150) : c;
    const int padded = what == 0 && c % 4 != 0 ? 1 : one_in(2); /* a tap that is rounded up needs the slack */
    if (n * h * w * c > (int64_t)space_bytes[INPUT] || n * (h + 2) * (w + 2) * c > 9000) return;
    if (n * (h + 2) * (w + 2) * out * 4 > 16000) return;
    const picture p = padded ? padded_picture(n, h, w, c) : given_picture(n, h, w, c);
    const law l = some_law(one_in(4) ? below(2) : INTONLY_FORM_NARROW);
    const int64_t size = intonly_bytes_of(l.y_type), outputs = n * (p.h - kernel + 1) * (p.w - kernel + 1) * out;
    const int joins = what < 2 && l.form == INTONLY_FORM_NARROW && one_in(2) && outputs <= values[0].count;
    const int64_t residual = ref_of(INPUT, (int64_t)space_bytes[INPUT] - outputs);
    int32_t bias[MOST_CHANNELS];
    for (int i = 0; i < MOST_CHANNELS; ++i) bias[i] = (int32_t)between(-5000, 5000);
    if (what == 0) {
        intonly_gemm s = {.oc = out, .tap_bytes = (c + 3) & ~INT64_C(3), .channels_first = below(2)};
        SET_WINDOWS(s, p, l, kernel, out, size);
        SET_LIMITS(s, l);
        if (joins) s.r_ref = residual;
        s.packed = add_packed(&l, bias, out, s.taps, c, 1, 0, joins, &s.packed_bytes);
        PUSH(s, gemm);
    } else if (what == 1) {
        intonly_window s = {.op = INTONLY_SUM_PRODUCTS, .c = c, .bias = -1};
        SET_WINDOWS(s, p, l, kernel, out, size);
        SET_LIMITS(s, l);
        NO_CONSTANTS(s);
        if (joins) s.r_ref = residual;
        s.packed = add_packed(&l, bias, c, s.taps, 1, 0, 0, joins, &s.packed_bytes);
        PUSH(s, window);
    } else {
        intonly_window s = {.op = between(INTONLY_SUM, INTONLY_MAX), .c = c, .bias = -1, .packed = -1};
        law own = l;
        if (l.form == INTONLY_FORM_ACC && s.op == INTONLY_MAX && one_in(2)) own.y_type = INTONLY_U8;
        SET_WINDOWS(s, p, own, kernel, out, intonly_bytes_of(own.y_type));
        SET_CONSTANTS(s, l);
        if (one_in(2) && own.y_type == l.y_type) s.bias = constant(bias, sizeof bias);
        s.constant_c = one_in(2);
        PUSH(s, window);
    }
}

/* A linear layer on int16 codes, which end an input. */
static void add_words(void) {
    const int64_t depth = 2 * between(1, 10), rows = between(1, 12), out = between(1, 150), bytes = 2 * rows * depth;
    if (bytes > (int64_t)space_bytes[INPUT + 1] || rows * out * 4 > 16000) return;
    const int64_t at = (int64_t)space_bytes[INPUT + 1] - bytes;
    const picture p = {ref_of(INPUT + 1, at), 1, 1, rows, 2 * depth, bytes, bytes};
    const law l = some_law(below(3));
    int32_t bias[MOST_CHANNELS];
    for (int i = 0; i < MOST_CHANNELS; ++i) bias[i] = (int32_t)between(-5000, 5000);
    intonly_gemm s = {.oc = out, .tap_bytes = 2 * depth, .channels_first = below(2)};
    SET_WINDOWS(s, p, l, 1, out, intonly_bytes_of(l.y_type));
    SET_LIMITS(s, l);
    s.x_type = INTONLY_S16;
    s.packed = add_packed(&l, bias, out, 1, depth, 1, 1, 0, &s.packed_bytes);
    PUSH(s, gemm);
}

static void add_attention(void) {
    const value a = some_value(INTONLY_U8), b = some_value(INTONLY_U8);
    const int64_t least = a.count < b.count ? a.count : b.count, depth = between(1, least < 20 ? least : 20);
    const int64_t rows = between(1, a.count / depth < 15 ? a.count / depth : 15);
    const int64_t keys = between(1, b.count / depth < 40 ? b.count / depth : 40);
    intonly_attention s = {.q_ref = a.ref, .q_type = a.type, .k_ref = b.ref, .k_type = b.type, .v_ref = b.ref, .v_type = b.type};
    matrix(s.extent, 1, rows);
    strides_of(s.q_strides, 0, depth);
    s.keys = keys, s.depth = s.width = s.k_key = s.v_key = depth;
    s.q_zero = between(-256, 256), s.v_zero = between(-256, 256);
    s.bias_ref = INTONLY_ABSENT;
    if (one_in(2)) {
        int32_t bias[15 * 40];
        for (int64_t i = 0; i < rows * keys; ++i) bias[i] = (int32_t)between(-(1 << 12), one_in(9) ? 1 << 29 : 1 << 12);
        s.bias_ref = constant(bias, rows * keys * 4);
        strides_of(s.bias_strides, 0, one_in(2) ? keys * 4 : 0);
    }
    s.mask_ref = one_in(2) && b.count >= keys ? b.ref : INTONLY_ABSENT;
    s.mask_key = 1;
    s.shift = between(-13, 29), s.weight_multiplier = between(1 << 14, INT16_MAX);
    s.multiplier = between(INT32_MIN, INT32_MAX), s.y_shift = between(1, 62);
    s.y_type = INTONLY_U8, s.zero_point = between(-300, 300), s.hi = 255;
    s.y_ref = result(s.y_type, rows * depth);
    strides_of(s.y_strides, 0, depth);
    s.parts = between(1, 3), s.scratch_bytes = intonly_attention_scratch(keys, depth, depth);
    if (arena_used + s.parts * s.scratch_bytes > (int64_t)space_bytes[INTONLY_ARENA]) return;
    s.scratch = ref_of(INTONLY_ARENA, arena_used), arena_used += s.parts * s.scratch_bytes;
    PUSH(s, attention);
}

static void add_norm(void) {
    const value a = some_value(INTONLY_U16);
    const int64_t count = between(1, a.count < MOST_CHANNELS ? a.count : MOST_CHANNELS), size = intonly_bytes_of(a.type);
    const int64_t rows = between(1, a.count / count < 12 ? a.count / count : 12);
    int64_t offset[MOST_CHANNELS];
    const law l = some_law(INTONLY_FORM_WIDE);
    for (int c = 0; c < MOST_CHANNELS; ++c) offset[c] = (int64_t)random64();
    intonly_norm s = {.x_ref = a.ref, .x_type = a.type, .count = count, .middle = between(-65536, 65536)};
    matrix(s.extent, 1, rows);
    strides_of(s.x_strides, 0, count * size);
    s.centered = one_in(2), s.root_bits = between(0, 31), s.result_bits = between(0, 30);
    s.reciprocal_bits = between(s.root_bits + s.result_bits, 62);
    s.least_root = between(1, 5000), s.eps_code = between(1, 5000);
    s.multiplier = constant(l.multiplier, sizeof l.multiplier), s.shift = constant(l.shift, sizeof l.shift);
    s.offset = constant(offset, sizeof offset);
    s.y_type = INTONLY_U8, s.zero_point = between(-300, 300), s.hi = 255;
    s.y_ref = result(s.y_type, rows * count);
    strides_of(s.y_strides, 0, count);
    PUSH(s, norm);
}

void make_program(uint64_t seed, const intonly_kernels *table) {
    random_state = seed * 2 + 1;
    kernels = table;
    word_count = 0;
    constants_used = arena_used = 0;
    for (int s = 0; s < SPACES; ++s)
        for (size_t i = 0; i < region_bytes[s]; ++i)
            region[s][i] = s < INPUT || s >= OUTPUT ? 0x5A : (uint8_t)random64();
    value_count = 2;
    values[0] = (value){ref_of(INPUT, 0), INTONLY_U8, (int64_t)space_bytes[INPUT]};
    values[1] = (value){ref_of(INPUT + 1, 0), INTONLY_S16, (int64_t)space_bytes[INPUT + 1] / 2};
    for (int64_t steps = between(1, 8); steps > 0 && has_room(); --steps) {
        switch (below(9)) {
        case 0: add_copy(); break;
        case 1: add_map(); break;
        case 2: add_contract(); break;
        case 3: add_gather(); break;
        case 4: add_attention(); break;
        case 5: add_norm(); break;
        case 6: add_words(); break;
        default: add_image(); break;
        }
    }
}
