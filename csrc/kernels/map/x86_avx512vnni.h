/* SPDX-License-Identifier: Apache-2.0
 *
 * map with AVX-512: functions of one byte; everything else as in plain C.
 */
#ifndef INTONLY_MAP_X86_AVX512VNNI_H
#define INTONLY_MAP_X86_AVX512VNNI_H

#include <stdint.h>

void intonly_map_avx512vnni(const void *step, uint8_t *const *bases, unsigned part, unsigned parts);

#endif
