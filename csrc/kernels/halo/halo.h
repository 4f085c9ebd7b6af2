/* SPDX-License-Identifier: Apache-2.0
 *
 * Fills the margin around images (INTONLY_HALO_FIELDS).
 */
#ifndef INTONLY_HALO_H
#define INTONLY_HALO_H

#include <stdint.h>

void intonly_halo_ref(const void *step, uint8_t *const *bases, unsigned part, unsigned parts);

#endif
