/* SPDX-License-Identifier: Apache-2.0
 *
 * map with NEON: 16 look-ups in a table of bytes at a time.
 */
#ifndef INTONLY_MAP_ARM_NEON_H
#define INTONLY_MAP_ARM_NEON_H

#include <stdint.h>

void intonly_look_up_neon(const uint8_t *table, const uint8_t *x, uint8_t *y, int64_t count);
void intonly_map_neon(const void *step, uint8_t *const *bases, unsigned part, unsigned parts);

#endif
