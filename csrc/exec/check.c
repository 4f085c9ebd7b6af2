/* SPDX-License-Identifier: Apache-2.0
 *
 * Whether a program may run; exec.h says what that promises, checker.h how rules are written.
 */
#include "exec/checker.h"

#define MOST_PARTS 4096

static const char *check_step(checker *c, const intonly_head *head) {
    REQUIRE(in_range(head->parts, 1, MOST_PARTS), "parts must be 1..4096");
    REQUIRE(in_range(head->beside, 0, 1), "beside must be 0 or 1");
    switch (head->kind) {
#define INTONLY_CHECK(name)                                                                                            \
    case INTONLY_KIND_##name: return intonly_check_##name(c, (const intonly_##name *)(const void *)head);
        INTONLY_STEPS(INTONLY_CHECK)
#undef INTONLY_CHECK
    default: return "there is no such kind of step";
    }
}

/* Check that nothing of the step depends on what may run at the same time, or have it wait as little as it can. */
static const char *check_wait(checker *c, const intonly_head *head, intonly_head *loosened) {
    const int may = intonly_may_be_beside(c, head);
    if (loosened != NULL) loosened->beside = may;
    REQUIRE(may || !head->beside, "beside steps of which it touches bytes, or too many: beside must be 0");
    intonly_note_step(c, head);
    return NULL;
}

/* Return the words of a kind of step; 0 when there is no such kind. */
static size_t words_of(int64_t kind) {
    switch (kind) {
#define INTONLY_LENGTH(name)                                                                                           \
    case INTONLY_KIND_##name: return sizeof(intonly_##name) / sizeof(int64_t);
        INTONLY_STEPS(INTONLY_LENGTH)
#undef INTONLY_LENGTH
    default: return 0;
    }
}

static const char *check_spaces(const intonly_spaces *spaces) {
    REQUIRE(spaces->count >= INTONLY_CALLER && spaces->first_output >= INTONLY_CALLER,
            "two spaces are the program's own");
    REQUIRE(((uintptr_t)spaces->constants & 63) == 0, "constants must be aligned to 64 bytes");
    for (size_t i = 0; i < spaces->count; ++i)
        REQUIRE(spaces->bytes[i] < (size_t)INTONLY_MOST_REACH, "a space is too large for its references");
    return NULL;
}

/* Check all steps. loosened: null, or the words once more, in which steps that need no wait are marked. */
static intonly_status check_all(const int64_t *words, size_t count, const intonly_kernels *kernels,
                                const intonly_spaces *spaces, intonly_fault *fault, int64_t *loosened) {
    if (kernels == NULL || spaces == NULL || fault == NULL || (words == NULL && count > 0)) return INTONLY_ERROR_NULL;
    checker c = {.kernels = kernels, .spaces = spaces, .only_single = 1};
    fault->step = 0;
    fault->what = check_spaces(spaces);
    for (size_t at = 0; fault->what == NULL && at < count; ++fault->step) {
        const size_t head = sizeof(intonly_head) / sizeof(int64_t), left = count - at, length = words_of(words[at]);
        if (left < head || (length > 0 && (words[at + 1] != (int64_t)length || length > left)))
            fault->what = "a step has another length";
        else
            fault->what = check_step(&c, (const intonly_head *)(const void *)(words + at));
        if (fault->what == NULL)
            fault->what = check_wait(&c, (const intonly_head *)(const void *)(words + at),
                                     loosened == NULL ? NULL : (intonly_head *)(void *)(loosened + at));
        if (fault->what != NULL) return INTONLY_ERROR_ARGUMENT;
        at += length;
    }
    return fault->what == NULL ? INTONLY_OK : INTONLY_ERROR_ARGUMENT;
}

intonly_status intonly_program_check(const int64_t *words, size_t count, const intonly_kernels *kernels,
                                     const intonly_spaces *spaces, intonly_fault *fault) {
    return check_all(words, count, kernels, spaces, fault, NULL);
}

intonly_status intonly_program_loosen(int64_t *words, size_t count, const intonly_kernels *kernels,
                                      const intonly_spaces *spaces, intonly_fault *fault) {
    return check_all(words, count, kernels, spaces, fault, words);
}
