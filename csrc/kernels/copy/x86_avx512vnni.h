/* SPDX-License-Identifier: Apache-2.0
 *
 * copy with AVX-512: bytes; everything else as in plain C.
 */
#ifndef INTONLY_COPY_X86_AVX512VNNI_H
#define INTONLY_COPY_X86_AVX512VNNI_H

#include <stdint.h>

void intonly_copy_avx512vnni(const void *step, uint8_t *const *bases, unsigned part, unsigned parts);

#endif
