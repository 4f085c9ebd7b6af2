/* SPDX-License-Identifier: Apache-2.0
 *
 * map with NEON: any.h on vectors.
 */
#include "kernels/map/arm_neon.h"

#include "kernels/map/any.h"

void intonly_map_neon(const void *step, uint8_t *const *bases, unsigned part, unsigned parts) {
    map_any(step, bases, part, parts);
}
