/* SPDX-License-Identifier: Apache-2.0
 *
 * attention with AVX2, by tiles of products.
 */
#include "kernels/attention/x86_avx2.h"

#include "kernels/contract/x86_avx2_tile.h"

#include "kernels/attention/tiles.h"

void intonly_attention_avx2(const void *step, uint8_t *const *bases, unsigned part, unsigned parts) {
    attention_by_tiles(step, bases, part, parts);
}
