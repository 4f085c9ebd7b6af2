/* SPDX-License-Identifier: Apache-2.0
 *
 * Picks rows by index (INTONLY_GATHER_FIELDS).
 */
#ifndef INTONLY_GATHER_H
#define INTONLY_GATHER_H

#include <stdint.h>

void intonly_gather_ref(const void *step, uint8_t *const *bases, unsigned part, unsigned parts);

#endif
