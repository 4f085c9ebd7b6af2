/* SPDX-License-Identifier: Apache-2.0
 *
 * attention with NEON: the loops of any.h on vectors.
 */
#include "kernels/attention/arm_neon.h"

#include "kernels/attention/any.h"

void intonly_attention_neon(const void *step, uint8_t *const *bases, unsigned part, unsigned parts) {
    attention_any(step, bases, part, parts);
}
