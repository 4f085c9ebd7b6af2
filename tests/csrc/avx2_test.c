/* SPDX-License-Identifier: Apache-2.0
 *
 * What the kernels on 256-bit vectors have and the test of all kernels is too small for: several blocks of K, many
 * panels, residuals in place, long windows, and weights at the edge of what products in 16 bits can hold. Expected
 * bytes come from the plain C kernels. The argument is the number of rounds of each test.
 *
 * Prints for each table how often each path ran, what weights were stored in, and the chains that AVX2 chose.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/gemm/x86_256.h"
#include "kernels_harness.h"

enum { MOST_CHANNELS = 300, MOST_CODES = 3000 };

static int8_t w[MOST_CHANNELS * MOST_CODES];
static int32_t bias[MOST_CHANNELS];
static law l;
static unsigned long chains[9], wide_forms, of_bits[17], of_words, wide_books, vector_finishes, joined_finishes, upper_finishes, cases;

/* Weights whose pairs add up to just 128 over `chain` groups of four, or now and then to 129. Odd rests of a pair's
 * places get what is left. */
static void edge_weights(int64_t channels, int64_t taps, int64_t depth, int64_t tap_bytes, int64_t chain) {
    memset(w, 0, (size_t)(channels * taps * depth));
    const int over = one_in(4);
    for (int64_t c = 0; c < channels; ++c) {
        int64_t left[2] = {128, 128}, at = 0;
        for (int64_t t = 0; t < taps; ++t)
            for (int64_t i = 0; i < tap_bytes; ++i, ++at) {
                int64_t *rest = &left[i >> 1 & 1];
                if (at % (4 * chain) == 0) left[0] = left[1] = 128 + (over && one_in(1000));
                if (i >= depth) continue;
                const int last = (at / 4) % chain == chain - 1 && ((i & 1) || i + 1 >= depth);
                const int64_t share = 128 / chain, most = *rest < 127 ? *rest : 127;
                const int64_t size = last ? most : below((most < share ? most : share) + 1);
                w[(c * taps + t) * depth + i] = (int8_t)(one_in(2) ? size : -size);
                *rest -= size;
            }
    }
}

static void random_weights(int64_t channels, int64_t codes) {
    const int64_t most = one_in(2) ? 127 : between(1, 127), low = one_in(2) ? -most - 1 : -most;
    const int same = one_in(8);
    for (int64_t i = 0; i < channels * codes; ++i) w[i] = (int8_t)(same ? low : between(low, most));
}

/* Weights out of a few levels, so that they are stored in 4 or 2 bits. */
static void few_weights(int64_t channels, int64_t codes) {
    const int64_t levels = 1 + below(one_in(2) ? 4 : 16), most = one_in(2) ? 7 : one_in(2) ? 16 : 128;
    int8_t book[16];
    for (int i = 0; i < 16; ++i) book[i] = (int8_t)between(-most, most < 128 ? most : 127);
    for (int64_t i = 0; i < channels * codes; ++i) w[i] = book[below(levels)];
}

/* Constants that leave something of the accumulators: most of them such as vectors finish. */
static void constants(int64_t channels, int64_t acc_limit, int joins) {
    const int64_t form = one_in(8) ? INTONLY_FORM_ACC : one_in(4) ? INTONLY_FORM_WIDE : INTONLY_FORM_NARROW;
    int bits = 0;
    while (bits < 30 && acc_limit >> bits > 0) ++bits;
    random_law(&l, form, joins && form == INTONLY_FORM_NARROW, INTONLY_U8, channels, bits - 3);
    const int small = one_in(4), plain = one_in(8);
    if (form == INTONLY_FORM_ACC || plain) return;
    for (int64_t c = 0; c < channels && form == INTONLY_FORM_WIDE; ++c) {
        const int64_t s = 31 + bits - between(4, 20);
        l.shift[c] = (int8_t)(s < 33 ? 33 : s);
    }
    if (form == INTONLY_FORM_WIDE) return;
    for (int64_t c = 0; c < channels; ++c) {
        const int64_t p = bits - between(9, 16), least = small && bits < 15 ? bits - 30 : 0;
        l.shift[c] = (int8_t)(small ? between(least < -15 ? -15 : least, 0) : p < 0 ? 0 : p);
        l.residual_shift[c] = (int8_t)-below(l.residual_zero == 0 && one_in(4) ? 8 : 7);
    }
}

static intonly_weights weights_of(int64_t channels, int64_t taps, int64_t depth, int64_t tap_bytes, int words, int joins) {
    intonly_weights all = {.channels = channels, .taps = taps, .depth = depth, .tap_bytes = tap_bytes, .w = w, .bias = bias,
                           .x_words = words};
    for (int64_t c = 0; c < channels; ++c) {
        int64_t sum = 0;
        for (int64_t i = 0; i < taps * depth; ++i) sum += abs(w[c * taps * depth + i]);
        bias[c] = (int32_t)between(-3000, 3000);
        sum = sum * (words ? 32768 : 255) + abs(bias[c]);
        if (all.acc_limit < sum) all.acc_limit = sum;
    }
    constants(channels, all.acc_limit, joins);
    all.form = l.form;
    if (l.form == INTONLY_FORM_ACC) return all;
    all.multiplier = l.multiplier, all.shift = l.shift, all.fraction_bits = l.fraction_bits;
    if (l.joins) all.residual_multiplier = l.residual_multiplier, all.residual_shift = l.residual_shift;
    return all;
}

/* Codes, many of them the largest, or the smallest of 16 bits. */
static void fill_codes(const image *x) {
    const int64_t size = type_bytes(x->type), end = one_in(2) ? type_highest(x->type) : type_lowest(x->type);
    fill_image(x, type_lowest(x->type), type_highest(x->type));
    if (one_in(2)) return;
    for (int64_t i = 0; i + size <= x->bytes; i += size)
        if (!one_in(4)) put(at(x->ref) + i, x->type, x->type == INTONLY_U8 ? 255 : end);
}

/* Halve the weights of each channel until its sums of products with int16 codes fit in 32 bits. */
static void make_room(int64_t channels, int64_t codes) {
    for (int64_t c = 0; c < channels; ++c)
        for (;;) {
            int64_t sum = 0;
            for (int64_t i = 0; i < codes; ++i) sum += abs(w[c * codes + i]);
            if (sum <= 60000) break;
            for (int64_t i = 0; i < codes; ++i) w[c * codes + i] /= 2;
        }
}

static int64_t y_type(void) {
    return l.form == INTONLY_FORM_ACC ? INTONLY_S32 : type_holding(l.lo, l.hi, l.form == INTONLY_FORM_NARROW ? 2 : INTONLY_S32 + 1);
}

/* Run a step as a table does it, in some parts, on what y held before. */
static void run(const intonly_kernels *table, int kind, const void *step, const image *y, const uint8_t *before, unsigned parts) {
    memcpy(at(y->ref), before, (size_t)y->bytes);
    for (unsigned part = parts; part-- > 0;) table->run[kind](step, bases, part, parts);
}

/* Compare `table` with the plain kernels; the packed form of each is at its place, in step->packed. */
#define COMPARE(table, plain, kind, step, own, theirs, y)                                                              \
    do {                                                                                                               \
        const size_t bytes = (size_t)(y).bytes;                                                                        \
        uint8_t *before = malloc(bytes), *expected = malloc(bytes);                                                    \
        if (before == NULL || expected == NULL) exit(2);                                                               \
        for (size_t i = 0; i < bytes; ++i) before[i] = (uint8_t)random64();                                            \
        (step).packed = (theirs).ref, (step).packed_bytes = (theirs).bytes;                                            \
        run(plain, kind, &(step), &(y), before, 1);                                                                    \
        memcpy(expected, at((y).ref), bytes);                                                                          \
        (step).packed = (own).ref, (step).packed_bytes = (own).bytes;                                                  \
        for (unsigned parts = 1; parts <= 3; ++parts) {                                                                \
            run(table, kind, &(step), &(y), before, parts);                                                            \
            for (size_t i = 0; i < bytes; ++i) REQUIRE(at((y).ref)[i] == expected[i]);                                 \
        }                                                                                                              \
        free(before);                                                                                                  \
        free(expected);                                                                                                \
        ++cases;                                                                                                       \
    } while (0)

typedef struct form {
    int64_t ref, bytes;
} form;

static form packed(size_t (*size)(const intonly_weights *), void (*pack)(const intonly_weights *, uint8_t *),
                   const intonly_weights *weights) {
    form f = {.bytes = (int64_t)size(weights)};
    REQUIRE(f.bytes > 0 && (f.bytes & 63) == 0);
    f.ref = place_constant(NULL, f.bytes);
    memset(at(f.ref), 0xEE, (size_t)f.bytes);
    pack(weights, at(f.ref));
    return f;
}

static void count_finish(const narrow_summary *summary, int64_t type, int64_t r_type) {
    int64_t least = 62;
    for (int64_t c = 0; c < l.count; ++c) least = l.shift[c] < least ? l.shift[c] : least;
    upper_finishes += l.form == INTONLY_FORM_WIDE && least >= 33;
    const int fits = l.form == INTONLY_FORM_NARROW &&
                     narrow_fits(summary, type, l.zero_point, l.fraction_bits, l.joins ? r_type : -1, l.residual_zero);
    vector_finishes += (unsigned)fits;
    joined_finishes += (unsigned)(fits && l.joins);
}

#define SET_IMAGE(step, name, m)                                                                                       \
    ((step).name##_ref = (m).ref, (step).name##_type = (m).type, (step).name##_n = (m).stride_n,                       \
     (step).name##_h = (m).stride_h, (step).name##_w = (m).stride_w)

static void test_large_gemm(const intonly_kernels *table, const intonly_kernels *plain) {
    const int64_t taps = one_in(2) ? 1 : 1 + below(9), most = MOST_CODES / taps - 3;
    const int64_t depth = one_in(4) ? 1 + below(most) : 1 + below(most < 80 ? most : 80);
    const int words = one_in(3);
    const int64_t item = 1 + words, tap_bytes = (depth * item + 3) & ~INT64_C(3);
    const int64_t channels = 1 + below(one_in(4) ? MOST_CHANNELS : 40), oh = 1 + below(3), ow = 1 + below(one_in(4) ? 100 : 8);
    const int joins = one_in(2);
    scene_begin();
    if (one_in(3))
        few_weights(channels, taps * depth);
    else if (one_in(2))
        random_weights(channels, taps * depth);
    else
        edge_weights(channels, taps, depth, (depth + 3) & ~INT64_C(3), INT64_C(1) << below(4));
    if (words) make_room(channels, taps * depth);
    const intonly_weights weights = weights_of(channels, taps, depth, tap_bytes, words, joins);
    const image x = new_image(words ? INTONLY_S16 : INTONLY_U8, 1, oh + 2, ow + 2, depth, tap_bytes - depth * item);
    const image y = new_image(y_type(), 1, oh, ow, channels, 0), apart = new_image(below(2), 1, oh, ow, channels, 0);
    const image r = type_bytes(y.type) == 1 && one_in(2) ? y : apart;
    fill_codes(&x);
    fill_image(&apart, type_lowest(apart.type), type_highest(apart.type));
    int64_t offsets[9];
    for (int64_t t = 0; t < taps; ++t) offsets[t] = offset_in(&x, 0, below(3), below(3), 0);
    intonly_gemm step = {.kind = INTONLY_KIND_gemm, .words = sizeof step / 8, .parts = 3, .r_ref = INTONLY_ABSENT};
    SET_IMAGE(step, x, x);
    SET_IMAGE(step, y, y);
    if (l.joins) SET_IMAGE(step, r, r);
    SET_LIMITS(step, &l);
    step.n = 1, step.oh = oh, step.ow = ow, step.oc = channels, step.taps = taps, step.tap_bytes = tap_bytes;
    step.tap_offsets = place_constant(offsets, taps * 8), step.channels_first = below(2);
    const form own = packed(table->gemm_size, table->gemm_pack, &weights);
    const form theirs = packed(plain->gemm_size, plain->gemm_pack, &weights);
    step.packed = own.ref, step.packed_bytes = own.bytes;
    REQUIRE(table->gemm_accepts(&step, at(own.ref)));
    step.packed_bytes += 64;
    REQUIRE(!table->gemm_accepts(&step, at(own.ref)));
    const gemm_header *header = (const gemm_header *)(const void *)at(own.ref);
    REQUIRE(header->wide || !words);
    ++*(words ? &of_words : header->wide ? &wide_forms : &chains[header->chain]);
    ++of_bits[header->bits];
    wide_books += header->wide && header->bits < 8;
    count_finish(&header->narrow, y.type, r.type);
    COMPARE(table, plain, INTONLY_KIND_gemm, step, own, theirs, y);
}

/* Depthwise products of many taps, and sums of more codes than 16 bits hold. */
static void test_large_window(const intonly_kernels *table, const intonly_kernels *plain) {
    const int sums = one_in(2);
    const int64_t taps = 1 + below(one_in(4) ? (sums ? 700 : 50) : 12), channels = 1 + below(one_in(4) ? MOST_CHANNELS : 40);
    const int64_t oh = 1 + below(3), ow = 1 + below(one_in(4) ? 30 : 8);
    const int joins = !sums && one_in(2);
    scene_begin();
    random_weights(channels, taps);
    intonly_weights weights = weights_of(channels, taps, 1, 1, 0, joins);
    if (sums) constants(channels, 255 * taps, 0);
    const image x = new_image(INTONLY_U8, 1, oh + 2, ow + 2, channels, 0), y = new_image(y_type(), 1, oh, ow, channels, 0);
    const image apart = new_image(below(2), 1, oh, ow, channels, 0), r = type_bytes(y.type) == 1 && one_in(2) ? y : apart;
    fill_codes(&x);
    fill_image(&apart, type_lowest(apart.type), type_highest(apart.type));
    int64_t offsets[700];
    for (int64_t t = 0; t < taps; ++t) offsets[t] = offset_in(&x, 0, below(3), below(3), 0);
    intonly_window step = {.kind = INTONLY_KIND_window, .words = sizeof step / 8, .parts = 3, .r_ref = INTONLY_ABSENT};
    SET_IMAGE(step, x, x);
    SET_IMAGE(step, y, y);
    SET_EPILOGUE(step, &l);
    step.op = sums ? INTONLY_SUM : INTONLY_SUM_PRODUCTS, step.bias = INTONLY_ABSENT;
    step.n = 1, step.oh = oh, step.ow = ow, step.c = channels, step.taps = taps;
    step.tap_offsets = place_constant(offsets, taps * 8);
    form own = {INTONLY_ABSENT, 0}, theirs = own;
    if (sums) {
        step.bias = place_constant(bias, channels * 4), step.constant_c = 1;
    } else {
        if (l.joins) SET_IMAGE(step, r, r);
        own = packed(table->depthwise_size, table->depthwise_pack, &weights);
        theirs = packed(plain->depthwise_size, plain->depthwise_pack, &weights);
        count_finish((const narrow_summary *)(const void *)at(own.ref), y.type, r.type);
        step.packed = own.ref, step.packed_bytes = own.bytes;
        REQUIRE(table->depthwise_accepts(&step, at(own.ref)));
        step.packed_bytes -= 64;
        REQUIRE(!table->depthwise_accepts(&step, at(own.ref)));
    }
    COMPARE(table, plain, INTONLY_KIND_window, step, own, theirs, y);
}

int main(int argc, char **argv) {
    const long rounds = argc > 1 ? strtol(argv[1], NULL, 10) : 200;
    const intonly_kernels *plain = intonly_kernels_of(INTONLY_ISA_SCALAR);
    for (int isa = INTONLY_ISA_AVX2; isa <= INTONLY_ISA_AVXVNNI; ++isa) {
        const intonly_kernels *table = intonly_kernels_of((intonly_isa)isa);
        if (table == NULL) continue;
        memset(chains, 0, sizeof chains);
        memset(of_bits, 0, sizeof of_bits);
        of_words = wide_books = wide_forms = vector_finishes = joined_finishes = upper_finishes = cases = 0;
        for (long round = 0; round < rounds; ++round) {
            test_large_gemm(table, plain);
            test_large_window(table, plain);
        }
        printf("%s cases %lu vectors %lu joined %lu upper %lu int16 %lu", table->isa, cases, vector_finishes, joined_finishes,
               upper_finishes, wide_forms);
        printf(" bits4 %lu bits2 %lu book16 %lu words %lu", of_bits[4], of_bits[2], wide_books, of_words);
        for (int chain = 1; chain <= 8; chain *= 2) printf(" chain%d %lu", chain, chains[chain]);
        printf("\n");
    }
    scene_begin();
    for (int space = 0; space < INTONLY_CALLER; ++space) free(bases[space]);
    return 0;
}
