/* SPDX-License-Identifier: Apache-2.0
 *
 * Whether a program may run.
 */
#include "exec/exec.h"

static const size_t lengths[INTONLY_KINDS] = {
#define INTONLY_LENGTH(name) sizeof(intonly_##name) / sizeof(int64_t),
    INTONLY_STEPS(INTONLY_LENGTH)
#undef INTONLY_LENGTH
};

intonly_status intonly_program_check(const int64_t *words, size_t count, const intonly_kernels *kernels,
                                     const intonly_spaces *spaces, intonly_fault *fault) {
    (void)kernels;
    (void)spaces;
    fault->step = 0;
    for (size_t at = 0; at < count; at += (size_t)words[at + 1], ++fault->step) {
        fault->what = "the step is cut off";
        if (count - at < 3) return INTONLY_ERROR_ARGUMENT;
        const intonly_head *head = (const intonly_head *)(const void *)(words + at);
        fault->what = "there is no such kind of step";
        if (head->kind < 0 || head->kind >= INTONLY_KINDS) return INTONLY_ERROR_ARGUMENT;
        fault->what = "the step has another length";
        if (head->words != (int64_t)lengths[head->kind] || lengths[head->kind] > count - at)
            return INTONLY_ERROR_ARGUMENT;
        fault->what = "parts must be 1..4096";
        if (head->parts < 1 || head->parts > 4096) return INTONLY_ERROR_ARGUMENT;
    }
    return INTONLY_OK;
}
