/* SPDX-License-Identifier: Apache-2.0
 *
 * Layers with few different weights: at most 16 of them are stored in 4 bits, at most 4 in 2.
 *
 * A kernel reads its weights in groups. Entry i of a group then is a place in the book of the layer, in field i / B of
 * byte i mod B, where a group has B bytes: a shift and a mask make a vector of places, and one shuffle turns it into
 * 8-bit weights. So the pixels meet the same weights whatever the width, and any book is as good as another.
 */
#ifndef INTONLY_GEMM_BOOK_H
#define INTONLY_GEMM_BOOK_H

#include <stdint.h>
#include <string.h>

#include "kernels/kernels.h"

typedef struct code_book {
    int64_t bits;       /* of a stored weight: 8, 4 or 2 */
    int8_t weight[16];  /* of each place, from the smallest on; places without one, and all with 8 bits, have 0 */
    uint8_t place[256]; /* of a weight, by its byte */
} code_book;

/* Return log2 of the weights in a byte, as far as there is one for each byte of x. */
static inline int book_dense(int64_t bits) { return bits >= 8 ? 0 : bits == 4 ? 1 : 2; }

/* Return a book that stores weights as they are. */
static inline code_book book_of_all(void) {
    code_book all;
    memset(&all, 0, sizeof all);
    all.bits = 8;
    return all;
}

/* Find the different weights of a layer. Taps that are rounded up are filled with weights of 0. */
static inline code_book book_of(const intonly_weights *w) {
    code_book book = book_of_all();
    uint8_t seen[256] = {0};
    int count = w->depth != w->tap_bytes, places = 0;
    seen[0] = (uint8_t)count;
    for (int64_t i = 0; i < w->channels * w->taps * w->depth && count <= 16; ++i) {
        const uint8_t byte = (uint8_t)w->w[i];
        count += !seen[byte];
        seen[byte] = 1;
    }
    if (count > 16) return book;
    book.bits = count > 4 ? 4 : 2;
    for (int value = INT8_MIN; value <= INT8_MAX; ++value) {
        if (!seen[(uint8_t)value]) continue;
        book.place[(uint8_t)value] = (uint8_t)places;
        book.weight[places++] = (int8_t)value;
    }
    return book;
}

/* Write a weight, 4 or 2 bits, as an entry of a group of `bytes` bytes, which was 0. */
static inline void book_put(const code_book *book, int8_t weight, int64_t entry, int64_t bytes, uint8_t *group) {
    int shift = 0;
    for (; entry >= bytes; entry -= bytes) shift += (int)book->bits;
    group[entry] |= (uint8_t)(book->place[(uint8_t)weight] << shift);
}

#endif
