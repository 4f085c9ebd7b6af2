/* SPDX-License-Identifier: Apache-2.0
 *
 * map in plain C.
 */
#include "kernels/map/any.h"
#include "kernels/map/map.h"

void intonly_map_ref(const void *step, uint8_t *const *bases, unsigned part, unsigned parts) {
    map_any(step, bases, part, parts);
}
