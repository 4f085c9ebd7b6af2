/* SPDX-License-Identifier: Apache-2.0
 *
 * Programs against their check. Sound programs of random steps pass it, and give the same bytes with every table of
 * kernels and any number of threads. The same programs with words or constants changed, and words at random, either
 * break a rule or run without leaving their memory: every space ends (or begins) at a page that cannot be touched, and
 * the sanitizers look for the rest. Prints how many programs of each sort it ran.
 */
#define _DEFAULT_SOURCE /* mmap with MAP_ANONYMOUS */

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "exec/exec.h"
#include "kernels/elements.h"

static void fail(const char *what, int line) {
    fprintf(stderr, "exec_test.c:%d: %s\n", line, what);
    exit(1);
}
#define REQUIRE(condition)                                                                                             \
    do {                                                                                                               \
        if (!(condition)) fail(#condition, __LINE__);                                                                  \
    } while (0)

/* Random numbers. */

static uint64_t state = 1;

static uint64_t random64(void) {
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return state * UINT64_C(2685821657736338717);
}

static int64_t below(int64_t limit) { return (int64_t)((random64() >> 1) % (uint64_t)limit); }

static int64_t between(int64_t lo, int64_t hi) { return lo + below(hi - lo + 1); }

static int one_in(int64_t n) { return below(n) == 0; }

/* Memory: constants, arena, two inputs, two outputs, each with a forbidden page before and behind. */

enum { INPUT = INTONLY_CALLER, OUTPUT = INPUT + 2, SPACES = OUTPUT + 2 };

static const size_t space_bytes[SPACES] = {1 << 18, 1 << 16, 4096, 2056, 3000, 1032};
static uint8_t *bases[SPACES], *region[SPACES];
static size_t region_bytes[SPACES];

static size_t with_slack(int space) { return space_bytes[space] + (space < INTONLY_CALLER ? INTONLY_SLACK : 0); }

static void map_spaces(void) {
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    for (int s = 0; s < SPACES; ++s) {
        region_bytes[s] = (with_slack(s) + page - 1) & ~(page - 1);
        uint8_t *all = mmap(NULL, region_bytes[s] + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        REQUIRE(all != MAP_FAILED);
        region[s] = all + page;
        REQUIRE(mprotect(region[s], region_bytes[s], PROT_READ | PROT_WRITE) == 0);
    }
}

/* Stand at the upper or the lower forbidden page. */
static void place_spaces(int high) {
    for (int s = 0; s < SPACES; ++s) bases[s] = region[s] + (high ? region_bytes[s] - with_slack(s) : 0);
}

/* Forbid or allow writing to constants and inputs. */
static void protect(int fixed) {
    for (int s = 0; s < OUTPUT; ++s)
        if (s != INTONLY_ARENA)
            REQUIRE(mprotect(region[s], region_bytes[s], fixed ? PROT_READ : PROT_READ | PROT_WRITE) == 0);
}

static uint64_t digest(uint64_t sum, const uint8_t *from, size_t bytes) {
    for (size_t i = 0; i < bytes; ++i) sum = (sum ^ from[i]) * UINT64_C(0x100000001B3);
    return sum;
}

static int64_t ref_of(int64_t space, int64_t offset) { return (space << INTONLY_SPACE_SHIFT) + offset; }

/* Programs. */

enum { MOST_WORDS = 4000, MOST_VALUES = 64 };

typedef struct value {
    int64_t ref, type, count; /* contiguous */
} value;

static int64_t words[MOST_WORDS];
static size_t word_count;
static int64_t constants_used, arena_used;
static value values[MOST_VALUES];
static int value_count;
static const intonly_kernels *kernels;

static int64_t constant(const void *data, int64_t bytes) {
    const int64_t offset = constants_used;
    constants_used += (bytes + 63) & ~INT64_C(63);
    REQUIRE(constants_used <= (int64_t)space_bytes[INTONLY_CONSTANTS]);
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
        (step).parts = one_in(3) ? 1 : between(2, 64);                                                                 \
        memcpy(words + word_count, &(step), sizeof(step));                                                             \
        word_count += sizeof(step) / sizeof(int64_t);                                                                  \
    } while (0)

/* The numbers and constants of an epilogue, `channels` of each. */
typedef struct law {
    int64_t form, y_type, zero_point, lo, hi, fraction_bits;
    int32_t multiplier[64], residual_multiplier[64];
    int8_t shift[64], residual_shift[64];
} law;

static law some_law(int64_t form) {
    law l = {.form = form, .y_type = form == INTONLY_FORM_ACC ? INTONLY_S32 : below(2)};
    const int64_t lowest = l.y_type == INTONLY_S8 ? -128 : 0;
    for (int i = 0; i < 64; ++i) {
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
        int16_t table[300];
        for (int i = 0; i < 300; ++i) table[i] = (int16_t)random64();
        s.b_ref = constant(table, sizeof table);
        s.b_type = INTONLY_S16;
        s.b_count = 300;
        s.offset = a.type == INTONLY_S8 ? -128 : 0;
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

/* An image in the arena, its margin filled, and what reads windows of it. */
static void add_image(void) {
    const int64_t c = one_in(2) ? between(1, 70) : 4 * between(1, 16), n = between(1, 2);
    const int64_t h = between(2, 5), w = between(2, 5), kernel = between(1, 2), out = between(1, 40), what = below(3);
    const int64_t row = (w + 2) * c, whole = (h + 2) * row, values_needed = n * h * w * c;
    value from = values[0];
    int64_t taps[4];
    int8_t weights[40 * 4 * 72];
    if (values_needed > from.count || n * whole > 9000) return;
    const int64_t buffer = arena_used, inside = ref_of(INTONLY_ARENA, buffer + row + c),
                  first = ref_of(INTONLY_ARENA, buffer);
    arena_used += (n * whole + 63) & ~INT64_C(63);

    intonly_copy copy = {.a_ref = from.ref, .a_type = INTONLY_U8, .y_ref = inside, .y_type = INTONLY_U8};
    for (int i = 0; i < INTONLY_RANK; ++i) copy.extent[i] = 1;
    const int64_t extents[4] = {n, h, w, c}, a[4] = {h * w * c, w * c, c, 1}, y[4] = {whole, row, c, 1};
    memcpy(copy.extent + 4, extents, sizeof extents);
    memcpy(copy.a_strides + 4, a, sizeof a);
    memcpy(copy.y_strides + 4, y, sizeof y);
    PUSH(copy, copy);

    uint8_t pattern[70];
    for (int i = 0; i < 70; ++i) pattern[i] = (uint8_t)(c % 2 ? 7 : i);
    intonly_halo halo = {.x_ref = inside,
                         .x_type = INTONLY_U8,
                         .x_n = whole,
                         .x_h = row,
                         .x_w = c,
                         .n = n,
                         .h = h,
                         .w = w,
                         .pixel_bytes = c,
                         .top = 1,
                         .left = 1,
                         .bottom = 1,
                         .right = 1};
    halo.pattern = constant(pattern, c);
    PUSH(halo, halo);

    for (int64_t t = 0; t < kernel * kernel; ++t) taps[t] = (t >> (kernel - 1)) * row + (t & (kernel - 1)) * c;
    for (size_t i = 0; i < sizeof weights; ++i) weights[i] = (int8_t)between(-127, 127);
    const law l = some_law(one_in(4) ? below(2) : INTONLY_FORM_NARROW);
    const int64_t oh = h + 3 - kernel, ow = w + 3 - kernel, oc = what == 0 ? out : c;
    int32_t bias[70] = {0};
    for (int64_t i = 0; i < oc; ++i) bias[i] = (int32_t)between(-5000, 5000);
    if (oc > 64) return;
    intonly_weights packing = {.channels = oc,
                               .taps = kernel * kernel,
                               .depth = what == 0 ? c : 1,
                               .w = weights,
                               .bias = bias,
                               .tap_bytes = what == 0 ? (c + 3) & ~INT64_C(3) : 1,
                               .form = l.form,
                               .multiplier = l.form ? l.multiplier : NULL,
                               .shift = l.form ? l.shift : NULL,
                               .fraction_bits = l.fraction_bits,
                               .acc_limit = 5000 + 128 * 255 * 4 * 72};
    const int joins = what < 2 && l.form == INTONLY_FORM_NARROW && one_in(2) && oc * oh * ow * n <= values[0].count;
    if (joins) {
        packing.residual_multiplier = l.residual_multiplier;
        packing.residual_shift = l.residual_shift;
    }
    static uint8_t packed[1 << 16];
    size_t bytes = 0;
    if (what < 2) {
        bytes = what == 0 ? kernels->gemm_size(&packing) : kernels->depthwise_size(&packing);
        REQUIRE(bytes > 0 && bytes <= sizeof packed && bytes % 64 == 0);
        (what == 0 ? kernels->gemm_pack : kernels->depthwise_pack)(&packing, packed);
    }
    const int64_t y_type = what == 2 && l.form == INTONLY_FORM_ACC ? INTONLY_S32 : l.y_type;
    const int64_t size = intonly_bytes_of(y_type);
#define SHARED(step)                                                                                                   \
    do {                                                                                                               \
        (step).x_ref = first, (step).x_type = INTONLY_U8, (step).x_n = whole, (step).x_h = row, (step).x_w = c;        \
        (step).y_type = y_type, (step).y_ref = result(y_type, n * oh * ow * oc);                                       \
        (step).y_n = oh * ow * oc * size, (step).y_h = ow * oc * size, (step).y_w = oc * size;                         \
        (step).r_ref = joins ? values[0].ref : -1, (step).r_type = INTONLY_U8;                                         \
        (step).r_n = oh * ow * oc, (step).r_h = ow * oc, (step).r_w = oc;                                              \
        (step).n = n, (step).oh = oh, (step).ow = ow, (step).taps = kernel * kernel;                                   \
        (step).tap_offsets = constant(taps, sizeof taps);                                                              \
        (step).packed = what < 2 ? constant(packed, (int64_t)bytes) : -1, (step).packed_bytes = (int64_t)bytes;        \
        (step).residual_zero = between(0, 255);                                                                        \
    } while (0)
    if (what == 0) {
        intonly_gemm s = {.oc = oc, .tap_bytes = packing.tap_bytes, .channels_first = below(2)};
        SHARED(s);
        SET_LIMITS(s, l);
        PUSH(s, gemm);
    } else {
        intonly_window s = {
            .op = what == 1 ? INTONLY_SUM_PRODUCTS : between(INTONLY_SUM, INTONLY_MAX), .c = c, .bias = -1};
        SHARED(s);
        if (what == 1) {
            SET_LIMITS(s, l);
            NO_CONSTANTS(s);
        } else {
            SET_CONSTANTS(s, l);
            if (one_in(2)) s.bias = constant(bias, sizeof bias);
            s.constant_c = one_in(2);
        }
        PUSH(s, window);
    }
}

/* Make the program of a seed for a table of kernels: the same steps and numbers for all, packed as each wants it. */
static void make_program(uint64_t seed, const intonly_kernels *table) {
    state = seed * 2 + 1;
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
        switch (below(6)) {
        case 0: add_copy(); break;
        case 1: add_map(); break;
        case 2: add_contract(); break;
        case 3: add_gather(); break;
        default: add_image(); break;
        }
    }
}

static intonly_status check_program(size_t count, intonly_fault *fault) {
    const intonly_spaces spaces = {space_bytes, SPACES, OUTPUT, bases[INTONLY_CONSTANTS]};
    return intonly_program_check(words, count, kernels, &spaces, fault);
}

static intonly_pool *pools[4]; /* by number of threads */
static uint8_t saved[1 << 17]; /* the arena and the outputs before a run */

/* Run a program that passed, return a digest of what it wrote, and undo that. Nothing may be written beside. */
static uint64_t run_program(unsigned threads) {
    uint64_t sum = 0;
    size_t at = 0;
    for (int s = INTONLY_ARENA; s < SPACES; s = s == INTONLY_ARENA ? OUTPUT : s + 1) {
        memcpy(saved + at, region[s], region_bytes[s]);
        at += region_bytes[s];
    }
    REQUIRE(at <= sizeof saved);
    protect(1);
    intonly_program_run(words, word_count, kernels, bases, pools[threads], NULL);
    protect(0);
    at = 0;
    for (int s = INTONLY_ARENA; s < SPACES; s = s == INTONLY_ARENA ? OUTPUT : s + 1) {
        const size_t before = (size_t)(bases[s] - region[s]), behind = before + space_bytes[s];
        REQUIRE(memcmp(region[s], saved + at, before) == 0);
        REQUIRE(memcmp(region[s] + behind, saved + at + behind, region_bytes[s] - behind) == 0);
        sum = digest(sum, bases[s], space_bytes[s]);
        memcpy(region[s], saved + at, region_bytes[s]);
        at += region_bytes[s];
    }
    return sum;
}

static const intonly_kernels *tables[INTONLY_ISAS];
static int table_count;

static unsigned long steps_made[INTONLY_KINDS];

/* A sound program: it passes, and all tables and teams agree. */
static void test_sound(uint64_t seed) {
    uint64_t expected = 0;
    place_spaces(seed % 2 == 0);
    for (int t = 0; t < table_count; ++t) {
        make_program(seed, tables[t]);
        intonly_fault fault = {0, NULL};
        if (check_program(word_count, &fault) != INTONLY_OK) {
            fprintf(stderr, "seed %lu, table %s, step %zu: %s\n", (unsigned long)seed, tables[t]->isa, fault.step,
                    fault.what);
            exit(1);
        }
        for (unsigned threads = 1; threads <= 3; ++threads) {
            const uint64_t got = run_program(threads);
            if (t == 0 && threads == 1) expected = got;
            if (got != expected) {
                fprintf(stderr, "seed %lu, table %s, %u threads: other bytes\n", (unsigned long)seed, tables[t]->isa,
                        threads);
                exit(1);
            }
        }
    }
    for (size_t at = 0; at < word_count; at += (size_t)words[at + 1]) ++steps_made[words[at]];
}

/* Whether all steps of a program that passed are small enough for a test to run them. */
static int is_small(void) {
    for (size_t at = 0; at < word_count; at += (size_t)words[at + 1]) {
        const void *step = words + at;
        const int64_t limit = 1 << 19;
        int64_t work = 1;
#define TIMES(factor)                                                                                                  \
    do {                                                                                                               \
        if ((factor) > limit || (work *= (factor)) > limit) return 0;                                                  \
    } while (0)
        const int64_t *extent = NULL;
        switch (words[at]) {
        case INTONLY_KIND_gemm: {
            const intonly_gemm *s = step;
            const int64_t all[] = {s->n, s->oh, s->ow, s->oc, s->taps, s->tap_bytes};
            for (int i = 0; i < 6; ++i) TIMES(all[i]);
            break;
        }
        case INTONLY_KIND_window: {
            const intonly_window *s = step;
            const int64_t all[] = {s->n, s->oh, s->ow, s->c, s->taps};
            for (int i = 0; i < 5; ++i) TIMES(all[i]);
            break;
        }
        case INTONLY_KIND_contract:
            extent = ((const intonly_contract *)step)->extent;
            for (int i = 0; i < INTONLY_REDUCED; ++i) TIMES(((const intonly_contract *)step)->reduced[i]);
            break;
        case INTONLY_KIND_map: extent = ((const intonly_map *)step)->extent; break;
        case INTONLY_KIND_copy: extent = ((const intonly_copy *)step)->extent; break;
        case INTONLY_KIND_gather: {
            const intonly_gather *s = step;
            TIMES(s->outer);
            TIMES(s->count);
            TIMES(s->row_bytes);
            break;
        }
        default: {
            const intonly_halo *s = step;
            TIMES(s->n);
            TIMES(s->top + s->h + s->bottom);
            TIMES(s->left + s->w + s->right);
            TIMES(s->pixel_bytes);
        }
        }
        for (int i = 0; extent != NULL && i < INTONLY_RANK; ++i) TIMES(extent[i]);
#undef TIMES
    }
    return 1;
}

static int64_t odd_word(void) {
    static const int64_t odd[] = {0,
                                  1,
                                  -1,
                                  2,
                                  3,
                                  4,
                                  5,
                                  6,
                                  7,
                                  8,
                                  63,
                                  64,
                                  65,
                                  127,
                                  128,
                                  255,
                                  256,
                                  4095,
                                  4096,
                                  4097,
                                  -2,
                                  -64,
                                  INT32_MAX,
                                  INT64_C(1) << 31,
                                  -(INT64_C(1) << 31),
                                  INT64_C(1) << 32,
                                  INT64_C(1) << 40,
                                  INT64_C(1) << 48,
                                  (INT64_C(1) << 48) - 1,
                                  INT64_C(1) << 49,
                                  INT64_C(5) << 48,
                                  INT64_C(6) << 48,
                                  INT64_MAX,
                                  INT64_MIN,
                                  INT64_MIN + 1};
    switch (below(4)) {
    case 0: return (int64_t)random64();
    case 1: return ref_of(below(SPACES + 1), below(1 << 16));
    default: return odd[below(sizeof odd / sizeof *odd)];
    }
}

static void change_word(void) {
    int64_t *word = words + below((int64_t)word_count);
    switch (below(6)) {
    case 0: *word = (int64_t)((uint64_t)*word + (uint64_t)between(-9, 9)); break;
    case 1: *word = (int64_t)((uint64_t)*word ^ (UINT64_C(1) << below(64))); break;
    case 2: *word = words[below((int64_t)word_count)]; break;
    case 3: *word = (int64_t)((uint64_t)*word * 2); break;
    case 4: *word = below(600); break;
    default: *word = odd_word(); break;
    }
}

typedef struct tally {
    unsigned long tried, passed, ran;
} tally;

static void try_program(tally *t) {
    intonly_fault fault = {0, NULL};
    ++t->tried;
    const intonly_status status = check_program(word_count, &fault);
    REQUIRE((status == INTONLY_OK) == (fault.what == NULL));
    if (status != INTONLY_OK) return;
    ++t->passed;
    if (!is_small()) return;
    ++t->ran;
    for (unsigned threads = 1; threads <= 3; threads += 2) (void)run_program(threads);
}

/* A program with some words and constants changed. */
static void test_changed(uint64_t seed, tally *t) {
    place_spaces(seed % 2 == 0);
    make_program(seed, tables[seed % (uint64_t)table_count]);
    if (word_count == 0) return;
    for (int round = 0; round < 12; ++round) {
        static int64_t kept[MOST_WORDS];
        const size_t count = word_count;
        memcpy(kept, words, count * sizeof *words);
        const int64_t place = below(constants_used > 0 ? constants_used : 1);
        const uint8_t byte = bases[INTONLY_CONSTANTS][place];
        if (one_in(3)) bases[INTONLY_CONSTANTS][place] = (uint8_t)random64();
        if (!one_in(6))
            for (int64_t changes = between(1, 3); changes > 0; --changes) change_word();
        if (one_in(20)) word_count -= (size_t)below((int64_t)word_count);
        try_program(t);
        bases[INTONLY_CONSTANTS][place] = byte;
        word_count = count;
        memcpy(words, kept, count * sizeof *words);
    }
}

/* One step of the right length whose words are anything. */
static void test_random(uint64_t seed, tally *t) {
    static const size_t lengths[INTONLY_KINDS] = {
#define LENGTH(name) sizeof(intonly_##name) / sizeof(int64_t),
        INTONLY_STEPS(LENGTH)
#undef LENGTH
    };
    place_spaces(seed % 2 == 0);
    state = seed * 2 + 1;
    kernels = tables[seed % (uint64_t)table_count];
    const int64_t kind = below(INTONLY_KINDS);
    word_count = lengths[kind];
    for (int round = 0; round < 20; ++round) {
        for (size_t i = 3; i < word_count; ++i)
            words[i] = one_in(2)   ? 1
                       : one_in(2) ? below(3) - 1
                       : one_in(2) ? ref_of(below(SPACES), 64 * below(20))
                                   : odd_word();
        words[0] = kind;
        words[1] = (int64_t)word_count;
        words[2] = between(1, 5);
        for (size_t i = 0; i < 4096; ++i) bases[INTONLY_CONSTANTS][i] = (uint8_t)(one_in(8) ? random64() : 1);
        try_program(t);
    }
}

int main(int count, char **arguments) {
    const uint64_t programs = count > 1 ? strtoull(arguments[1], NULL, 10) : 1000;
    const uint64_t first = count > 2 ? strtoull(arguments[2], NULL, 10) : 0;
    static uint8_t memory[4][16384] __attribute__((aligned(64)));
    tally changed = {0, 0, 0}, random = {0, 0, 0};
    map_spaces();
    for (unsigned threads = 2; threads <= 3; ++threads) {
        REQUIRE(intonly_pool_bytes(threads) <= sizeof memory[0]);
        REQUIRE(intonly_pool_start(memory[threads], threads, &pools[threads]) == INTONLY_OK);
    }
    for (int isa = 0; isa < INTONLY_ISAS; ++isa)
        if (intonly_kernels_of((intonly_isa)isa) != NULL) tables[table_count++] = intonly_kernels_of((intonly_isa)isa);
    for (uint64_t seed = first; seed < first + programs; ++seed) test_sound(seed);
    for (int kind = 0; kind < INTONLY_KINDS; ++kind) REQUIRE(programs < 300 || steps_made[kind] > programs / 20);
    for (uint64_t seed = first; seed < first + programs; ++seed) test_changed(seed, &changed);
    for (uint64_t seed = first; seed < first + programs; ++seed) test_random(seed, &random);
    for (unsigned threads = 2; threads <= 3; ++threads) intonly_pool_stop(pools[threads]);
    printf("%d tables, %lu sound programs; changed: %lu tried, %lu passed, %lu ran; random: %lu tried, %lu passed, %lu "
           "ran\n",
           table_count, (unsigned long)programs, changed.tried, changed.passed, changed.ran, random.tried,
           random.passed, random.ran);
    return 0;
}
