/* SPDX-License-Identifier: Apache-2.0
 *
 * gather in plain C. The certificate proves that every index lies inside.
 */
#include "kernels/gather/gather.h"

#include <string.h>

#include "kernels/elements.h"
#include "kernels/kernels.h"

void intonly_gather_ref(const void *step, uint8_t *const *bases, unsigned part, unsigned parts) {
    const intonly_gather *s = (const intonly_gather *)step;
    const uint8_t *a = intonly_at(bases, s->a_ref);
    const uint8_t *indices = intonly_at(bases, s->index_ref);
    uint8_t *y = intonly_at(bases, s->y_ref);
    const int64_t index_bytes = intonly_bytes_of(s->index_type);
    int64_t first = 0, end = 0;
    intonly_share(s->outer * s->count, part, parts, &first, &end);
    for (int64_t i = 0, top = 0; i < s->outer; ++i, top += s->count) {
        const int64_t to = end - top < s->count ? end - top : s->count;
        for (int64_t k = first > top ? first - top : 0; k < to; ++k) {
            int64_t index = 0;
            intonly_load(indices + k * index_bytes, s->index_type, index_bytes, 1, &index);
            const int64_t row = i * s->rows + (int64_t)intonly_index((uint64_t)index, s->rows);
            memmove(y + (top + k) * s->row_bytes, a + row * s->row_bytes, (size_t)s->row_bytes);
        }
    }
}
