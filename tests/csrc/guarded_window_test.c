/* SPDX-License-Identifier: Apache-2.0
 *
 * The window step of a table against sums written out in 64 bits: depthwise products, and sums and maxima of windows.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "guarded_harness.h"

/* A window step with its memory. */
typedef struct scene {
    intonly_window step;
    int64_t offsets[25], y_bytes;
    guarded x, y, r;
    uint8_t *want, *before;
} scene;

/* Draw a geometry: often k x k neighbours at a distance of 1 or 2, as the fast paths like it, else any taps. */
static void draw_scene(scene *e, int64_t y_type) {
    intonly_window *s = &e->step;
    const int64_t k = one_in(2) ? 3 : between(1, 5), right = between(1, 2), step = between(1, 2);
    const int64_t c = channels_drawn(), pixel = c + (one_in(2) ? 0 : between(0, 40));
    const int any = one_in(4);
    memset(e, 0, sizeof *e);
    s->kind = INTONLY_KIND_window;
    s->n = between(1, 2);
    s->oh = between(1, 5);
    s->ow = between(1, 9);
    s->c = c;
    s->taps = any ? between(1, 25) : k * k;
    s->x_type = INTONLY_U8;
    s->x_w = pixel * step;
    const int64_t line = (s->ow * step + k * right) * pixel + between(0, 20);
    s->x_h = line * step;
    s->x_n = s->oh * s->x_h + between(0, 20);
    int64_t furthest = 0;
    for (int64_t t = 0; t < s->taps; ++t) {
        e->offsets[t] = any ? between(0, 200) : t / k * line + t % k * right * pixel;
        if (e->offsets[t] > furthest) furthest = e->offsets[t];
    }
    e->x = allocate_random((s->n - 1) * s->x_n + (s->oh - 1) * s->x_h + (s->ow - 1) * s->x_w + furthest + c);

    const int64_t y_size = bytes_of(y_type);
    s->y_type = y_type;
    s->y_w = (c + (one_in(2) ? 0 : between(0, 70))) * y_size;
    s->y_h = s->ow * s->y_w + between(0, 2) * s->y_w;
    s->y_n = s->oh * s->y_h + between(0, 2) * s->y_w;
    e->y_bytes = (s->n - 1) * s->y_n + (s->oh - 1) * s->y_h + (s->ow - 1) * s->y_w + c * y_size;
    e->y = allocate_random(e->y_bytes);
    e->want = malloc((size_t)e->y_bytes);
    e->before = malloc((size_t)e->y_bytes);
    if (e->want == NULL || e->before == NULL) abort();
    memcpy(e->want, e->y.data, (size_t)e->y_bytes);
    memcpy(e->before, e->y.data, (size_t)e->y_bytes);
    s->r_w = c + between(0, 9);
    s->r_h = s->ow * s->r_w + between(0, 9);
    s->r_n = s->oh * s->r_h + between(0, 9);
    e->r = allocate_random((s->n - 1) * s->r_n + (s->oh - 1) * s->r_h + (s->ow - 1) * s->r_w + c);
    s->tap_offsets = space(1);
    s->x_ref = space(2);
    s->y_ref = space(4);
    s->r_ref = s->bias = s->multiplier = s->shift = s->packed = INTONLY_ABSENT;
    s->residual_multiplier = s->residual_shift = s->x_zero = INTONLY_ABSENT;
}

static void drop_scene(scene *e) {
    release(e->x);
    release(e->y);
    release(e->r);
    free(e->want);
    free(e->before);
}

static int run_scene(scene *e, const intonly_kernels *table, uint8_t *const *bases, const char *what, uint64_t seed) {
    int good = 1;
    for (unsigned parts = 1; good && parts <= 3; ++parts) {
        memcpy(e->y.data, e->before, (size_t)e->y_bytes);
        for (unsigned part = parts; part-- > 0;) table->run[INTONLY_KIND_window](&e->step, bases, part, parts);
        good = same(what, e->y.data, e->want, e->y_bytes, seed);
    }
    return good;
}

#define EACH_PIXEL(s, n_, i, j)                                                                                        \
    for (int64_t n_ = 0; n_ < (s)->n; ++n_)                                                                            \
        for (int64_t i = 0; i < (s)->oh; ++i)                                                                          \
            for (int64_t j = 0; j < (s)->ow; ++j)

int check_depthwise(const intonly_kernels *table, uint64_t seed) {
    scene e;
    constants c = draw_constants(200, 25 * 128 * 20);
    draw_scene(&e, c.y_type);
    intonly_window *s = &e.step;
    int8_t *w = malloc((size_t)(s->c * s->taps));
    const int weight = one_in(2) ? 128 : (int)between(1, 8);
    if (w == NULL) abort();
    for (int64_t i = 0; i < s->c * s->taps; ++i) w[i] = (int8_t)between(-weight, weight - 1);
    s->r_type = c.residual_type;

    int64_t limit = 0;
    EACH_PIXEL(s, n, i, j) {
        for (int64_t o = 0; o < s->c; ++o) {
            int64_t acc = c.bias[o], code = e.r.data[n * s->r_n + i * s->r_h + j * s->r_w + o];
            for (int64_t t = 0; t < s->taps; ++t)
                acc += e.x.data[n * s->x_n + i * s->x_h + j * s->x_w + e.offsets[t] + o] * w[o * s->taps + t];
            if (c.residual_type == INTONLY_S8 && code > 127) code -= 256;
            if (llabs(acc) > limit) limit = llabs(acc);
            put(e.want + n * s->y_n + i * s->y_h + j * s->y_w + o * bytes_of(c.y_type), c.y_type,
                finish(&c, o, acc, code));
        }
    }
    const int bare = c.form == INTONLY_FORM_ACC;
    const intonly_weights weights = {s->c, s->taps, 1, 1, w, c.bias, c.form, bare ? NULL : c.m, bare ? NULL : c.p,
                                     c.joins ? c.m_r : NULL, c.joins ? c.p_r : NULL, c.k, limit, 0, 0};
    s->packed_bytes = (int64_t)table->depthwise_size(&weights);
    uint8_t *packed = aligned_alloc(64, (size_t)s->packed_bytes + 64);
    if (s->packed_bytes == 0 || packed == NULL) abort();
    table->depthwise_pack(&weights, packed);
    s->op = INTONLY_SUM_PRODUCTS;
    s->packed = space(0);
    if (c.joins) s->r_ref = space(3);
    SET_SCALARS(*s, c);
    uint8_t *bases[] = {packed, (uint8_t *)e.offsets, e.x.data, e.r.data, e.y.data};
    const int good = table->depthwise_accepts(s, packed) && run_scene(&e, table, bases, "depthwise", seed);
    if (!good) (void)fprintf(stderr, "depthwise, seed %llu\n", (unsigned long long)seed);
    free(w);
    free(packed);
    drop_constants(c);
    drop_scene(&e);
    return good;
}

int check_pooling(const intonly_kernels *table, uint64_t seed) {
    scene e;
    constants c = draw_constants(200, 25 * 255);
    const int largest = one_in(2);
    if (largest) c.form = INTONLY_FORM_ACC, c.y_type = INTONLY_U8;
    c.joins = 0;
    draw_scene(&e, c.y_type);
    intonly_window *s = &e.step;
    s->op = largest ? INTONLY_MAX : INTONLY_SUM;
    s->constant_c = one_in(2);
    s->constant_w = !s->constant_c && one_in(2);
    s->constant_h = s->constant_w * s->ow;
    const int has_bias = !largest && one_in(2);
    EACH_PIXEL(s, n, i, j) {
        for (int64_t o = 0; o < s->c; ++o) {
            const uint8_t *x = e.x.data + n * s->x_n + i * s->x_h + j * s->x_w + o;
            int64_t acc = has_bias ? c.bias[o] : 0;
            for (int64_t t = 0; t < s->taps; ++t)
                acc = !largest ? acc + x[e.offsets[t]] : acc > x[e.offsets[t]] ? acc : x[e.offsets[t]];
            const int64_t constant = i * s->constant_h + j * s->constant_w + o * s->constant_c;
            put(e.want + n * s->y_n + i * s->y_h + j * s->y_w + o * bytes_of(c.y_type), c.y_type,
                finish(&c, constant, acc, 0));
        }
    }
    if (has_bias) s->bias = space(0);
    s->multiplier = space(3);
    s->shift = space(5);
    SET_SCALARS(*s, c);
    uint8_t *bases[] = {(uint8_t *)c.bias, (uint8_t *)e.offsets, e.x.data, (uint8_t *)c.m, e.y.data, (uint8_t *)c.p};
    const int good = run_scene(&e, table, bases, largest ? "maximum" : "sum", seed);
    drop_constants(c);
    drop_scene(&e);
    return good;
}
