/* SPDX-License-Identifier: Apache-2.0
 *
 * map with AVX-512 VBMI: 64 look-ups in a table of bytes at a time.
 */
#ifndef INTONLY_MAP_X86_AVX512VNNI_H
#define INTONLY_MAP_X86_AVX512VNNI_H

#include <stdint.h>

void intonly_look_up_avx512vnni(const uint8_t *table, const uint8_t *x, uint8_t *y, int64_t count);
void intonly_map_avx512vnni(const void *step, uint8_t *const *bases, unsigned part, unsigned parts);

#endif
