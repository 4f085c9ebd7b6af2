/* SPDX-License-Identifier: Apache-2.0
 *
 * gemm, window and halo against plain loops.
 */
#include <string.h>

#include "kernels_harness.h"

/* A convolution's geometry: which pixels of x the taps of an output pixel are. */
typedef struct geometry {
    int64_t n, oh, ow, kh, kw, stride_h, stride_w, dilation_h, dilation_w, h, w;
} geometry;

static geometry random_geometry(void) {
    geometry g = {.n = 1 + below(2), .oh = 1 + below(5), .ow = 1 + below(9), .kh = 1 + below(3), .kw = 1 + below(3)};
    if (one_in(4)) g.n = g.oh = g.kh = g.kw = 1; /* a linear layer: ow rows */
    if (one_in(8)) g.ow = 1 + below(40);
    g.stride_h = 1 + below(2), g.stride_w = 1 + below(2), g.dilation_h = 1 + below(2), g.dilation_w = 1 + below(2);
    g.h = (g.oh - 1) * g.stride_h + (g.kh - 1) * g.dilation_h + 1;
    g.w = (g.ow - 1) * g.stride_w + (g.kw - 1) * g.dilation_w + 1;
    return g;
}

static int64_t x_offset(const geometry *g, const image *x, int64_t n, int64_t i, int64_t j, int64_t tap, int64_t c) {
    const int64_t row = tap / g->kw, column = tap % g->kw;
    return offset_in(x, n, i * g->stride_h + row * g->dilation_h, j * g->stride_w + column * g->dilation_w, c);
}

/* The table of tap offsets, and the reference of x that belongs to it: often not the first tap, so that some offsets
 * are negative. */
static int64_t tap_table(const geometry *g, const image *x, int64_t *x_ref) {
    const int64_t taps = g->kh * g->kw, middle = one_in(2) ? x_offset(g, x, 0, 0, 0, below(taps), 0) : 0;
    int64_t offsets[9];
    for (int64_t t = 0; t < taps; ++t) offsets[t] = x_offset(g, x, 0, 0, 0, t, 0) - middle;
    *x_ref = x->ref + middle;
    return place_constant(offsets, taps * 8);
}

#define SET_IMAGES(step, g, x, y)                                                                                      \
    ((step).x_type = (x).type, (step).x_n = (x).stride_n, (step).x_h = (x).stride_h * (g).stride_h,                    \
     (step).x_w = (x).stride_w * (g).stride_w, (step).y_ref = (y).ref, (step).y_type = (y).type,                       \
     (step).y_n = (y).stride_n, (step).y_h = (y).stride_h, (step).y_w = (y).stride_w, (step).n = (g).n,                \
     (step).oh = (g).oh, (step).ow = (g).ow, (step).taps = (g).kh * (g).kw,                                            \
     (step).tap_offsets = tap_table(&(g), &(x), &(step).x_ref))

#define SET_RESIDUAL(step, r)                                                                                          \
    ((step).r_ref = (r).ref, (step).r_type = (r).type, (step).r_n = (r).stride_n, (step).r_h = (r).stride_h,           \
     (step).r_w = (r).stride_w)

/* Weights with their constants, and the law that they are to follow. */
typedef struct layer {
    intonly_weights weights;
    int8_t w[9 * 200 * 40];
    int32_t bias[200];
    int64_t x_type, r_type;
    law law;
} layer;

static int64_t magnitude(int64_t x) { return x < 0 ? -x : x; }

static int64_t bit_length(int64_t x) {
    int64_t bits = 0;
    for (; x > 0; x >>= 1) ++bits;
    return bits;
}

/* The largest value that the sum of a channel's products can have, or (sign -1) minus the smallest. */
static int64_t reach(const layer *l, int64_t channel, int sign) {
    const int64_t codes = l->weights.taps * l->weights.depth;
    const int64_t lo = type_lowest(l->x_type), hi = type_highest(l->x_type);
    int64_t sum = 0;
    for (int64_t k = 0; k < codes; ++k) {
        const int64_t w = sign * l->w[channel * codes + k];
        sum += w * (w > 0 ? hi : lo);
    }
    return sum;
}

static void random_layer(layer *l, int64_t channels, int64_t taps, int64_t depth, int64_t x_type, int depthwise) {
    static const int64_t ranges[][2] = {{-128, 127}, {-127, 127}, {-64, 63}, {-7, 7}, {-1, 1}, {127, 127}, {-128, -128}};
    const int64_t *range = ranges[below(7)];
    const int64_t form = one_in(2) ? INTONLY_FORM_NARROW : below(2);
    intonly_weights *w = &l->weights;
    memset(w, 0, sizeof *w);
    w->channels = channels, w->taps = taps, w->depth = depth, w->tap_bytes = depthwise ? 1 : (depth * type_bytes(x_type) + 3) & ~INT64_C(3);
    w->w = l->w, w->bias = l->bias, w->form = form, w->x_signed = x_type == INTONLY_S8;
    w->x_words = x_type == INTONLY_S16, l->x_type = x_type;
    for (int64_t k = 0; k < channels * taps * depth; ++k) l->w[k] = (int8_t)between(range[0], range[1]);
    const int64_t typical = magnitude(range[0] + range[1]) > 8 ? 255 * 127 * taps * depth : 128 * range[1] * taps * depth / 4 + 1;
    const int residual = (form == INTONLY_FORM_NARROW || (form == INTONLY_FORM_WIDE && !depthwise)) && one_in(2);
    const int64_t r_type = form == INTONLY_FORM_WIDE ? below(INTONLY_U16 + 1) : below(2);
    l->r_type = r_type;
    random_law(&l->law, form, residual, r_type, channels, bit_length(typical));
    /* The bias of a channel leaves its accumulator where the certificate of the form wants it, sometimes at the edge. */
    for (int64_t c = 0; c < channels; ++c) {
        const int shift = l->law.shift[c];
        const int64_t limit = INT32_MAX - (form == INTONLY_FORM_NARROW && shift >= 1 ? INT64_C(1) << (shift - 1) : 0);
        const int64_t above = reach(l, c, 1), under = reach(l, c, -1), most = limit - above, least = -limit + under;
        const int64_t bias = one_in(8) ? (one_in(2) ? least : most) : between(-typical, typical) / 8;
        l->bias[c] = (int32_t)(bias < least ? least : bias > most ? most : bias);
        REQUIRE(above + l->bias[c] <= limit && under - l->bias[c] <= limit);
        const int64_t top = magnitude(above + l->bias[c]), bottom = magnitude(under - l->bias[c]);
        if (w->acc_limit < top) w->acc_limit = top;
        if (w->acc_limit < bottom) w->acc_limit = bottom;
    }
    if (form == INTONLY_FORM_ACC) return;
    w->multiplier = l->law.multiplier, w->shift = l->law.shift, w->fraction_bits = l->law.fraction_bits;
    if (residual) w->residual_multiplier = l->law.residual_multiplier, w->residual_shift = l->law.residual_shift;
}

/* Fill the window of the first pixel so that the accumulator of one channel is the largest or smallest that it can be. */
static void fill_adversary(const geometry *g, const image *x, const layer *l, int depthwise) {
    const int64_t channel = below(l->weights.channels), taps = l->weights.taps, depth = l->weights.depth;
    const int sign = one_in(2) ? 1 : -1;
    for (int64_t t = 0; t < taps; ++t) {
        for (int64_t k = 0; k < depth; ++k) {
            const int64_t w = sign * l->w[(channel * taps + t) * depth + k];
            const int64_t code = w > 0 ? type_highest(x->type) : type_lowest(x->type);
            put(at(x->ref) + x_offset(g, x, 0, 0, 0, t, depthwise ? channel : k), x->type, code);
        }
    }
}

static int64_t output_type(const layer *l) {
    if (l->law.form == INTONLY_FORM_ACC) return INTONLY_S32;
    return type_holding(l->law.lo, l->law.hi, l->law.form == INTONLY_FORM_NARROW ? 2 : INTONLY_S32 + 1);
}

static int64_t code_type(const intonly_kernels *table) {
    return table->wants_signed < 0 ? below(2) : table->wants_signed ? INTONLY_S8 : INTONLY_U8;
}

/* A packed form that a file has damaged is refused, or the kernel stays within its arrays all the same. */
#define RUN_DAMAGED(step, packed, accepts, kernel)                                                                     \
    for (int tries = 0; (accepts) != NULL && tries < 4; ++tries) {                                                     \
        const int64_t place = below(one_in(2) ? 8 : one_in(2) ? 64 : (step).packed_bytes);                             \
        const uint8_t kept = (packed)[place];                                                                          \
        (packed)[place] = (uint8_t)(one_in(2) ? kept + between(-4, 4) : between(0, 255));                              \
        if ((accepts)(&(step), packed)) (kernel)(&(step), bases, 0, 1);                                                \
        (packed)[place] = kept;                                                                                        \
    }

static layer net;

/* Give one channel a constant that the law does not have; the plain kernels, which trust none, refuse the form. */
static void spoil_constants(law *l) {
    const int narrow = l->form == INTONLY_FORM_NARROW;
    const int64_t c = below(l->count), kind = below(narrow ? l->joins ? 4 : 2 : 1);
    const int8_t shift = (int8_t)(narrow ? one_in(2) ? 31 : -16 : one_in(2) ? 63 : 0);
    const int32_t multiplier = one_in(2) ? 32768 : -32768;
    if (kind == 0) l->shift[c] = shift;
    if (kind == 1) l->multiplier[c] = multiplier;
    if (kind == 2) l->residual_shift[c] = shift;
    if (kind == 3) l->residual_multiplier[c] = multiplier;
}

void test_gemm(const intonly_kernels *table, outcome *o) {
    const geometry g = random_geometry();
    const int64_t channels = 1 + below(one_in(8) ? 200 : 70), depth = 1 + below(40), taps = g.kh * g.kw;
    const int64_t x_type = one_in(3) ? INTONLY_S16 : code_type(table);
    scene_begin();
    random_layer(&net, channels, taps, depth, x_type, 0);
    const int64_t size = (int64_t)table->gemm_size(&net.weights);
    REQUIRE((size & 63) == 0);
    if (size == 0) {
        ++o->refused;
        return;
    }
    const image x = new_image(x_type, g.n, g.h, g.w, depth, net.weights.tap_bytes - depth * type_bytes(x_type));
    const image y = new_image(output_type(&net), g.n, g.oh, g.ow, channels, 0);
    const image r = new_image(net.r_type, g.n, g.oh, g.ow, channels, 0);
    fill_image(&x, type_lowest(x_type), type_highest(x_type));
    fill_adversary(&g, &x, &net, 0);
    fill_image(&r, type_lowest(r.type), type_highest(r.type));
    intonly_gemm step = {.kind = INTONLY_KIND_gemm, .words = sizeof step / 8, .parts = 3, .r_ref = INTONLY_ABSENT};
    SET_IMAGES(step, g, x, y);
    if (net.law.joins) SET_RESIDUAL(step, r);
    SET_LIMITS(step, &net.law);
    step.oc = channels, step.tap_bytes = net.weights.tap_bytes, step.channels_first = below(2);
    step.packed = place_constant(NULL, size), step.packed_bytes = size;
    memset(at(step.packed), 0xEE, (size_t)size);
    table->gemm_pack(&net.weights, at(step.packed));
    REQUIRE(table->gemm_accepts == NULL || table->gemm_accepts(&step, at(step.packed)));

    expectation e = expect(y.ref, y.type, y.bytes);
    for (int64_t n = 0; n < g.n; ++n) {
        for (int64_t i = 0; i < g.oh; ++i) {
            for (int64_t j = 0; j < g.ow; ++j) {
                for (int64_t c = 0; c < channels; ++c) {
                    int64_t acc = net.bias[c];
                    for (int64_t t = 0; t < taps; ++t)
                        for (int64_t k = 0; k < depth; ++k)
                            acc += get(at(x.ref) + x_offset(&g, &x, n, i, j, t, k), x_type) * net.w[(c * taps + t) * depth + k];
                    REQUIRE(magnitude(acc) <= net.weights.acc_limit);
                    if (magnitude(acc) == net.weights.acc_limit) ++edges;
                    const int64_t residual = get(at(r.ref) + offset_in(&r, n, i, j, c), r.type);
                    expect_element(&e, offset_in(&y, n, i, j, c), apply_law(&net.law, acc, residual, c, 0));
                }
            }
        }
    }
    check(table->run[INTONLY_KIND_gemm], &step, &e);
    ++o->cases;
    uint8_t *packed = at(step.packed);
    RUN_DAMAGED(step, packed, table->gemm_accepts, table->run[INTONLY_KIND_gemm])
    if (net.law.form == INTONLY_FORM_ACC || strcmp(table->isa, "scalar") != 0) return;
    spoil_constants(&net.law);
    table->gemm_pack(&net.weights, packed);
    REQUIRE(!table->gemm_accepts(&step, packed));
}

void test_depthwise(const intonly_kernels *table, outcome *o) {
    const geometry g = random_geometry();
    const int64_t channels = 1 + below(one_in(4) ? 200 : 70), taps = g.kh * g.kw, x_type = code_type(table);
    scene_begin();
    random_layer(&net, channels, taps, 1, x_type, 1);
    const int64_t size = (int64_t)table->depthwise_size(&net.weights);
    REQUIRE((size & 63) == 0);
    if (size == 0) {
        ++o->refused;
        return;
    }
    const image x = new_image(x_type, g.n, g.h, g.w, channels, 0);
    const image y = new_image(output_type(&net), g.n, g.oh, g.ow, channels, 0);
    const image r = new_image(below(2), g.n, g.oh, g.ow, channels, 0);
    fill_image(&x, type_lowest(x_type), type_highest(x_type));
    fill_adversary(&g, &x, &net, 1);
    fill_image(&r, type_lowest(r.type), type_highest(r.type));
    intonly_window step = {.kind = INTONLY_KIND_window, .words = sizeof step / 8, .parts = 3, .r_ref = INTONLY_ABSENT};
    SET_IMAGES(step, g, x, y);
    if (net.law.joins) SET_RESIDUAL(step, r);
    SET_LIMITS(step, &net.law);
    step.op = INTONLY_SUM_PRODUCTS, step.c = channels;
    step.bias = step.multiplier = step.shift = step.residual_multiplier = step.residual_shift = step.x_zero = INTONLY_ABSENT;
    step.packed = place_constant(NULL, size), step.packed_bytes = size;
    memset(at(step.packed), 0xEE, (size_t)size);
    table->depthwise_pack(&net.weights, at(step.packed));
    REQUIRE(table->depthwise_accepts == NULL || table->depthwise_accepts(&step, at(step.packed)));

    expectation e = expect(y.ref, y.type, y.bytes);
    for (int64_t n = 0; n < g.n; ++n) {
        for (int64_t i = 0; i < g.oh; ++i) {
            for (int64_t j = 0; j < g.ow; ++j) {
                for (int64_t c = 0; c < channels; ++c) {
                    int64_t acc = net.bias[c];
                    for (int64_t t = 0; t < taps; ++t)
                        acc += get(at(x.ref) + x_offset(&g, &x, n, i, j, t, c), x_type) * net.w[c * taps + t];
                    REQUIRE(magnitude(acc) <= net.weights.acc_limit);
                    if (magnitude(acc) == net.weights.acc_limit) ++edges;
                    const int64_t residual = get(at(r.ref) + offset_in(&r, n, i, j, c), r.type);
                    expect_element(&e, offset_in(&y, n, i, j, c), apply_law(&net.law, acc, residual, c, 0));
                }
            }
        }
    }
    check(table->run[INTONLY_KIND_window], &step, &e);
    ++o->cases;
    uint8_t *packed = at(step.packed);
    RUN_DAMAGED(step, packed, table->depthwise_accepts, table->run[INTONLY_KIND_window])
    if (net.law.form == INTONLY_FORM_ACC || strcmp(table->isa, "scalar") != 0) return;
    spoil_constants(&net.law);
    table->depthwise_pack(&net.weights, packed);
    REQUIRE(!table->depthwise_accepts(&step, packed));
}

/* Sums and maxima of windows, of every type up to 32 bits; constants per tensor, per channel or per pixel. */
void test_window(const intonly_kernels *table, outcome *o) {
    static law l;
    const geometry g = random_geometry();
    const int64_t op = one_in(2) ? INTONLY_SUM : INTONLY_MAX, taps = g.kh * g.kw, x_type = below(INTONLY_S32 + 1);
    const int64_t channels = 1 + below(one_in(4) ? 200 : 70);
    const int64_t form = below(x_type == INTONLY_S32 ? 2 : 3), lo = type_lowest(x_type), hi = type_highest(x_type);
    const int64_t sum_lo = op == INTONLY_SUM ? lo * taps - 1000 : lo, sum_hi = op == INTONLY_SUM ? hi * taps + 1000 : hi;
    const int per_channel = one_in(2), per_pixel = !per_channel && one_in(2) && g.oh * g.ow <= MOST_CONSTANTS;
    int32_t bias[200];
    for (int64_t c = 0; c < channels; ++c) bias[c] = (int32_t)between(-1000, 1000);
    scene_begin();
    random_law(&l, form, 0, 0, per_channel ? channels : per_pixel ? g.oh * g.ow : 1, bit_length(sum_hi));
    const int64_t y_type = form == INTONLY_FORM_ACC ? type_holding(sum_lo, sum_hi, TYPES) : type_holding(l.lo, l.hi, TYPES);
    const image x = new_image(x_type, g.n, g.h, g.w, channels, 0), y = new_image(y_type, g.n, g.oh, g.ow, channels, 0);
    fill_image(&x, lo, hi);
    intonly_window step = {.kind = INTONLY_KIND_window, .words = sizeof step / 8, .parts = 3, .r_ref = INTONLY_ABSENT};
    SET_IMAGES(step, g, x, y);
    SET_EPILOGUE(step, &l);
    step.op = op, step.c = channels, step.packed = INTONLY_ABSENT;
    step.constant_c = per_channel, step.constant_w = per_pixel, step.constant_h = per_pixel ? g.ow : 0;
    const int has_bias = op == INTONLY_SUM && !one_in(3);
    step.bias = has_bias ? place_constant(bias, channels * 4) : INTONLY_ABSENT;

    expectation e = expect(y.ref, y.type, y.bytes);
    for (int64_t n = 0; n < g.n; ++n) {
        for (int64_t i = 0; i < g.oh; ++i) {
            for (int64_t j = 0; j < g.ow; ++j) {
                for (int64_t c = 0; c < channels; ++c) {
                    int64_t acc = op == INTONLY_MAX ? INT64_MIN : has_bias ? bias[c] : 0;
                    for (int64_t t = 0; t < taps; ++t) {
                        const int64_t code = get(at(x.ref) + x_offset(&g, &x, n, i, j, t, c), x_type);
                        acc = op == INTONLY_SUM ? acc + code : acc > code ? acc : code;
                    }
                    const int64_t k = per_channel ? c : per_pixel ? i * g.ow + j : 0;
                    expect_element(&e, offset_in(&y, n, i, j, c), apply_law(&l, acc, 0, k, 0));
                }
            }
        }
    }
    check(table->run[INTONLY_KIND_window], &step, &e);
    ++o->cases;
}

/* Margins of any width, also none; images that are further apart than they are large. */
void test_halo(const intonly_kernels *table, outcome *o) {
    const int64_t n = 1 + below(3), h = 1 + below(6), w = 1 + below(6), bytes = 1 + below(one_in(2) ? 5 : 70);
    const int64_t top = below(4), left = below(4), bottom = below(4), right = below(4);
    const int64_t x_h = (left + w + right) * bytes + below(4), x_n = (top + h + bottom) * x_h + below(4);
    const int64_t all = (n - 1) * x_n + (top + h + bottom - 1) * x_h + (left + w + right) * bytes;
    uint8_t pattern[70];
    scene_begin();
    for (int64_t k = 0; k < bytes; ++k) pattern[k] = (uint8_t)random64();
    if (one_in(2)) memset(pattern, pattern[0], (size_t)bytes);
    const int64_t memory = place(all, 0, 1);
    intonly_halo step = {.kind = INTONLY_KIND_halo, .words = sizeof step / 8, .parts = 3, .x_type = below(2), .x_n = x_n};
    step.x_ref = memory + top * x_h + left * bytes, step.x_h = x_h, step.x_w = bytes, step.pixel_bytes = bytes;
    step.n = n, step.h = h, step.w = w, step.top = top, step.left = left, step.bottom = bottom, step.right = right;
    step.pattern = place_constant(pattern, bytes);

    expectation e = expect(memory, INTONLY_U8, all);
    for (int64_t m = 0; m < n; ++m)
        for (int64_t i = 0; i < top + h + bottom; ++i)
            for (int64_t j = 0; j < left + w + right; ++j)
                for (int64_t k = 0; k < bytes; ++k)
                    if (i < top || i >= top + h || j < left || j >= left + w)
                        expect_element(&e, m * x_n + i * x_h + j * bytes + k, pattern[k]);
    check(table->run[INTONLY_KIND_halo], &step, &e);
    ++o->cases;
}
