/* SPDX-License-Identifier: Apache-2.0
 *
 * window in plain C: for one output pixel, a chunk of channels is combined tap by tap. Depthwise weights are packed
 * [taps][channels].
 */
#include "kernels/window/window.h"

#include "kernels/elements.h"
#include "kernels/epilogue.h"
#include "kernels/packed.h"

size_t intonly_depthwise_size_ref(const intonly_weights *weights) {
    if (weights->acc_limit > INT32_MAX) return 0;
    return (size_t)intonly_packed_layout(weights->channels, weights->taps * weights->channels).bytes;
}

void intonly_depthwise_pack_ref(const intonly_weights *weights, uint8_t *packed) {
    int8_t *target = intonly_packed_begin(weights, weights->taps * weights->channels, packed);
    for (int64_t c = 0; c < weights->channels; ++c)
        for (int64_t t = 0; t < weights->taps; ++t)
            target[t * weights->channels + c] = weights->w[c * weights->taps + t];
}

int intonly_depthwise_accepts_ref(const intonly_window *step, const uint8_t *packed) {
    if (!intonly_product_within(step->taps, step->c, step->packed_bytes)) return 0;
    const intonly_packed at = intonly_packed_layout(step->c, step->taps * step->c);
    if (at.bytes != step->packed_bytes) return 0;
    return intonly_packed_constants_hold(packed, &at, step->c, step->form, step->r_ref >= 0);
}

typedef struct window {
    const intonly_window *step;
    const uint8_t *x, *r;
    uint8_t *y;
    const int64_t *offsets;
    const int32_t *bias; /* null = 0 */
    const int8_t *w; /* op 0 */
    intonly_epilogue epilogue;
} window;

/* Combine a chunk of one tap with what has been gathered; `x(i)` is its i-th code. */
#define COMBINE(x)                                                                                                     \
    switch (op) {                                                                                                      \
    case INTONLY_SUM_PRODUCTS:                                                                                         \
        for (int64_t i = 0; i < count; ++i) acc[i] += (x)*w[i];                                                        \
        break;                                                                                                         \
    case INTONLY_SUM:                                                                                                  \
        for (int64_t i = 0; i < count; ++i) acc[i] += (x);                                                             \
        break;                                                                                                         \
    default:                                                                                                           \
        for (int64_t i = 0; i < count; ++i) acc[i] = acc[i] > (x) ? acc[i] : (x);                                      \
        break;                                                                                                         \
    }

static void combine(int64_t op, const uint8_t *x, int64_t type, const int8_t *w, int64_t count, int64_t *acc) {
    if (type == INTONLY_U8) {
        COMBINE(x[i])
    } else {
        int64_t wide[INTONLY_CHUNK];
        intonly_load(x, type, intonly_bytes_of(type), count, wide);
        COMBINE(wide[i])
    }
}

/* Channels `first`.. (at most a chunk) of one output pixel. */
static void pixel(const window *v, int64_t image, int64_t i, int64_t j, int64_t first, int64_t count) {
    const intonly_window *s = v->step;
    const int64_t x_bytes = intonly_bytes_of(s->x_type), y_bytes = intonly_bytes_of(s->y_type);
    const uint8_t *x = v->x + image * s->x_n + i * s->x_h + j * s->x_w + first * x_bytes;
    int64_t acc[INTONLY_CHUNK], joining[INTONLY_CHUNK];
    for (int64_t c = 0; c < count; ++c)
        acc[c] = s->op == INTONLY_MAX ? INT64_MIN : v->bias == NULL ? 0 : v->bias[first + c];
    for (int64_t t = 0; t < s->taps; ++t)
        combine(s->op, x + v->offsets[t], s->x_type, v->w == NULL ? NULL : v->w + t * s->c + first, count, acc);
    if (v->epilogue.residual_multiplier != NULL) {
        const int64_t r_bytes = intonly_bytes_of(s->r_type);
        const uint8_t *r = v->r + image * s->r_n + i * s->r_h + j * s->r_w + first * r_bytes;
        intonly_load(r, s->r_type, r_bytes, count, joining);
    }
    if (s->op == INTONLY_SUM_PRODUCTS) {
        intonly_finish(&v->epilogue, first, 1, 0, 0, joining, count, acc);
    } else {
        const int64_t at = i * s->constant_h + j * s->constant_w + first * s->constant_c;
        intonly_finish(&v->epilogue, at, s->constant_c, 0, 0, joining, count, acc);
    }
    intonly_store(acc, count, v->y + image * s->y_n + i * s->y_h + j * s->y_w + first * y_bytes, s->y_type, y_bytes);
}

void intonly_window_ref(const void *step, uint8_t *const *bases, unsigned part, unsigned parts) {
    const intonly_window *s = (const intonly_window *)step;
    window v;
    v.step = s;
    v.x = intonly_at(bases, s->x_ref);
    v.y = intonly_at(bases, s->y_ref);
    v.r = intonly_at_or_null(bases, s->r_ref);
    v.offsets = (const int64_t *)(const void *)intonly_at(bases, s->tap_offsets);
    INTONLY_READ_EPILOGUE(s, bases, &v.epilogue);
    v.epilogue.x_zero = NULL; /* the bias holds it */
    if (s->op == INTONLY_SUM_PRODUCTS) {
        const uint8_t *packed = intonly_at(bases, s->packed);
        const intonly_packed at = intonly_packed_layout(s->c, s->taps * s->c);
        v.bias = intonly_packed_int32(packed, at.bias);
        v.w = intonly_packed_int8(packed, at.weights);
        intonly_packed_constants(packed, &at, v.r != NULL, &v.epilogue);
    } else {
        v.bias = intonly_int32_at(bases, s->bias);
        v.w = NULL;
        v.epilogue.residual_multiplier = NULL;
    }

    int64_t row = 0, row_end = s->n * s->oh, first = 0, end = s->c;
    if (row_end >= parts)
        intonly_share(row_end, part, parts, &row, &row_end);
    else
        intonly_share(end, part, parts, &first, &end);
    for (int64_t image = 0, top = 0; image < s->n; ++image, top += s->oh) {
        const int64_t to = row_end - top < s->oh ? row_end - top : s->oh;
        for (int64_t i = row > top ? row - top : 0; i < to; ++i)
            for (int64_t j = 0; j < s->ow; ++j)
                for (int64_t c = first; c < end; c += INTONLY_CHUNK)
                    pixel(&v, image, i, j, c, end - c < INTONLY_CHUNK ? end - c : INTONLY_CHUNK);
    }
}
