/* SPDX-License-Identifier: Apache-2.0
 *
 * norm with AVX-512.
 */
#ifndef INTONLY_NORM_X86_AVX512VNNI_H
#define INTONLY_NORM_X86_AVX512VNNI_H

#include <stdint.h>

void intonly_norm_avx512vnni(const void *step, uint8_t *const *bases, unsigned part, unsigned parts);

#endif
