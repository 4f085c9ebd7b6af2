/* SPDX-License-Identifier: Apache-2.0
 *
 * attention with AVX2.
 */
#ifndef INTONLY_ATTENTION_X86_AVX2_H
#define INTONLY_ATTENTION_X86_AVX2_H

#include <stdint.h>

void intonly_attention_avx2(const void *step, uint8_t *const *bases, unsigned part, unsigned parts);

#endif
