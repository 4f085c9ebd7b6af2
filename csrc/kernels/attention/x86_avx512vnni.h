/* SPDX-License-Identifier: Apache-2.0
 *
 * attention with AVX-512.
 */
#ifndef INTONLY_ATTENTION_X86_AVX512VNNI_H
#define INTONLY_ATTENTION_X86_AVX512VNNI_H

#include <stdint.h>

void intonly_attention_avx512vnni(const void *step, uint8_t *const *bases, unsigned part, unsigned parts);

#endif
