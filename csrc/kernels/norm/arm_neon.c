/* SPDX-License-Identifier: Apache-2.0
 *
 * norm with NEON: the loops of any.h on vectors.
 */
#include "kernels/norm/arm_neon.h"

#include "kernels/norm/any.h"

void intonly_norm_neon(const void *step, uint8_t *const *bases, unsigned part, unsigned parts) {
    norm_any(step, bases, part, parts);
}
