/* SPDX-License-Identifier: Apache-2.0
 *
 * One element at a time, with broadcasting (INTONLY_MAP_FIELDS).
 */
#ifndef INTONLY_MAP_H
#define INTONLY_MAP_H

#include <stdint.h>

void intonly_map_ref(const void *step, uint8_t *const *bases, unsigned part, unsigned parts);

#endif
