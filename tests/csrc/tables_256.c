/* SPDX-License-Identifier: Apache-2.0
 *
 * Stands in for csrc/kernels/dispatch.c: the tables on 256-bit vectors, whatever cpuid says. A processor with AVX-512
 * then runs the AVX-VNNI kernels, compiled for the EVEX form of their instructions.
 */
#include <stddef.h>

#include "kernels/kernels.h"

intonly_isa intonly_best_isa(void) {
#ifdef INTONLY_HAVE_AVXVNNI
    return INTONLY_ISA_AVXVNNI;
#else
    return INTONLY_ISA_AVX2;
#endif
}

const intonly_kernels *intonly_kernels_of(intonly_isa isa) {
    static intonly_kernels tables[INTONLY_ISA_AVXVNNI + 1];
    if (isa > intonly_best_isa()) return NULL;
    intonly_kernels *table = &tables[isa];
    intonly_kernels_scalar(table);
    if (isa >= INTONLY_ISA_AVX2) intonly_kernels_avx2(table);
#ifdef INTONLY_HAVE_AVXVNNI
    if (isa == INTONLY_ISA_AVXVNNI) intonly_kernels_avxvnni(table);
#endif
    return table;
}

const char *intonly_isa_name(int isa) {
    const intonly_kernels *table = isa < 0 ? NULL : intonly_kernels_of((intonly_isa)isa);
    return table == NULL ? "" : table->isa;
}
