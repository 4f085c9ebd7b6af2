/* SPDX-License-Identifier: Apache-2.0
 *
 * halo in plain C.
 */
#include "kernels/halo/halo.h"

#include <string.h>

#include "kernels/kernels.h"

/* Write `pixels` margin pixels. */
static void fill(uint8_t *target, int64_t pixels, const uint8_t *pattern, int64_t pixel_bytes, int one_value) {
    if (one_value) {
        memset(target, pattern[0], (size_t)(pixels * pixel_bytes));
    } else {
        for (int64_t j = 0; j < pixels; ++j) memcpy(target + j * pixel_bytes, pattern, (size_t)pixel_bytes);
    }
}

void intonly_halo_ref(const void *step, uint8_t *const *bases, unsigned part, unsigned parts) {
    const intonly_halo *s = (const intonly_halo *)step;
    uint8_t *x = intonly_at(bases, s->x_ref);
    const uint8_t *pattern = intonly_at(bases, s->pattern);
    const int64_t bytes = s->pixel_bytes, height = s->top + s->h + s->bottom, width = s->left + s->w + s->right;
    int one_value = 1;
    for (int64_t k = 1; k < bytes; ++k) one_value &= pattern[k] == pattern[0];

    int64_t first = 0, end = 0;
    intonly_share(s->n * height, part, parts, &first, &end);
    for (int64_t image = 0, above = 0; image < s->n; ++image, above += height) {
        const int64_t to = end - above < height ? end - above : height;
        for (int64_t i = first > above ? first - above : 0; i < to; ++i) {
            uint8_t *row = x + image * s->x_n + (i - s->top) * s->x_h;
            if (i < s->top || i >= s->top + s->h) {
                fill(row - s->left * bytes, width, pattern, bytes, one_value);
            } else {
                fill(row - s->left * bytes, s->left, pattern, bytes, one_value);
                fill(row + s->w * bytes, s->right, pattern, bytes, one_value);
            }
        }
    }
}
