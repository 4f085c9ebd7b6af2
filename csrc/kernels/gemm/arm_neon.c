/* SPDX-License-Identifier: Apache-2.0
 *
 * The gemm step on NEON: packing, gathering, and the walk over rows and channels. gemm/arm_neon_dotprod.c shares all of
 * it but the tile.
 *
 * Weights of 4 or 2 bits are looked up in the tile where a step has one row or two: it waits for memory, and reads half
 * or a quarter of it. Else a stretch of a panel is looked up once, into a buffer that stays in the first-level cache,
 * for up to 8 tiles: for each tile by itself the look-ups would cost a quarter of the products, so they are a few
 * percent of them. Then the codes of all these tiles stand side by side in the buffer, and sums wait in memory.
 */
#include <string.h>

#include "kernels/gemm/arm_neon_tile.h"
#include "kernels/gemm/arm_neon_words.h"
#include "kernels/gemm/book.h"
#include "kernels/packed.h"

static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t panels_of(int64_t channels) { return (channels + NEON_CHANNELS - 1) >> 3; }
/* Return the codes in as many bytes. words: whether a code has 16 bits. */
static int64_t codes_of(int64_t bytes, int64_t words) { return words ? bytes >> 1 : bytes; }
static int64_t blocks_of(int64_t codes) { return (codes + NEON_BLOCK - 1) >> 4; }

/* The depth that packed.h writes at 0 is not needed here; this takes its place. */
typedef struct mark {
    uint8_t careful; /* see gemm/arm_neon_tile.h */
    uint8_t bits;    /* of a stored weight: 8, 4 or 2 */
    uint8_t unused[6];
} mark;

typedef struct layout {
    intonly_packed at;
    int64_t book, weights, panel; /* byte offsets, and bytes of a panel of 8 channels */
} layout;

static layout layout_of(int64_t channels, int64_t codes, int64_t bits) {
    layout l = {.panel = blocks_of(codes) * 16 * bits};
    l.at = intonly_packed_layout(channels, panels_of(channels) * l.panel + 16 + 63);
    l.book = l.at.weights;
    l.weights = (l.book + 16 + 63) & ~INT64_C(63);
    return l;
}

size_t intonly_gemm_size_neon(const intonly_weights *weights) {
    if (weights->acc_limit > INT32_MAX) return 0;
    const int64_t codes = codes_of(weights->taps * weights->tap_bytes, weights->x_words);
    return (size_t)layout_of(weights->channels, codes, book_of(weights).bits).at.bytes;
}

/* Write the weights of a channel; return their sum. careful: set when two of -128 meet (gemm/arm_neon_tile.h). */
static int64_t pack_channel(const intonly_weights *weights, const code_book *book, int64_t c, int log2, uint8_t *to,
                            uint8_t *careful) {
    const int8_t *w = weights->w + c * weights->taps * weights->depth;
    const int64_t tap_codes = codes_of(weights->tap_bytes, weights->x_words);
    int64_t sum = 0;
    for (int64_t tap = 0; tap < weights->taps; ++tap, w += weights->depth) {
        for (int64_t i = 0; i < tap_codes; ++i) {
            const int8_t weight = i < weights->depth ? w[i] : 0;
            const int64_t k = tap * tap_codes + i, inside = (c & 7) << log2 | (k & ((1 << log2) - 1));
            const int64_t at = ((k >> log2) << (log2 + 3)) + inside;
            sum += weight;
            if (book->bits < 8) {
                book_put(book, weight, at & 127, 16 * book->bits, to + (at >> 7) * 16 * book->bits);
                continue;
            }
            to[at] = (uint8_t)weight;
            *careful |= log2 == 4 && (k & 8) && weight == INT8_MIN && to[at - 8] == (uint8_t)weight;
        }
    }
    return sum;
}

void intonly_gemm_pack_neon_width(const intonly_weights *weights, int log2, uint8_t *packed) {
    const code_book book = book_of(weights);
    const int64_t codes = codes_of(weights->taps * weights->tap_bytes, weights->x_words);
    const int raised = !weights->x_signed && !weights->x_words;
    const layout l = layout_of(weights->channels, codes, book.bits);
    if (weights->x_words) log2 = 0;
    mark m = {.careful = book.weight[0] == INT8_MIN, .bits = (uint8_t)book.bits};
    intonly_packed_begin(weights, panels_of(weights->channels) * l.panel + 16 + 63, packed);
    for (int64_t c = 0; c < weights->channels; ++c) {
        const int64_t sum = pack_channel(weights, &book, c, log2, packed + l.weights + (c >> 3) * l.panel, &m.careful);
        const uint32_t bias = (uint32_t)weights->bias[c] + (raised ? (uint32_t)(128 * sum) : 0);
        memcpy(packed + l.at.bias + c * (int64_t)sizeof bias, &bias, sizeof bias);
    }
    memcpy(packed, &m, sizeof m);
    memcpy(packed + l.book, book.weight, sizeof book.weight);
}

void intonly_gemm_pack_neon(const intonly_weights *weights, uint8_t *packed) {
    intonly_gemm_pack_neon_width(weights, 4, packed);
}

int intonly_gemm_accepts_neon(const intonly_gemm *step, const uint8_t *packed) {
    const int64_t limit = step->packed_bytes, bits = limit < (int64_t)sizeof(mark) ? 0 : ((const mark *)packed)->bits;
    if (bits != 8 && bits != 4 && bits != 2) return 0;
    if (!intonly_product_within(step->taps, step->tap_bytes, 4 * limit)) return 0;
    const int64_t codes = codes_of(step->taps * step->tap_bytes, step->x_type == INTONLY_S16);
    if (!intonly_product_within(codes, step->oc, 4 * limit)) return 0;
    const layout l = layout_of(step->oc, codes, bits);
    return l.at.bytes == limit &&
           intonly_packed_constants_hold(packed, &l.at, step->oc, step->form, step->r_ref >= 0);
}

typedef struct gemm {
    const intonly_gemm *step;
    const uint8_t *x, *r; /* r may be null */
    uint8_t *y;
    const int64_t *offsets;
    const uint8_t *packed;
    layout layout;
    int careful;
    int64_t words; /* whether codes have 16 bits */
    int64_t bits;  /* of a stored weight */
    uint8_t flip;  /* what makes a code signed */
    neon_epilogue epilogue;
    neon_multiply multiply;
} gemm;

/* A row: a pixel of y, by image, line and column. */
typedef struct pixel {
    int64_t n, i, j;
} pixel;

static int64_t offset(pixel at, int64_t n, int64_t h, int64_t w) { return at.n * n + at.i * h + at.j * w; }

/* Point the tile to the rows from a pixel on; return the pixel behind them. */
static pixel take(const gemm *g, neon_tile *t, pixel at, int64_t rows) {
    const intonly_gemm *s = g->step;
    t->rows = rows;
    for (int64_t row = 0; row < rows; ++row) {
        t->x[row] = g->x + offset(at, s->x_n, s->x_h, s->x_w);
        t->y[row] = g->y + offset(at, s->y_n, s->y_h, s->y_w);
        t->r[row] = g->r == NULL ? t->x[row] : g->r + offset(at, s->r_n, s->r_h, s->r_w);
        if (++at.j == s->ow) at = at.i + 1 < s->oh ? (pixel){at.n, at.i + 1, 0} : (pixel){at.n + 1, 0, 0};
    }
    return at;
}

/* A byte among the codes of a row. */
typedef struct place {
    int64_t tap, byte;
} place;

/* Copy `count` bytes of a row, from a place on, to the buffer; 0 fills up the last block. Return the place behind. */
static place gather(const gemm *g, const uint8_t *x, place at, int64_t count, uint8_t *to) {
    const int64_t block = NEON_BLOCK * (1 + g->words), last = (count - 1) & ~(block - 1);
    const uint8x16_t flip = vdupq_n_u8(g->flip);
    const uint32_t flip4 = g->flip * UINT32_C(0x01010101);
    for (int64_t i = last; i < last + block; i += 16) vst1q_u8(to + i, vdupq_n_u8(0));
    while (count > 0) {
        const uint8_t *from = x + g->offsets[at.tap] + at.byte;
        const int64_t run = smaller(g->step->tap_bytes - at.byte, count);
        int64_t i = 0;
        for (; i + 16 <= run; i += 16) vst1q_u8(to + i, veorq_u8(vld1q_u8(from + i), flip));
        for (; i < run; i += 4) {
            uint32_t four;
            memcpy(&four, from + i, sizeof four);
            four ^= flip4;
            memcpy(to + i, &four, sizeof four);
        }
        to += run;
        count -= run;
        at.byte += run;
        if (at.byte == g->step->tap_bytes) at = (place){at.tap + 1, 0};
    }
    return at;
}

/* Gather `count` bytes of the rows of a tile, from a place on. Return the place behind. */
static place gather_rows(const gemm *g, const neon_tile *t, place from, int64_t count) {
    place next = from;
    for (int64_t row = 0; row < t->rows; ++row)
        next = gather(g, t->x[row], from, count, (uint8_t *)t->codes + row * NEON_DEPTH);
    return next;
}

/* Point a tile to a panel of channels. */
static void go_to_panel(const gemm *g, neon_tile *t, int64_t panel) {
    t->channel = panel * NEON_CHANNELS;
    t->channels = smaller(g->step->oc - t->channel, NEON_CHANNELS);
    t->start = intonly_packed_int32(g->packed, g->layout.at.bias) + t->channel;
    t->start_step = 0;
}

/* Multiply `count` bytes of codes of a tile, and finish the sums when no more follow. */
static void run_stretch(const gemm *g, neon_tile *t, int64_t count, int is_last) {
    const int64_t y_bytes = intonly_bytes_of(g->step->y_type), r_bytes = intonly_bytes_of(g->step->r_type);
    t->blocks = blocks_of(codes_of(count, g->words));
    t->finish = is_last && g->epilogue.in_registers ? &g->epilogue : NULL;
    g->multiply(t, g->careful);
    if (!is_last || g->epilogue.in_registers) return;
    for (int64_t row = 0; row < t->rows; ++row)
        neon_finish_memory(&g->epilogue, t->sums + row * NEON_CHANNELS, t->channel, 1, t->r[row] + t->channel * r_bytes,
                           t->y[row] + t->channel * y_bytes, t->channels);
}

static const int8_t *weights_of(const gemm *g, int64_t panel) {
    return intonly_packed_int8(g->packed, g->layout.weights) + panel * g->layout.panel;
}

/* Multiply the rows of a tile with a panel of channels; is_first: of those that share what is gathered. */
static void run_panel(const gemm *g, neon_tile *t, int64_t panel, int is_first) {
    const int64_t depth = g->step->taps * g->step->tap_bytes;
    go_to_panel(g, t, panel);
    t->w = weights_of(g, panel);
    place next = {0, 0};
    for (int64_t done = 0; done < depth;) {
        const int64_t count = smaller(depth - done, NEON_DEPTH);
        if (is_first || depth > NEON_DEPTH) next = gather_rows(g, t, next, count);
        done += count;
        run_stretch(g, t, count, done == depth);
        t->w += t->blocks * 16 * t->bits;
        t->start = t->sums;
        t->start_step = NEON_CHANNELS;
    }
}

/* Tiles that share looked-up weights, the bytes of a stretch, and panels that share gathered codes. */
enum { TILES = 8, STRETCH = NEON_DEPTH / TILES, PANELS = 8 };

/* Look up the weights of `blocks` blocks. */
ALWAYS_INLINE void look_up(const int8_t *from, int64_t blocks, int64_t bits, int8x16_t book, int8_t *to) {
    for (int64_t block = 0; block < blocks; ++block, from += 16 * bits, to += NEON_BLOCK * NEON_CHANNELS)
        for (int i = 0; i < NEON_CHANNELS; ++i) vst1q_s8(to + 16 * i, neon_weights(from, bits, book, i));
}

/* Multiply up to TILES tiles with panels panel..end, at most PANELS, whose weights have few bits. */
static void run_looked_up(const gemm *g, neon_tile *tiles, int64_t count, int64_t panel, int64_t end) {
    const int64_t depth = g->step->taps * g->step->tap_bytes;
    const int8x16_t book = vld1q_s8(intonly_packed_int8(g->packed, g->layout.book));
    int32_t sums[PANELS][TILES][NEON_ROWS * NEON_CHANNELS];
    int8_t weights[STRETCH * NEON_CHANNELS];
    place from = {0, 0}, next = from;
    for (int64_t done = 0, now; done < depth; done += now, from = next) {
        now = smaller(depth - done, STRETCH);
        for (int64_t i = 0; i < count; ++i) next = gather_rows(g, &tiles[i], from, now);
        for (int64_t p = panel; p < end; ++p) {
            const int8_t *stored = weights_of(g, p) + codes_of(done, g->words) * g->bits;
            const int64_t blocks = blocks_of(codes_of(now, g->words));
            if (g->bits == 4)
                look_up(stored, blocks, 4, book, weights);
            else
                look_up(stored, blocks, 2, book, weights);
            for (int64_t i = 0; i < count; ++i) {
                neon_tile *t = &tiles[i];
                go_to_panel(g, t, p);
                t->w = weights;
                t->sums = sums[p - panel][i];
                if (done > 0) t->start = t->sums, t->start_step = NEON_CHANNELS;
                run_stretch(g, t, now, done + now == depth);
            }
        }
    }
}

/* Rows of the next tile: 8, or half of what is left before a tile of a row or two would be, which waits for weights. */
static int64_t tile_rows(int64_t left) {
    return left > NEON_ROWS && left < 2 * NEON_ROWS ? (left + 1) >> 1 : smaller(left, NEON_ROWS);
}

/* Run rows from a pixel on against panels panel..end. */
static void run_rows(const gemm *g, pixel at, int64_t rows, int64_t panel, int64_t end) {
    const int looked_up = g->bits < 8 && (rows > NEON_FEW || g->careful);
    int8_t codes[NEON_ROWS * NEON_DEPTH];
    int32_t sums[NEON_ROWS * NEON_CHANNELS];
    neon_tile tiles[TILES];
    while (rows > 0) {
        int64_t count = 0;
        for (; count < (looked_up ? TILES : 1) && rows > 0; ++count) {
            neon_tile *t = &tiles[count];
            at = take(g, t, at, tile_rows(rows));
            t->codes = codes + count * STRETCH;
            t->sums = sums;
            t->bits = looked_up ? 8 : g->bits;
            t->book = intonly_packed_int8(g->packed, g->layout.book);
            rows -= t->rows;
        }
        for (int64_t p = panel; looked_up && p < end; p += PANELS)
            run_looked_up(g, tiles, count, p, smaller(p + PANELS, end));
        for (int64_t p = panel; !looked_up && p < end; ++p) run_panel(g, tiles, p, p == panel);
    }
}

void intonly_gemm_neon_walk(const intonly_gemm *s, uint8_t *const *bases, unsigned part, unsigned parts,
                            neon_multiply multiply) {
    gemm g = {.step = s,
              .x = intonly_at(bases, s->x_ref),
              .r = intonly_at_or_null(bases, s->r_ref),
              .y = intonly_at(bases, s->y_ref),
              .offsets = (const int64_t *)(const void *)intonly_at(bases, s->tap_offsets),
              .packed = intonly_at(bases, s->packed),
              .words = s->x_type == INTONLY_S16,
              .flip = s->x_type == INTONLY_U8 ? 128 : 0,
              .multiply = s->x_type == INTONLY_S16 ? neon_multiply_words : multiply};
    g.careful = ((const mark *)g.packed)->careful;
    g.bits = ((const mark *)g.packed)->bits;
    g.layout = layout_of(s->oc, codes_of(s->taps * s->tap_bytes, g.words), g.bits);
    INTONLY_READ_LIMITS(s, &g.epilogue.law);
    intonly_packed_constants(g.packed, &g.layout.at, g.r != NULL, &g.epilogue.law);
    neon_prepare(&g.epilogue, s->y_type, s->r_type, s->oc);

    /* With few rows the weights outweigh the pixels: each core then keeps its panels in its own cache. */
    const int64_t rows = s->n * s->oh * s->ow, tiles = (rows + NEON_ROWS - 1) >> 3;
    int64_t tile = 0, tile_end = tiles, panel = 0, panel_end = panels_of(s->oc);
    if (tiles < 4 * (int64_t)parts && panel_end >= (int64_t)parts)
        intonly_share(panel_end, part, parts, &panel, &panel_end);
    else
        intonly_share(tiles, part, parts, &tile, &tile_end);

    const int64_t row = tile * NEON_ROWS, row_end = smaller(tile_end * NEON_ROWS, rows);
    const int64_t line = (int64_t)intonly_quotient((uint64_t)row, (uint64_t)s->ow);
    const int64_t n = (int64_t)intonly_quotient((uint64_t)line, (uint64_t)s->oh);
    const pixel start = {n, line - n * s->oh, row - line * s->ow};
    /* Channels first: 64 channels at a time, so that rows are gathered once for as many. */
    const int64_t stride = s->channels_first ? PANELS : panel_end - panel;
    for (int64_t end; panel < panel_end; panel = end) {
        end = smaller(panel + stride, panel_end);
        run_rows(&g, start, row_end - row, panel, end);
    }
}

static void multiply(neon_tile *t, int careful) {
    if (t->bits == 4)
        multiply_rows(t, 0, 4);
    else if (t->bits == 2)
        multiply_rows(t, 0, 2);
    else if (careful)
        multiply_rows(t, 1, 8);
    else
        multiply_rows(t, 0, 8);
}

void intonly_gemm_neon(const void *step, uint8_t *const *bases, unsigned part, unsigned parts) {
    intonly_gemm_neon_walk(step, bases, part, parts, multiply);
}
