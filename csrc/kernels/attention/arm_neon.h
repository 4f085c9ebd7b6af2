/* SPDX-License-Identifier: Apache-2.0
 *
 * attention with NEON.
 */
#ifndef INTONLY_ATTENTION_ARM_NEON_H
#define INTONLY_ATTENTION_ARM_NEON_H

#include <stdint.h>

void intonly_attention_neon(const void *step, uint8_t *const *bases, unsigned part, unsigned parts);

#endif
