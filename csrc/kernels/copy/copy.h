/* SPDX-License-Identifier: Apache-2.0
 *
 * Moves integers, and changes their type (INTONLY_COPY_FIELDS).
 */
#ifndef INTONLY_COPY_H
#define INTONLY_COPY_H

#include <stdint.h>

void intonly_copy_ref(const void *step, uint8_t *const *bases, unsigned part, unsigned parts);

#endif
