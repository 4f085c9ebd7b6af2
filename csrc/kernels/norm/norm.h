/* SPDX-License-Identifier: Apache-2.0
 *
 * Rows over their deviation: layer norm and RMS norm (INTONLY_NORM_FIELDS).
 */
#ifndef INTONLY_NORM_H
#define INTONLY_NORM_H

#include <stdint.h>

void intonly_norm_ref(const void *step, uint8_t *const *bases, unsigned part, unsigned parts);

#endif
