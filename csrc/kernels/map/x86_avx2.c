/* SPDX-License-Identifier: Apache-2.0
 *
 * map with AVX2: any.h on vectors.
 */
#include "kernels/map/x86_avx2.h"

#include "kernels/map/any.h"

void intonly_map_avx2(const void *step, uint8_t *const *bases, unsigned part, unsigned parts) {
    map_any(step, bases, part, parts);
}
