/* SPDX-License-Identifier: Apache-2.0
 *
 * The NEON tables against the plain C kernels compiled for the same machine: equal weights, equal steps, equal bytes.
 * What the general test of kernels does not reach is here: sums deeper than the buffer of a tile, weights and codes of
 * -128 alone, windows of hundreds of taps, residuals in place, and buffers that end at a page that may not be touched.
 * The epilogue is also compared with arith.h by itself. Prints what it compared, by name.
 */
#define _DEFAULT_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "arith.h"
#include "exec/program.h"
#include "intonly.h"
#include "kernels/arm_neon_epilogue.h"
#include "kernels/kernels.h"

static uint64_t state = UINT64_C(0x9E3779B97F4A7C15);

static uint64_t random64(void) {
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return state * UINT64_C(2685821657736338717) >> 8;
}

static int64_t between(int64_t lo, int64_t hi) { return lo + (int64_t)(random64() % (uint64_t)(hi - lo + 1)); }
static int one_in(int64_t n) { return between(1, n) == 1; }
static int64_t clamp(int64_t x, int64_t lo, int64_t hi) { return x < lo ? lo : x > hi ? hi : x; }

static void require(int holds, const char *what, int line) {
    if (holds) return;
    (void)fprintf(stderr, "neon_test.c:%d: %s\n", line, what);
    exit(1);
}
#define REQUIRE(condition) require(condition, #condition, __LINE__)

/* Memory of one step: each piece ends at a page that faults. All is released at once. */
static struct {
    uint8_t *map;
    size_t bytes;
} pieces[16];
static int count_of_pieces;

static uint8_t *piece(int64_t bytes) {
    const size_t page = (size_t)sysconf(_SC_PAGESIZE), inside = ((size_t)bytes + page - 1) / page * page;
    uint8_t *map = mmap(NULL, inside + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    REQUIRE(map != MAP_FAILED && mprotect(map + inside, page, PROT_NONE) == 0 && count_of_pieces < 16);
    pieces[count_of_pieces].map = map;
    pieces[count_of_pieces++].bytes = inside + page;
    uint8_t *data = map + inside - bytes;
    for (int64_t i = 0; i < bytes; ++i) data[i] = (uint8_t)random64();
    return data;
}

static void release_all(void) {
    while (count_of_pieces > 0) {
        --count_of_pieces;
        REQUIRE(munmap(pieces[count_of_pieces].map, pieces[count_of_pieces].bytes) == 0);
    }
}

/* Constants are aligned, and followed by the slack that kernels may read. */
static void *constants(int64_t bytes) { return piece((bytes + 63) / 64 * 64 + INTONLY_SLACK); }

/* The spaces of a step. */
enum { PACKED, OFFSETS, X, R, Y, BIAS, MULTIPLIER, SHIFT, SPACES };

static int64_t ref(int64_t space) { return space << INTONLY_SPACE_SHIFT; }

/* What all steps here have: constants for each channel, and the scalars of the epilogue. */
typedef struct law {
    int64_t form, joins, x_type, y_type, r_type, zero_point, residual_zero, lo, hi, fraction_bits;
    int32_t *bias, *multiplier, *residual_multiplier;
    int8_t *shift, *residual_shift;
} law;

static int32_t random_multiplier(int64_t low) {
    const int64_t m = one_in(16) ? 0 : one_in(4) ? low : one_in(4) ? 2 * low - 1 : between(low, 2 * low - 1);
    return (int32_t)(one_in(3) ? -m : m);
}

/* Return the largest sum of products of a channel. */
static int64_t reach_of(const int8_t *w, int64_t codes, int64_t x_type) {
    int64_t reach = 0;
    for (int64_t k = 0; k < codes; ++k) reach += (x_type == INTONLY_S16 ? 32768 : 255) * llabs(w[k]);
    return reach;
}

/* w: weights [channels][codes], or null and `codes` is about the size of a sum. */
static law random_law(int64_t channels, int64_t codes, const int8_t *w, int64_t x_type) {
    static const int64_t types[] = {INTONLY_U8, INTONLY_S8, INTONLY_S16, INTONLY_U16, INTONLY_S32};
    law l = {.form = one_in(2) ? INTONLY_FORM_NARROW : between(0, 1), .x_type = x_type, .r_type = between(0, 1)};
    const int wide = l.form == INTONLY_FORM_WIDE, near = !one_in(8), small = one_in(4);
    l.joins = l.form == INTONLY_FORM_NARROW && one_in(2);
    l.y_type = l.form == INTONLY_FORM_ACC ? INTONLY_S32 : types[between(0, wide ? 4 : 1)];
    const int64_t bits = 8 * intonly_bytes_of(l.y_type), is_signed = !(l.y_type & 1);
    l.lo = is_signed ? -(INT64_C(1) << (bits - 1)) : 0;
    l.hi = (INT64_C(1) << (bits - is_signed)) - 1;
    l.zero_point = one_in(2) ? 0 : between(l.lo, l.hi);
    if (one_in(3)) l.lo = between(l.lo, l.zero_point);
    if (one_in(3)) l.hi = between(l.zero_point, l.hi);
    l.fraction_bits = between(4, 7);
    l.residual_zero = one_in(2) ? 0 : l.r_type == INTONLY_S8 ? between(-128, 127) : between(0, 255);
    l.bias = constants(4 * channels);
    l.multiplier = constants(4 * channels);
    l.residual_multiplier = constants(4 * channels);
    l.shift = constants(channels);
    l.residual_shift = constants(channels);
    const int64_t lo = wide ? 1 : -15, hi = wide ? 62 : 30;
    for (int64_t c = 0; c < channels; ++c) {
        const int64_t typical = w == NULL ? codes : reach_of(w + c * codes, codes, x_type) / 8;
        const int64_t shift = intonly_bit_length((uint64_t)typical) - bits + between(0, small ? 9 : 2);
        const int64_t p = wide ? 31 + shift : shift - l.fraction_bits;
        l.multiplier[c] = random_multiplier(wide ? 1 << 30 : 1 << 14);
        l.residual_multiplier[c] = random_multiplier(1 << 14);
        l.shift[c] = (int8_t)(near ? clamp(p, lo, hi) : between(lo, hi));
        l.residual_shift[c] = (int8_t)(near ? between(-7, -4) : between(-15, 30));
    }
    return l;
}

#define SET_LAW(s, l)                                                                                                  \
    ((s).form = (l).form, (s).x_type = (l).x_type, (s).y_type = (l).y_type, (s).r_type = (l).r_type,                   \
     (s).zero_point = (l).zero_point, (s).residual_zero = (l).residual_zero, (s).lo = (l).lo, (s).hi = (l).hi,         \
     (s).fraction_bits = (l).fraction_bits)

/* Place x, y and r, with gaps between pixels, lines and images; the residual is often y itself. */
#define PLACE_IMAGES(s, channels, x_bytes, reach)                                                                      \
    const int64_t size = intonly_bytes_of((s).y_type);                                                                 \
    const int64_t item = intonly_bytes_of((s).x_type);                                                                 \
    (s).x_w = between(0, (x_bytes) / item + 9) * item, (s).x_h = (s).ow * (s).x_w + between(0, 9) * item;              \
    (s).x_n = (s).oh * (s).x_h + between(0, 9) * item;                                                                 \
    (s).y_w = ((channels) + (one_in(2) ? 0 : between(0, 20))) * size;                                                  \
    (s).y_h = (s).ow * (s).y_w + between(0, 3) * size, (s).y_n = (s).oh * (s).y_h + between(0, 3) * size;              \
    (s).r_w = (s).y_w, (s).r_h = (s).y_h, (s).r_n = (s).y_n;                                                           \
    const int64_t y_last = ((s).n - 1) * (s).y_n + ((s).oh - 1) * (s).y_h + ((s).ow - 1) * (s).y_w;                    \
    const int64_t x_last = ((s).n - 1) * (s).x_n + ((s).oh - 1) * (s).x_h + ((s).ow - 1) * (s).x_w;                    \
    const int64_t y_bytes = y_last + (channels)*size;                                                                  \
    bases[X] = piece(x_last + (reach) + (x_bytes)), bases[Y] = piece(y_bytes), bases[R] = piece(y_bytes);              \
    random_codes(bases[X], x_last + (reach) + (x_bytes), (s).x_type);                                                  \
    (s).x_ref = ref(X), (s).y_ref = ref(Y), (s).tap_offsets = ref(OFFSETS);                                            \
    (s).r_ref = !l.joins ? INTONLY_ABSENT : size == 1 && one_in(2) ? ref(Y) : ref(R)

/* Offsets of taps in any order, and how far the furthest is. */
static int64_t random_offsets(uint8_t **bases, int64_t taps, int64_t item) {
    int64_t furthest = 0, *offsets = constants(8 * taps);
    for (int64_t t = 0; t < taps; ++t) {
        offsets[t] = between(0, 500) * item;
        if (offsets[t] > furthest) furthest = offsets[t];
    }
    bases[OFFSETS] = (uint8_t *)offsets;
    return furthest;
}

/* Any codes, or those at the ends alone. */
static void random_codes(uint8_t *x, int64_t bytes, int64_t type) {
    const uint8_t top = type == INTONLY_U8 ? 0 : 0x80; /* the sign in the last byte of a code */
    const int64_t kind = between(0, 5), item = intonly_bytes_of(type);
    for (int64_t i = 0; i < bytes && kind < 3; i += item) {
        const int low = kind == 0 || (kind == 2 && one_in(2));
        memset(x + i, low ? 0 : 0xFF, (size_t)item);
        x[i + item - 1] ^= top;
    }
}

/* Any weights, or -128 and 127 alone: with the codes at the ends they make the largest products there are. Often out of
 * few levels, which are stored in 4 or 2 bits. limit: of their magnitudes, 128 or less. */
static int8_t *random_weights(int64_t count, int64_t limit) {
    int8_t *w = constants(count), book[16];
    const int64_t kind = between(limit < 128 ? 2 : 0, 5), levels = one_in(2) ? 4 : 16;
    const int64_t most = clamp(one_in(2) ? 127 : between(1, 40), 1, limit);
    for (int i = 0; i < 16; ++i) book[i] = (int8_t)between(-most - (most == 127), most);
    for (int64_t i = 0; i < count; ++i)
        w[i] = (int8_t)(kind == 0   ? -128
                        : kind == 1 ? (one_in(2) ? -128 : 127)
                        : kind < 4  ? book[between(0, levels - 1)]
                                    : between(-most - (most == 127), most));
    return w;
}

/* Draw biases that leave room for the sums of a channel, at times all the room there is. Returns the limit. */
static int64_t random_bias(const law *l, const int8_t *w, int64_t channels, int64_t codes) {
    int64_t limit = 0;
    for (int64_t c = 0; c < channels; ++c) {
        const int64_t reach = reach_of(w + c * codes, codes, l->x_type);
        const int rounds = l->form == INTONLY_FORM_NARROW && l->shift[c] > 0;
        const int64_t room = INT32_MAX - reach - (rounds ? INT64_C(1) << (l->shift[c] - 1) : 0);
        REQUIRE(room >= 0);
        const int64_t size = one_in(16) ? room : between(0, reach / 8 < room ? reach / 8 : room);
        l->bias[c] = (int32_t)(one_in(2) ? size : -size);
        if (reach + size > limit) limit = reach + size;
    }
    return limit;
}

static intonly_weights weights_of(const law *l, const int8_t *w, int64_t channels, int64_t taps, int64_t depth,
                                  int64_t tap_bytes) {
    intonly_weights all = {.channels = channels, .taps = taps, .depth = depth, .tap_bytes = tap_bytes, .w = w,
                           .bias = l->bias, .form = l->form, .fraction_bits = l->fraction_bits,
                           .x_signed = l->x_type == INTONLY_S8, .x_words = l->x_type == INTONLY_S16};
    all.acc_limit = random_bias(l, w, channels, taps * depth);
    if (l->form != INTONLY_FORM_ACC) all.multiplier = l->multiplier, all.shift = l->shift;
    if (l->joins) all.residual_multiplier = l->residual_multiplier, all.residual_shift = l->residual_shift;
    return all;
}

static unsigned long bytes_compared, seen[256]; /* how often each byte came out */
static unsigned long dense_forms;               /* packed forms that are smaller than a byte for each weight */
static unsigned long words_compared;            /* steps whose codes have 16 bits */

/* Run both kernels, in 1 to 3 parts in any order, and compare all that lies in y. */
static void compare(intonly_kernel kernel, intonly_kernel plain, const void *step, uint8_t **bases, uint8_t *packed,
                    uint8_t *plain_packed, int64_t bytes) {
    uint8_t *before = malloc((size_t)bytes), *want = malloc((size_t)bytes);
    REQUIRE(before != NULL && want != NULL);
    memcpy(before, bases[Y], (size_t)bytes);
    bases[PACKED] = plain_packed;
    plain(step, bases, 0, 1);
    memcpy(want, bases[Y], (size_t)bytes);
    bases[PACKED] = packed;
    for (unsigned parts = 1; parts <= 3; ++parts) {
        memcpy(bases[Y], before, (size_t)bytes);
        const unsigned turn = (unsigned)between(0, parts - 1);
        for (unsigned i = 0; i < parts; ++i) kernel(step, bases, (i + turn) % parts, parts);
        REQUIRE(memcmp(bases[Y], want, (size_t)bytes) == 0);
    }
    bytes_compared += (unsigned long)bytes;
    for (int64_t i = 0; i < bytes; ++i) ++seen[want[i]];
    free(before);
    free(want);
}

static void check_gemm(const intonly_kernels *table, const intonly_kernels *plain) {
    uint8_t *bases[SPACES] = {NULL};
    const int deep = one_in(5), linear = one_in(3);
    intonly_gemm s = {.kind = INTONLY_KIND_gemm, .n = linear ? 1 : between(1, 2), .oh = linear ? 1 : between(1, 4)};
    s.ow = linear && one_in(2) ? 1 : between(1, deep ? 10 : 30);
    s.oc = between(1, deep ? 12 : 90);
    s.taps = linear ? 1 : between(1, 9);
    s.tap_bytes = 4 * between(1, !deep ? 20 : linear ? 3000 : 400);
    s.channels_first = between(0, 1);
    const int words = one_in(3); /* their sums have room for 60,000 times the largest code */
    const int64_t depth = words ? s.tap_bytes / 2 - between(0, 1) : s.tap_bytes - between(0, one_in(2) ? 0 : 3);
    const int64_t codes = s.taps * depth, limit = words ? clamp(60000 / codes, 1, 128) : 128;
    const int8_t *w = random_weights(s.oc * codes, limit);
    const law l = random_law(s.oc, codes, w, words ? INTONLY_S16 : between(0, 1));
    const intonly_weights weights = weights_of(&l, w, s.oc, s.taps, depth, s.tap_bytes);
    const int64_t reach = random_offsets(bases, s.taps, 1 + words);
    SET_LAW(s, l);
    PLACE_IMAGES(s, s.oc, s.tap_bytes, reach);
    s.packed_bytes = (int64_t)table->gemm_size(&weights);
    uint8_t *packed = piece(s.packed_bytes), *plain_packed = piece((int64_t)plain->gemm_size(&weights));
    table->gemm_pack(&weights, packed);
    plain->gemm_pack(&weights, plain_packed);
    dense_forms += s.packed_bytes < s.oc * codes;
    words_compared += (unsigned long)words;
    REQUIRE(table->gemm_accepts(&s, packed));
    compare(table->run[INTONLY_KIND_gemm], plain->run[INTONLY_KIND_gemm], &s, bases, packed, plain_packed, y_bytes);
    s.packed_bytes += 64;
    REQUIRE(!table->gemm_accepts(&s, packed));
}

static void check_depthwise(const intonly_kernels *table, const intonly_kernels *plain) {
    uint8_t *bases[SPACES] = {NULL};
    intonly_window s = {.kind = INTONLY_KIND_window, .n = between(1, 2), .oh = between(1, 4), .ow = between(1, 9)};
    s.c = between(1, 90);
    s.taps = between(1, one_in(4) ? 50 : 9);
    const int8_t *w = random_weights(s.c * s.taps, 128);
    const law l = random_law(s.c, s.taps, w, between(0, 1));
    const intonly_weights weights = weights_of(&l, w, s.c, s.taps, 1, 1);
    const int64_t reach = random_offsets(bases, s.taps, 1);
    SET_LAW(s, l);
    PLACE_IMAGES(s, s.c, s.c, reach);
    s.multiplier = s.shift = s.residual_multiplier = s.residual_shift = s.x_zero = s.bias = INTONLY_ABSENT;
    s.packed_bytes = (int64_t)table->depthwise_size(&weights);
    uint8_t *packed = piece(s.packed_bytes), *plain_packed = piece((int64_t)plain->depthwise_size(&weights));
    table->depthwise_pack(&weights, packed);
    plain->depthwise_pack(&weights, plain_packed);
    REQUIRE(table->depthwise_accepts(&s, packed));
    compare(table->run[INTONLY_KIND_window], plain->run[INTONLY_KIND_window], &s, bases, packed, plain_packed, y_bytes);
    packed[0] = 3;
    REQUIRE(!table->depthwise_accepts(&s, packed));
}

/* Sums and maxima: of up to 700 taps, more than 16 bits hold. */
static void check_pool(const intonly_kernels *table, const intonly_kernels *plain) {
    uint8_t *bases[SPACES] = {NULL};
    intonly_window s = {.kind = INTONLY_KIND_window, .n = between(1, 2), .oh = between(1, 4), .ow = between(1, 9)};
    s.op = one_in(2) ? INTONLY_SUM : INTONLY_MAX;
    s.c = between(1, 90);
    s.taps = between(1, one_in(3) ? 700 : 50);
    const int64_t by_channel = between(0, 1), by_pixel = between(0, 1);
    law l = random_law(s.c + s.oh * s.ow, s.op == INTONLY_SUM ? s.taps * 128 : 128, NULL, between(0, 1));
    l.joins = 0;
    if (s.op == INTONLY_MAX && one_in(2)) l.form = INTONLY_FORM_ACC, l.y_type = l.x_type;
    for (int64_t c = 0; c < s.c; ++c) l.bias[c] = (int32_t)between(-1000, 1000);
    const int64_t reach = random_offsets(bases, s.taps, 1);
    SET_LAW(s, l);
    PLACE_IMAGES(s, s.c, s.c, reach);
    bases[BIAS] = (uint8_t *)l.bias;
    bases[MULTIPLIER] = (uint8_t *)l.multiplier;
    bases[SHIFT] = (uint8_t *)l.shift;
    s.bias = s.op == INTONLY_SUM && one_in(2) ? ref(BIAS) : INTONLY_ABSENT;
    s.packed = s.residual_multiplier = s.residual_shift = s.x_zero = INTONLY_ABSENT;
    s.multiplier = l.form == INTONLY_FORM_ACC ? INTONLY_ABSENT : ref(MULTIPLIER);
    s.shift = l.form == INTONLY_FORM_ACC ? INTONLY_ABSENT : ref(SHIFT);
    s.constant_c = by_channel, s.constant_w = by_pixel, s.constant_h = by_pixel * s.ow;
    compare(table->run[INTONLY_KIND_window], plain->run[INTONLY_KIND_window], &s, bases, NULL, NULL, y_bytes);
}

/* An accumulator: any of 32 bits, an end, or near a tie of the shift. */
static int32_t random_acc(int shift) {
    static const int32_t ends[] = {INT32_MIN, INT32_MIN + 1, INT32_MAX, INT32_MAX - 1, 0,     -1,
                                   1,         32767,         32768,     -32768,        -32769};
    if (one_in(4)) return ends[between(0, 10)];
    const int64_t acc = between(INT32_MIN, INT32_MAX) / (INT64_C(1) << between(0, 31));
    const int64_t unit = INT64_C(1) << (shift > 0 ? shift - 1 : 0);
    return (int32_t)(one_in(2) ? acc : clamp((acc / unit) * unit + between(-1, 1), INT32_MIN, INT32_MAX));
}

/* Eight accumulators through the vectors, and one by one through arith.h; with shifts of the whole range. */
static void check_epilogue(void) {
    int32_t acc[8], m[8], m_r[8];
    int8_t p[8], p_r[8];
    uint8_t residual[8], codes[8];
    neon_epilogue e = {.law = {.form = INTONLY_FORM_NARROW, .multiplier = m, .shift = p, .residual_shift = p_r}};
    const int64_t y_type = between(0, 1), r_type = between(0, 1), joins = between(0, 1);
    e.law.residual_multiplier = joins ? m_r : NULL;
    e.law.lo = y_type == INTONLY_S8 ? -128 : 0;
    e.law.hi = e.law.lo + 255;
    e.law.zero_point = (int32_t)between(e.law.lo, e.law.hi);
    e.law.residual_zero = (int32_t)(r_type == INTONLY_S8 ? between(-128, 127) : between(0, 255));
    e.law.fraction_bits = (int)between(4, 7);
    for (int i = 0; i < 8; ++i) {
        p[i] = (int8_t)between(-15, 30);
        p_r[i] = (int8_t)between(-15, 30);
        m[i] = random_multiplier(1 << 14);
        m_r[i] = random_multiplier(1 << 14);
        acc[i] = random_acc(p[i]);
        residual[i] = (uint8_t)random64();
    }
    neon_prepare(&e, y_type, r_type, 8);
    REQUIRE(e.in_registers);
    const neon_channels k = neon_channels_at(&e, 0, 1);
    neon_finish(&e, &k, vld1q_s32(acc), vld1q_s32(acc + 4), residual, codes, 8);
    for (int i = 0; i < 8; ++i) {
        const int32_t r = (r_type == INTONLY_S8 ? (int8_t)residual[i] : residual[i]) - e.law.residual_zero;
        int32_t sum = intonly_narrow_operand(acc[i], m[i], p[i]);
        if (joins) sum += intonly_narrow_operand(r, m_r[i], p_r[i]);
        const int32_t y = intonly_narrow_clamp(sum, e.law.fraction_bits, e.law.zero_point, e.law.lo, e.law.hi);
        REQUIRE(codes[i] == (uint8_t)y);
    }
}

/* The same for the wide form. */
static void check_wide(void) {
    int32_t acc[8], m[8], y[8];
    int8_t s[8];
    neon_epilogue e = {.law = {.form = INTONLY_FORM_WIDE, .multiplier = m, .shift = s}};
    e.law.lo = INT32_MIN;
    e.law.hi = INT32_MAX;
    e.law.zero_point = (int32_t)(one_in(2) ? 0 : between(INT32_MIN, INT32_MAX));
    for (int i = 0; i < 8; ++i) {
        s[i] = (int8_t)between(32, 62);
        m[i] = random_multiplier(1 << 30);
        acc[i] = random_acc(s[i] - 31);
    }
    neon_prepare(&e, INTONLY_S32, INTONLY_U8, 8);
    REQUIRE(e.is_wide && !e.in_registers);
    neon_finish_memory(&e, acc, 0, 1, NULL, (uint8_t *)y, 8);
    for (int i = 0; i < 8; ++i) {
        const uint64_t product = intonly_product(acc[i], 0, m[i]);
        REQUIRE(y[i] == intonly_round_clamp(product, (uint64_t)s[i], e.law.zero_point, INT32_MIN, INT32_MAX));
    }
}

int main(int argc, char **argv) {
    static const struct {
        const char *name;
        void (*run)(const intonly_kernels *table, const intonly_kernels *plain);
    } checks[] = {{"gemm", check_gemm}, {"depthwise", check_depthwise}, {"pool", check_pool}};
    const long rounds = argc > 1 ? strtol(argv[1], NULL, 10) : 200;
    const intonly_kernels *plain = intonly_kernels_of(INTONLY_ISA_SCALAR);
    printf("best %s\n", intonly_isa_name((int)intonly_best_isa()));
    for (int isa = INTONLY_ISA_NEON; isa <= INTONLY_ISA_NEON_DOTPROD; ++isa) {
        const intonly_kernels *table = intonly_kernels_of((intonly_isa)isa);
        for (size_t i = 0; table != NULL && i < sizeof checks / sizeof *checks; ++i) {
            bytes_compared = dense_forms = words_compared = 0;
            memset(seen, 0, sizeof seen);
            for (long round = 0; round < rounds; ++round) {
                checks[i].run(table, plain);
                release_all();
            }
            unsigned long most = 0;
            for (int byte = 0; byte < 256; ++byte) most = seen[byte] > most ? seen[byte] : most;
            REQUIRE(bytes_compared > 0 && most < bytes_compared / 2);
            printf("%s %s %ld %lu %lu %lu\n", table->isa, checks[i].name, rounds, bytes_compared, dense_forms,
                   words_compared);
        }
    }
    for (long round = 0; round < 100 * rounds; ++round) {
        check_epilogue();
        check_wide();
    }
    printf("epilogue %ld\n", 100 * rounds);
    return 0;
}
