/* SPDX-License-Identifier: Apache-2.0
 *
 * A table of 256 bytes is four times 64, each looked up at once: an index that lies outside leaves what was there.
 */
#include "kernels/map/arm_neon.h"

#include <arm_neon.h>

#include "kernels/map/narrow_rows.h"
#include "kernels/map/table.h"

void intonly_look_up_neon(const uint8_t *table, const uint8_t *x, uint8_t *y, int64_t count) {
    const uint8x16x4_t first = vld1q_u8_x4(table), second = vld1q_u8_x4(table + 64);
    const uint8x16x4_t third = vld1q_u8_x4(table + 128), fourth = vld1q_u8_x4(table + 192);
    const uint8x16_t step = vdupq_n_u8(64);
    for (; count >= 16; count -= 16, x += 16, y += 16) {
        uint8x16_t index = vld1q_u8(x), found = vqtbl4q_u8(first, index);
        found = vqtbx4q_u8(found, second, index = vsubq_u8(index, step));
        found = vqtbx4q_u8(found, third, index = vsubq_u8(index, step));
        vst1q_u8(y, vqtbx4q_u8(found, fourth, vsubq_u8(index, step)));
    }
    intonly_look_up_ref(table, x, y, count);
}

void intonly_map_neon(const void *step, uint8_t *const *bases, unsigned part, unsigned parts) {
    intonly_map_by_table(step, bases, part, parts, intonly_look_up_neon, map_rows);
}
