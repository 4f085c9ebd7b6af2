/* SPDX-License-Identifier: Apache-2.0
 *
 * Whether steps may run at the same time. Two steps of a single part never do: they are the caller's thread's, in their
 * order. Others must not touch a byte that one of them writes.
 */
#include "exec/checker.h"

static int is_single(const intonly_head *head) { return head->parts == 1; }

int intonly_may_be_beside(const checker *c, const intonly_head *head) {
    if (c->only_single && is_single(head)) return 1;
    /* Who has been left out of a full list is not known. */
    if (c->beside == MOST_BESIDE) return 0;
    for (int i = 0; i < c->beside; ++i) {
        const intonly_footprint *other = &c->others[i];
        if (other->single && is_single(head)) continue;
        for (int k = 0; k < c->operands; ++k) {
            const intonly_footprint *mine = &c->operand[k];
            if ((other->writes || mine->writes) && !intonly_apart(mine, other) && !intonly_apart(other, mine)) return 0;
        }
    }
    return 1;
}

void intonly_note_step(checker *c, const intonly_head *head) {
    if (!head->beside) c->beside = 0, c->only_single = 1;
    c->only_single &= is_single(head);
    for (int k = 0; k < c->operands && c->beside < MOST_BESIDE; ++k) {
        c->others[c->beside] = c->operand[k];
        c->others[c->beside++].single = is_single(head);
    }
    c->operands = 0;
}
