/* SPDX-License-Identifier: Apache-2.0
 *
 * norm with AVX2: the loops of any.h on vectors.
 */
#include "kernels/norm/x86_avx2.h"

#include "kernels/norm/any.h"

void intonly_norm_avx2(const void *step, uint8_t *const *bases, unsigned part, unsigned parts) {
    norm_any(step, bases, part, parts);
}
