/* SPDX-License-Identifier: Apache-2.0
 *
 * attention with NEON, by tiles of products.
 */
#include "kernels/attention/arm_neon.h"

#include "kernels/contract/arm_neon_tile.h"

#include "kernels/attention/tiles.h"

void intonly_attention_neon(const void *step, uint8_t *const *bases, unsigned part, unsigned parts) {
    attention_by_tiles(step, bases, part, parts);
}
