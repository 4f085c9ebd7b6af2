/* SPDX-License-Identifier: Apache-2.0
 *
 * The pixels of an area, up to BYTES channels of them: products by any taps, by 3 x 3 taps that neighbours share, and
 * maxima. Written for vectors of BYTES bytes (kernels/x86_avx512.h). Half a vector takes its weights from the first two
 * lanes of whole ones.
 */
#if defined(__AVX512VNNI__) && defined(BYTES)

/* Four vectors in slot order. */
typedef struct NAME(quad) {
    VECTOR a, b, c, d;
} NAME(quad);

ALWAYS_INLINE VECTOR NAME(channels_at)(const uint8_t *p, int64_t channels) {
    return channels == BYTES ? LOAD(p) : OP(maskz_loadu_epi8)((MASK)first_bytes(channels), p);
}

/* Return the codes of four taps side by side. */
ALWAYS_INLINE NAME(quad) NAME(interleave)(VECTOR t0, VECTOR t1, VECTOR t2, VECTOR t3) {
    const VECTOR lo01 = OP(unpacklo_epi8)(t0, t1), hi01 = OP(unpackhi_epi8)(t0, t1);
    const VECTOR lo23 = OP(unpacklo_epi8)(t2, t3), hi23 = OP(unpackhi_epi8)(t2, t3);
    return (NAME(quad)){OP(unpacklo_epi16)(lo01, lo23), OP(unpackhi_epi16)(lo01, lo23),
                        OP(unpacklo_epi16)(hi01, hi23), OP(unpackhi_epi16)(hi01, hi23)};
}

ALWAYS_INLINE NAME(quad) NAME(load_quad)(const void *p) {
    const uint8_t *bytes = p;
    return (NAME(quad)){LOAD(bytes), LOAD(bytes + 64), LOAD(bytes + 128), LOAD(bytes + 192)};
}

ALWAYS_INLINE NAME(quad) NAME(dot)(NAME(quad) acc, NAME(quad) codes, NAME(quad) w) {
    return (NAME(quad)){OP(dpbusd_epi32)(acc.a, codes.a, w.a), OP(dpbusd_epi32)(acc.b, codes.b, w.b),
                        OP(dpbusd_epi32)(acc.c, codes.c, w.c), OP(dpbusd_epi32)(acc.d, codes.d, w.d)};
}

ALWAYS_INLINE NAME(quad) NAME(add_group)(NAME(quad) acc, const uint8_t *x, const int64_t *offsets, int64_t channels,
                                         const int8_t *w) {
    const NAME(quad) codes =
        NAME(interleave)(NAME(channels_at)(x + offsets[0], channels), NAME(channels_at)(x + offsets[1], channels),
                         NAME(channels_at)(x + offsets[2], channels), NAME(channels_at)(x + offsets[3], channels));
    return NAME(dot)(acc, codes, NAME(load_quad)(w));
}

/* Return the sum of the products of all taps. */
ALWAYS_INLINE NAME(quad) NAME(add_taps)(const window *v, const window_area *a, const uint8_t *x, int64_t channels) {
    const int8_t *w = a->weights;
    NAME(quad) acc = NAME(load_quad)(a->constants->narrow.bias);
    for (int64_t group = 0; group < v->groups; ++group, w += v->weights_step)
        acc = NAME(add_group)(acc, x, v->offsets + 4 * group, channels, w);
    return v->has_last_group ? NAME(add_group)(acc, x, v->last_group, channels, a->last_weights) : acc;
}

/* Any taps. channels: a->channels, which the compiler may know. */
ALWAYS_INLINE void NAME(run_any)(const window *v, const window_area *a, int64_t channels) {
    const intonly_window *s = v->step;
    const narrow_constants *k = &a->constants->narrow;
    const NAME(narrow_scalars) n = NARROW_SCALARS(BYTES, s, &v->summary);
    for (int64_t i = 0; i < a->lines; ++i) {
        for (int64_t j = 0; j < a->pixels; ++j) {
            const NAME(quad) acc = NAME(add_taps)(v, a, a->x + i * s->x_h + j * s->x_w, channels);
            NAME(narrow_pair) u = NAME(narrow_scale)(&n, k, acc.a, acc.b, acc.c, acc.d);
            if (v->joins)
                u = NAME(narrow_join)(&n, k, u, NAME(channels_at)(a->residual + i * s->r_h + j * s->r_w, channels));
            OP(mask_storeu_epi8)
            (a->y + i * s->y_h + j * s->y_w, (MASK)first_bytes(channels), NAME(narrow_codes)(&n, u));
        }
    }
}

static void NAME(window_any)(const window *v, const window_area *a) {
    if (a->channels == BYTES)
        NAME(run_any)(v, a, BYTES);
    else
        NAME(run_any)(v, a, a->channels);
}

/* 3 x 3 taps. A column of three codes is interleaved once, and serves up to three pixels: c0, c1 and c2 are the present
 * columns in some order. The fourth code of a group is that of the third row once more; its weight is 0. */
#define COLUMN(c)                                                                                                      \
    {                                                                                                                  \
        const VECTOR bottom = NAME(channels_at)(x + 2 * down, channels);                                               \
        c = NAME(interleave)(NAME(channels_at)(x, channels), NAME(channels_at)(x + down, channels), bottom, bottom);   \
        x += right;                                                                                                    \
    }
#define PIXEL(first, second, third)                                                                                    \
    {                                                                                                                  \
        const NAME(quad) sum = NAME(dot)(NAME(dot)(NAME(load_quad)(k->bias), first, w0), second, w1);                  \
        const NAME(quad) acc = NAME(dot)(sum, third, w2);                                                              \
        const NAME(narrow_pair) u = NAME(narrow_scale)(n, k, acc.a, acc.b, acc.c, acc.d);                              \
        OP(mask_storeu_epi8)(y, (MASK)first_bytes(channels), NAME(narrow_codes)(n, u));                                \
        y += y_w;                                                                                                      \
    }

/* step: the columns between pixels, 1 or 2. */
ALWAYS_INLINE void NAME(run_columns)(const window *v, const window_area *a, const NAME(narrow_scalars) * n,
                                     int64_t channels, int step) {
    const intonly_window *s = v->step;
    const int64_t right = v->offsets[4] - v->offsets[0], down = v->offsets[1] - v->offsets[0], y_w = s->y_w;
    const narrow_constants *k = &a->constants->narrow;
    const NAME(quad) w0 = NAME(load_quad)(a->weights), w1 = NAME(load_quad)(a->weights + 256);
    const NAME(quad) w2 = NAME(load_quad)(a->weights + 512);
    for (int64_t i = 0; i < a->lines; ++i) {
        const uint8_t *x = a->x + i * s->x_h + v->offsets[0];
        uint8_t *y = a->y + i * s->y_h;
        int64_t left = a->pixels;
        NAME(quad) c0, c1, c2;
        COLUMN(c0)
        if (step == 1) {
            COLUMN(c1)
            for (; left >= 3; left -= 3) {
                COLUMN(c2) PIXEL(c0, c1, c2)
                COLUMN(c0) PIXEL(c1, c2, c0)
                COLUMN(c1) PIXEL(c2, c0, c1)
            }
            if (left >= 1) {
                COLUMN(c2) PIXEL(c0, c1, c2)
            }
            if (left >= 2) {
                COLUMN(c0) PIXEL(c1, c2, c0)
            }
        } else {
            for (; left >= 2; left -= 2) {
                COLUMN(c1) COLUMN(c2) PIXEL(c0, c1, c2)
                COLUMN(c1) COLUMN(c0) PIXEL(c2, c1, c0)
            }
            if (left >= 1) {
                COLUMN(c1) COLUMN(c2) PIXEL(c0, c1, c2)
            }
        }
    }
}
#undef COLUMN
#undef PIXEL

ALWAYS_INLINE void NAME(window_3x3)(const window *v, const window_area *a, int step) {
    NAME(narrow_scalars) n = NARROW_SCALARS(BYTES, v->step, &v->summary);
    if (NAME(narrow_is_most_common)(&n) && a->channels == BYTES) {
        NAME(narrow_most_common)(&n);
        NAME(run_columns)(v, a, &n, BYTES, step);
    } else {
        NAME(run_columns)(v, a, &n, a->channels, step);
    }
}

static void NAME(window_3x3_by_1)(const window *v, const window_area *a) { NAME(window_3x3)(v, a, 1); }
static void NAME(window_3x3_by_2)(const window *v, const window_area *a) { NAME(window_3x3)(v, a, 2); }

/* The largest code of any taps. */
static void NAME(window_maxima)(const window *v, const window_area *a) {
    const intonly_window *s = v->step;
    for (int64_t i = 0; i < a->lines; ++i) {
        for (int64_t j = 0; j < a->pixels; ++j) {
            const uint8_t *x = a->x + i * s->x_h + j * s->x_w;
            VECTOR most = NAME(channels_at)(x + v->offsets[0], a->channels);
            for (int64_t t = 1; t < s->taps; ++t)
                most = OP(max_epu8)(most, NAME(channels_at)(x + v->offsets[t], a->channels));
            OP(mask_storeu_epi8)(a->y + i * s->y_h + j * s->y_w, (MASK)first_bytes(a->channels), most);
        }
    }
}

#endif
