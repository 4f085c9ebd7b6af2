/* SPDX-License-Identifier: Apache-2.0
 *
 * map with AVX2: 32 look-ups in a table of bytes at a time; other maps are those of any.h on vectors.
 */
#ifndef INTONLY_MAP_X86_AVX2_H
#define INTONLY_MAP_X86_AVX2_H

#include <stdint.h>

void intonly_look_up_avx2(const uint8_t *table, const uint8_t *x, uint8_t *y, int64_t count);
void intonly_map_avx2(const void *step, uint8_t *const *bases, unsigned part, unsigned parts);

#endif
