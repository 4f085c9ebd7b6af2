/* SPDX-License-Identifier: Apache-2.0
 *
 * copy in plain C: whole rows where both sides are contiguous and of one type, else element by element.
 */
#include "kernels/copy/copy.h"

#include <string.h>

#include "kernels/elements.h"
#include "kernels/walk.h"

enum { A, Y };

void intonly_copy_ref(const void *step, uint8_t *const *bases, unsigned part, unsigned parts) {
    const intonly_copy *s = (const intonly_copy *)step;
    const uint8_t *a = intonly_at(bases, s->a_ref);
    uint8_t *y = intonly_at(bases, s->y_ref);
    const int64_t a_stride = s->a_strides[INTONLY_LAST], y_stride = s->y_strides[INTONLY_LAST];
    const int64_t bytes = intonly_bytes_of(s->y_type);
    const int whole_rows = s->a_type == s->y_type && a_stride == bytes && y_stride == bytes;

    intonly_walk walk;
    walk.extent = s->extent;
    walk.operands = 0;
    intonly_walk_operand(&walk, s->a_strides); /* A */
    intonly_walk_operand(&walk, s->y_strides); /* Y */
    for (intonly_walk_start(&walk, part, parts); walk.rows > 0; intonly_walk_next(&walk)) {
        const uint8_t *source = a + walk.offset[A] + walk.first * a_stride;
        uint8_t *target = y + walk.offset[Y] + walk.first * y_stride;
        const int64_t length = walk.end - walk.first;
        if (whole_rows) {
            memmove(target, source, (size_t)(length * bytes));
            continue;
        }
        for (int64_t i = 0; i < length; i += INTONLY_CHUNK) {
            int64_t values[INTONLY_CHUNK];
            const int64_t count = length - i < INTONLY_CHUNK ? length - i : INTONLY_CHUNK;
            intonly_load(source + i * a_stride, s->a_type, a_stride, count, values);
            intonly_store(values, count, target + i * y_stride, s->y_type, y_stride);
        }
    }
}
