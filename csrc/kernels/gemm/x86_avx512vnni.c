/* SPDX-License-Identifier: Apache-2.0
 *
 * The gemm step on AVX-512 VNNI: packs the constants, and drives the tiles over rows and panels.
 *
 * x is uint8, the first operand of vpdpbusd; weights are the signed second one. Or x is int16, and vpdpwssd takes the
 * same places with half as many codes. Sums are formed modulo 2^32, and the
 * certificate says that they fit.
 */
#include "kernels/gemm/x86_avx512vnni_tiles.h"

#include <string.h>

#include "kernels/packed.h"

/* How the weights of a layer are stored. */
typedef struct stored {
    gemm_head head;
    int lift; /* of all weights; with 8 bits each channel has its own */
    code_book book;
} stored;

/* Return the largest lift, up to what some channel wants, that weights and sums of all channels have room for. */
static int common_lift(const intonly_weights *w, int lo, int hi) {
    int wanted = 0, lift = 0, most = 0;
    if (w->form != INTONLY_FORM_NARROW) return 0;
    for (int64_t c = 0; c < w->channels; ++c) {
        if (-w->shift[c] > wanted) wanted = -w->shift[c];
        if (w->shift[c] > most) most = w->shift[c];
    }
    while (lift < wanted && lo * (2 << lift) >= INT8_MIN && hi * (2 << lift) <= INT8_MAX &&
           (w->acc_limit + (INT64_C(1) << most)) * (2 << lift) <= INT32_MAX)
        ++lift;
    return lift;
}

/* A layer without a panel of 64 channels keeps 8 bits: a look-up serves few rows there, and the layer is small. */
static stored how_stored(const intonly_weights *w) {
    stored s;
    memset(&s, 0, sizeof s);
    s.book = gemm_vectors(w->channels) < 4 || w->x_words ? book_of_all() : book_of(w);
    s.head.bits = w->x_words ? 16 : s.book.bits;
    if (s.book.bits == 8) return s;
    int lo = 0, hi = 0;
    for (int place = 0; place < 16; ++place) {
        lo = s.book.weight[place] < lo ? s.book.weight[place] : lo;
        hi = s.book.weight[place] > hi ? s.book.weight[place] : hi;
    }
    s.lift = common_lift(w, lo, hi);
    for (int place = 0; place < 16; ++place) s.head.book[place] = (int8_t)(s.book.weight[place] * (1 << s.lift));
    return s;
}

/* Return whether residuals of at most 16 bits join short: see gemm_head. */
static int joins_short(const intonly_weights *w) {
    if (w->form != INTONLY_FORM_WIDE || w->residual_multiplier == NULL) return 0;
    for (int64_t c = 0; c < w->channels; ++c) {
        const int64_t m = w->multiplier[c], m_r = w->residual_multiplier[c], s = w->shift[c];
        if (s > 44) return 0;
        const uint64_t own = (uint64_t)w->acc_limit * (uint64_t)(m < 0 ? -m : m);
        const uint64_t joining = (uint64_t)(m_r < 0 ? -m_r : m_r) << 17; /* 16 bits, minus a zero point of 16 bits */
        const uint64_t moved = UINT64_C(3) << (s + 15); /* a zero point of 16 bits and the rounding */
        if (own + joining > INT64_MAX - moved || (own + joining + moved) >> s >= UINT64_C(1) << 30) return 0;
    }
    return 1;
}

/* Return whether a step joins a residual in the wide form, and y and the zero points have 16 bits. */
static int joins_words(const intonly_gemm *s) {
    const int64_t limit = UINT16_MAX;
    return s->form == INTONLY_FORM_WIDE && s->r_ref >= 0 && (s->y_type == INTONLY_S16 || s->y_type == INTONLY_U16) &&
           s->zero_point >= -limit && s->zero_point <= limit && s->residual_zero >= -limit && s->residual_zero <= limit;
}

size_t intonly_gemm_size_avx512vnni(const intonly_weights *weights) {
    if (weights->x_signed || weights->acc_limit > INT32_MAX) return 0;
    const int64_t bits = how_stored(weights).head.bits;
    return (size_t)gemm_bytes(weights->channels, weights->taps * weights->tap_bytes, bits);
}

/* Return the byte, after the packs, of channel `c` of a panel: each lane holds 4 * vectors channels of a row. */
static int64_t byte_of_channel(int64_t c, int64_t vectors) {
    const int64_t lane = vectors == 4 ? c >> 4 : vectors == 2 ? c >> 3 : c >> 2;
    return 16 * lane + (c & (4 * vectors - 1));
}

/* Write the weights of one channel, whose first is entry `first` of each group of four codes. */
static void pack_weights(const intonly_weights *weights, const stored *s, int64_t channel, int lift, int64_t vectors,
                         int64_t first, uint8_t *to) {
    const int64_t group = 64 * vectors >> book_dense(s->book.bits);
    const int8_t *w = weights->w + channel * weights->taps * weights->depth;
    if (weights->x_words) {
        for (int64_t tap = 0; tap < weights->taps; ++tap, w += weights->depth)
            for (int64_t i = 0; i < weights->depth; ++i) {
                const int64_t k = tap * weights->tap_bytes + 2 * i;
                const int16_t weight = (int16_t)(w[i] * (1 << lift));
                memcpy(to + (k >> 2) * group + first + (k & 2), &weight, sizeof weight);
            }
        return;
    }
    for (int64_t tap = 0; tap < weights->taps; ++tap, w += weights->depth)
        for (int64_t i = 0; i < weights->tap_bytes; ++i) {
            const int8_t weight = i < weights->depth ? w[i] : 0;
            const int64_t entry = first + (i & 3), k = tap * weights->tap_bytes + i;
            uint8_t *at = to + (k >> 2) * group;
            if (s->book.bits == 8)
                at[entry] = (uint8_t)(weight * (1 << lift));
            else
                book_put(&s->book, weight, entry, group, at);
        }
}

void intonly_gemm_pack_avx512vnni(const intonly_weights *weights, uint8_t *packed) {
    const int64_t k = weights->taps * weights->tap_bytes;
    stored s = how_stored(weights);
    memset(packed, 0, (size_t)gemm_bytes(weights->channels, k, s.head.bits));
    s.head.summary = narrow_summarize(weights);
    s.head.summary.left = 0;
    s.head.joins_short = joins_short(weights);
    const int in_order = weights->form != INTONLY_FORM_NARROW;
    for (int64_t i = 0; i < gemm_panels(weights->channels); ++i) {
        const gemm_panel p = gemm_panel_of(packed, i, weights->channels, k, s.head.bits);
        uint8_t *panel = packed + ((const uint8_t *)p.constants - packed);
        panel_constants *constants = (panel_constants *)(void *)panel;
        for (int64_t c = 0; c < p.channels; ++c) {
            const int64_t byte = byte_of_channel(c, p.vectors), channel = p.channel + c;
            const int lift = s.head.bits >= 8 ? narrow_lift(weights, channel) : s.lift;
            plain_pack(weights, channel, lift, c, &constants->plain);
            if (in_order) constants->narrow.bias[c] = weights->bias[channel];
            for (int64_t copy = 0; !in_order && copy < 16; copy += 4 * p.vectors) /* each row of a unit has its own */
                narrow_pack(weights, channel, lift, byte + copy, &constants->narrow);
            pack_weights(weights, &s, channel, lift, p.vectors, 4 * (in_order ? c : slot_of_byte(byte)),
                         (uint8_t *)(constants + 1));
            s.head.summary.left |= weights->form == INTONLY_FORM_NARROW && constants->plain.shift[c] < 0;
        }
    }
    memcpy(packed, &s.head, sizeof s.head);
}

int intonly_gemm_accepts_avx512vnni(const intonly_gemm *step, const uint8_t *packed) {
    const gemm_head *head = (const gemm_head *)(const void *)packed;
    const int64_t limit = step->packed_bytes;
    if ((step->tap_bytes & 3) || limit < PACKED_HEAD || !narrow_summary_holds(&head->summary)) return 0;
    if (head->bits != 16 && head->bits != 8 && head->bits != 4 && head->bits != 2) return 0;
    if (step->x_type != (head->bits == 16 ? INTONLY_S16 : INTONLY_U8)) return 0;
    if (!intonly_product_within(step->taps, step->tap_bytes, 4 * limit)) return 0;
    const int64_t k = step->taps * step->tap_bytes;
    if (!intonly_product_within(k, step->oc, 4 * limit) || gemm_bytes(step->oc, k, head->bits) != limit) return 0;
    for (int64_t i = 0; i < gemm_panels(step->oc); ++i) {
        const gemm_panel p = gemm_panel_of(packed, i, step->oc, k, head->bits);
        if (!plain_constants_hold(&p.constants->plain, p.channels, step->form, step->r_ref >= 0)) return 0;
    }
    return 1;
}

static void gemm_finish_plain(const gemm *g, const gemm_panel *p, int64_t first, int64_t rows, const int32_t *acc) {
    const intonly_gemm *s = g->step;
    plain_end end = {.y_type = s->y_type, .residual_type = s->r_type, .in_order = s->form != INTONLY_FORM_NARROW};
    INTONLY_READ_LIMITS(s, &end.law);
    plain_end_constants(&end, &p->constants->plain, g->residual);
    for (int64_t row = first; row < first + rows && row < g->rows.count; ++row, acc += 16 * p->vectors) {
        const uint8_t *residual = NULL;
        if (g->residual) residual = g->rows.residual[row] + p->channel * intonly_bytes_of(s->r_type);
        uint8_t *y = g->rows.y[row] + p->channel * intonly_bytes_of(s->y_type);
        plain_finish(&end, acc, p->vectors, p->channels, residual, y);
    }
}

/* A place in a walk over the rows, the pixels of y: offsets of the line, and of its image. */
typedef struct cursor {
    int64_t i, j;
    int64_t x_image, x_line, y_image, y_line, r_image, r_line;
} cursor;

static void go_to_line(const intonly_gemm *s, cursor *at, int64_t i) {
    at->i = i;
    at->j = 0;
    at->x_line = at->x_image + i * s->x_h;
    at->y_line = at->y_image + i * s->y_h;
    at->r_line = at->r_image + i * s->r_h;
}

static cursor go_to_row(const intonly_gemm *s, int64_t row) {
    if (row == 0) return (cursor){.i = 0};
    const int64_t line = (int64_t)intonly_quotient((uint64_t)row, (uint64_t)s->ow);
    const int64_t n = (int64_t)intonly_quotient((uint64_t)line, (uint64_t)s->oh);
    cursor at = {.x_image = n * s->x_n, .y_image = n * s->y_n, .r_image = n * s->r_n};
    go_to_line(s, &at, line - n * s->oh);
    at.j = row - line * s->ow;
    return at;
}

static void go_to_next_line(const intonly_gemm *s, cursor *at) {
    if (at->i + 1 < s->oh) {
        go_to_line(s, at, at->i + 1);
    } else {
        at->x_image += s->x_n;
        at->y_image += s->y_n;
        at->r_image += s->r_n;
        go_to_line(s, at, 0);
    }
}

/* Write `count` pointers that are `stride` apart, and up to 7 more. */
static void spread(const void *to, const uint8_t *start, __m512i eight, int64_t stride, int64_t count) {
    __m512i p = _mm512_add_epi64(_mm512_set1_epi64((int64_t)(uintptr_t)start), eight);
    const __m512i next = _mm512_set1_epi64(8 * stride);
    for (int64_t i = 0; i < count; i += 8, p = _mm512_add_epi64(p, next)) _mm512_storeu_si512((uint8_t *)to + 8 * i, p);
}

/* Take the next `count` rows. */
static void take(gemm *g, cursor *at, int64_t count) {
    const intonly_gemm *s = g->step;
    gemm_rows *b = &g->rows;
    b->count = count;
    for (int64_t row = 0; row < count;) {
        const int64_t left = count - row, run = left < s->ow - at->j ? left : s->ow - at->j;
        spread(b->x + row, g->x + at->x_line + at->j * s->x_w, g->x_eight, s->x_w, run);
        spread(b->y + row, g->y + at->y_line + at->j * s->y_w, g->y_eight, s->y_w, run);
        if (g->residual) spread(b->residual + row, g->r + at->r_line + at->j * s->r_w, g->r_eight, s->r_w, run);
        row += run;
        at->j += run;
        if (at->j == s->ow) go_to_next_line(s, at);
    }
    for (int64_t row = count; row & 3; ++row) {
        b->x[row] = b->x[count - 1];
        b->y[row] = b->y[count - 1];
        if (g->residual) b->residual[row] = b->residual[count - 1];
    }
}

/* Rows of the next block: 24, and less before the end, so that no tile is left with a row or two: such a tile waits
 * for its weights. */
static int64_t block_rows(int64_t left) { return left > 36 ? GEMM_ROWS : left > 24 ? 12 : left; }

/* Fetch the next panel, or the first of the next layer, into the second-level cache bit by bit: where weights come from
 * farther away, the first tile of a panel would wait for them. */
static void fetch_ahead(gemm *g) {
    const uint8_t *at = g->ahead, *end = g->ahead_end - at > g->ahead_bytes ? at + g->ahead_bytes : g->ahead_end;
    for (; at < end; at += 64) _mm_prefetch((const char *)at, _MM_HINT_T1);
    g->ahead = at;
}

/* Run the rows against the panel; the last two tiles are of about one size. */
static void run_block(gemm *g) {
    const int64_t log2 = g->panel.vectors >> 1, per = 4 >> log2, most = gemm_most_units[log2];
    const gemm_tile *const tiles = gemm_tiles[g->tiles][log2];
    int64_t units = (g->rows.count + per - 1) >> (2 - log2);
    for (int64_t first = 0; units > 0;) {
        const int64_t now = units >= 2 * most ? most : units > most ? (units + 1) >> 1 : units;
        fetch_ahead(g);
        tiles[now - 1](g, first);
        first += now * per;
        units -= now;
    }
}

/* Run the rows against some panels. */
static void run_panels(gemm *g, int64_t panel, int64_t end) {
    const intonly_gemm *s = g->step;
    const int64_t k = s->taps * s->tap_bytes, whole = s->oc >> 6, last = end < whole ? end : whole;
    const int by_two = g->rows.count == 1;
    while (panel < end) {
        g->panel = gemm_panel_of(g->packed, panel, s->oc, k, g->bits);
        if (g->end == GEMM_JOINED_WIDE)
            for (int v = 0; v < g->panel.vectors; ++v) g->join[v] = join_columns_at(&g->panel.constants->plain, 16 * v, g->residual_zero, s->zero_point);
        if (by_two && panel + 2 <= last) {
            gemm_rows_by_2[g->tiles](g, (int64_t)sizeof(panel_constants) + (64 * k >> g->dense));
            panel += 2;
        } else {
            run_block(g);
            ++panel;
        }
    }
}

static void run_part(gemm *g, int64_t row, int64_t row_end, int64_t panel, int64_t panel_end) {
    const cursor start = go_to_row(g->step, row);
    /* Rows of one block are taken once. */
    const int64_t each = g->step->channels_first && row_end - row > GEMM_ROWS ? 1 : panel_end - panel;
    const int64_t k = g->step->taps * g->step->tap_bytes, panel_bytes = (int64_t)sizeof(panel_constants) + (64 * k >> g->dense);
    g->ahead_bytes = (int64_t)intonly_quotient((uint64_t)(panel_bytes * 8), (uint64_t)(row_end - row)) + 64;
    for (; panel < panel_end; panel += each) {
        cursor at = start;
        g->ahead = g->next;
        g->ahead_end = g->next + g->step->ahead_bytes;
        if (panel + each < panel_end) {
            const uint8_t *const end = g->packed + g->step->packed_bytes;
            g->ahead = g->packed + PACKED_HEAD + (panel + 1) * panel_bytes;
            g->ahead_end = end - g->ahead > panel_bytes ? g->ahead + panel_bytes : end;
        }
        for (int64_t left = row_end - row; left > 0; left -= g->rows.count) {
            take(g, &at, block_rows(left));
            run_panels(g, panel, panel + each);
        }
    }
}

/* Return the offsets of eight neighbours. */
static __m512i eight(int64_t stride) {
    return _mm512_mullo_epi64(_mm512_set1_epi64(stride), _mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7));
}

/* Return the rows and panels of a part. With few rows the weights outweigh the pixels: each core then keeps its panels
 * in its own cache, unless that leaves one of them with far more work than the others. */
static void share(int64_t rows, int64_t channels, unsigned part, unsigned parts, int64_t *row, int64_t *row_end,
                  int64_t *panel, int64_t *panel_end) {
    const int few = rows < 96 * (int64_t)parts;
    const int64_t panels = *panel_end, unit = few ? 2 : 6, units = few ? (rows + 1) / 2 : (rows + 5) / 6;
    const int64_t by_panels = intonly_largest_share(channels, 64, panels, parts) * rows;
    const int64_t by_rows = intonly_largest_share(rows, unit, units, parts) * channels;
    if (few && panels >= parts && by_panels - (by_panels >> 3) <= by_rows) {
        intonly_share(panels, part, parts, panel, panel_end);
    } else {
        intonly_share(units, part, parts, row, row_end);
        *row *= unit;
        *row_end = unit * *row_end < rows ? unit * *row_end : rows;
    }
}

void intonly_gemm_avx512vnni(const void *step, uint8_t *const *bases, unsigned part, unsigned parts) {
    const intonly_gemm *s = step;
    const int64_t rows = s->n * s->oh * s->ow, panels = gemm_panels(s->oc);
    const int64_t residual_type = s->r_ref < 0 ? -1 : s->r_type;
    gemm g;
    g.step = s;
    g.taps = (const int64_t *)(const void *)intonly_at(bases, s->tap_offsets);
    g.packed = intonly_at(bases, s->packed);
    g.x = intonly_at(bases, s->x_ref);
    g.y = intonly_at(bases, s->y_ref);
    g.next = intonly_at(bases, s->ahead);
    g.r = intonly_at_or_null(bases, s->r_ref);
    g.x_eight = eight(s->x_w);
    g.y_eight = eight(s->y_w);
    g.r_eight = eight(s->r_w);
    g.residual = s->r_ref >= 0;
    g.bare = s->oc == 16 || s->oc == 32;
    g.tap_count = s->taps;
    g.tap_bytes = s->tap_bytes;
    const gemm_head *head = (const gemm_head *)(const void *)g.packed;
    const narrow_summary *summary = &head->summary;
    g.bits = head->bits;
    g.dense = book_dense(head->bits);
    g.tiles = head->bits == 16 ? GEMM_WORDS : g.dense;
    g.book = _mm512_broadcast_i32x4(_mm_loadu_si128((const void *)head->book));
    if (s->form == INTONLY_FORM_NARROW &&
        narrow_fits(summary, s->y_type, s->zero_point, s->fraction_bits, residual_type, s->residual_zero)) {
        g.narrow = NARROW_SCALARS(64, s, summary);
        g.end = !narrow_is_most_common_64(&g.narrow) ? GEMM_ANY_CODES : g.residual ? GEMM_JOINED_CODES : GEMM_CODES;
    } else {
        memset(&g.narrow, 0, sizeof g.narrow);
        g.end = GEMM_PLAIN;
    }
    if (head->joins_short && joins_words(s)) {
        const int has_16 = s->r_type >= INTONLY_S16, flips = s->r_type == INTONLY_U8 || s->r_type == INTONLY_U16;
        g.end = GEMM_JOINED_WIDE;
        g.residual_zero = s->residual_zero - (flips ? has_16 ? 1 << 15 : 1 << 7 : 0);
        g.wide = (join_scalars){.flip = _mm256_set1_epi16((int16_t)(flips ? has_16 ? INT16_MIN : INT8_MIN : 0)),
                                .lo = _mm512_set1_epi32((int32_t)s->lo),
                                .hi = _mm512_set1_epi32((int32_t)s->hi),
                                .words = has_16};
    }
    int64_t row = 0, row_end = rows, panel = 0, panel_end = panels;
    if (parts > 1) share(rows, s->oc, part, parts, &row, &row_end, &panel, &panel_end);
    if (row < row_end && panel < panel_end) run_part(&g, row, row_end, panel, panel_end);
}
