/* SPDX-License-Identifier: Apache-2.0
 *
 * norm with NEON.
 */
#ifndef INTONLY_NORM_ARM_NEON_H
#define INTONLY_NORM_ARM_NEON_H

#include <stdint.h>

void intonly_norm_neon(const void *step, uint8_t *const *bases, unsigned part, unsigned parts);

#endif
