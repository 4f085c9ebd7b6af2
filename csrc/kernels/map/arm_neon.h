/* SPDX-License-Identifier: Apache-2.0
 *
 * map with NEON.
 */
#ifndef INTONLY_MAP_ARM_NEON_H
#define INTONLY_MAP_ARM_NEON_H

#include <stdint.h>

void intonly_map_neon(const void *step, uint8_t *const *bases, unsigned part, unsigned parts);

#endif
