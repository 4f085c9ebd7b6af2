/* SPDX-License-Identifier: Apache-2.0
 *
 * Maps from one byte to one byte through a table of all 256, for kernels that look up many bytes at a time.
 */
#ifndef INTONLY_MAP_TABLE_H
#define INTONLY_MAP_TABLE_H

#include <stdint.h>

#include "exec/program.h"
#include "kernels/kernels.h"

/* Plain C: y[i] = table[x[i]]. */
void intonly_look_up_ref(const uint8_t *table, const uint8_t *x, uint8_t *y, int64_t count);

/* Run part `part` of `parts` of a map: with `look_up` when it is one of bytes and large enough for a table, else with
 * `any`, which also fills the table. */
void intonly_map_by_table(const intonly_map *step, uint8_t *const *bases, unsigned part, unsigned parts,
                          intonly_look_up look_up, intonly_kernel any);

#endif
