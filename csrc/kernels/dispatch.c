/* SPDX-License-Identifier: Apache-2.0
 *
 * Which kernels this processor runs. Every table starts from the plain C kernels; what a build has and a processor can
 * is written over them, as dav1d does.
 */
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/kernels.h"

#if defined(__x86_64__) || defined(__i386__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

typedef void (*filler)(intonly_kernels *table);

/* What the build has: CMake defines a macro for each instruction set that it compiled. */
static const struct {
    const char *name;
    filler fill;
} known[INTONLY_ISAS] = {
    [INTONLY_ISA_SCALAR] = {"scalar", intonly_kernels_scalar},
#ifdef INTONLY_HAVE_AVX2
    [INTONLY_ISA_AVX2] = {"avx2", intonly_kernels_avx2},
#else
    [INTONLY_ISA_AVX2] = {"avx2", NULL},
#endif
#ifdef INTONLY_HAVE_AVXVNNI
    [INTONLY_ISA_AVXVNNI] = {"avxvnni", intonly_kernels_avxvnni},
#else
    [INTONLY_ISA_AVXVNNI] = {"avxvnni", NULL},
#endif
#ifdef INTONLY_HAVE_AVX512VNNI
    [INTONLY_ISA_AVX512VNNI] = {"avx512vnni", intonly_kernels_avx512vnni},
#else
    [INTONLY_ISA_AVX512VNNI] = {"avx512vnni", NULL},
#endif
#ifdef INTONLY_HAVE_NEON
    [INTONLY_ISA_NEON] = {"neon", intonly_kernels_neon},
#else
    [INTONLY_ISA_NEON] = {"neon", NULL},
#endif
#ifdef INTONLY_HAVE_NEON_DOTPROD
    [INTONLY_ISA_NEON_DOTPROD] = {"neon_dotprod", intonly_kernels_neon_dotprod},
#else
    [INTONLY_ISA_NEON_DOTPROD] = {"neon_dotprod", NULL},
#endif
};

/* Instruction sets that each one extends: its table holds their kernels where it has none of its own. */
static const unsigned extends[INTONLY_ISAS] = {
    [INTONLY_ISA_AVXVNNI] = 1u << INTONLY_ISA_AVX2,
    [INTONLY_ISA_AVX512VNNI] = 1u << INTONLY_ISA_AVX2,
    [INTONLY_ISA_NEON_DOTPROD] = 1u << INTONLY_ISA_NEON,
};

static intonly_kernels tables[INTONLY_ISAS];
static unsigned available;
static pthread_once_t once = PTHREAD_ONCE_INIT;

#if defined(__x86_64__) || defined(__i386__)

/* The registers whose state the operating system saves; a processor may have instructions that it does not. */
static uint32_t saved_registers(void) {
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

static unsigned processor(void) {
    enum { XMM_YMM = 0x6, XMM_YMM_ZMM = 0xE6 };
    uint32_t a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return 0;
    const uint32_t osxsave_avx = 1u << 27 | 1u << 28;
    if ((c & osxsave_avx) != osxsave_avx) return 0;
    const uint32_t saved = saved_registers();
    if ((saved & XMM_YMM) != XMM_YMM || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return 0;
    const uint32_t subleaves = a, avx2 = 1u << 5;
    if (!(b & avx2)) return 0;
    unsigned found = 1u << INTONLY_ISA_AVX2;

    const uint32_t avx512_f_dq_bw_vl = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31, avx512_vbmi_vnni = 1u << 1 | 1u << 11;
    if ((saved & XMM_YMM_ZMM) == XMM_YMM_ZMM && (b & avx512_f_dq_bw_vl) == avx512_f_dq_bw_vl &&
        (c & avx512_vbmi_vnni) == avx512_vbmi_vnni)
        found |= 1u << INTONLY_ISA_AVX512VNNI;

    const uint32_t avx_vnni = 1u << 4;
    if (subleaves >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & avx_vnni)) found |= 1u << INTONLY_ISA_AVXVNNI;
    return found;
}

#elif defined(__aarch64__)

/* Every 64-bit Arm processor has NEON. */
static unsigned processor(void) {
    unsigned found = 1u << INTONLY_ISA_NEON;
#if defined(__linux__)
    const unsigned long dotprod = 1ul << 20; /* HWCAP_ASIMDDP */
    if (getauxval(AT_HWCAP) & dotprod) found |= 1u << INTONLY_ISA_NEON_DOTPROD;
#elif defined(__APPLE__)
    found |= 1u << INTONLY_ISA_NEON_DOTPROD; /* since the first of them */
#endif
    return found;
}

#else

static unsigned processor(void) { return 0; }

#endif

/* Let one more instruction set write over a table. A packed form belongs to the kernel that reads it, so what accepted
 * the forms of a kernel goes with it. */
static void overlay(intonly_kernels *table, filler fill) {
    const intonly_kernels before = *table;
    fill(table);
    if (table->gemm_pack != before.gemm_pack && table->gemm_accepts == before.gemm_accepts) table->gemm_accepts = NULL;
    if (table->depthwise_pack != before.depthwise_pack && table->depthwise_accepts == before.depthwise_accepts)
        table->depthwise_accepts = NULL;
}

static void fill_tables(void) {
    const unsigned can = processor() | 1u << INTONLY_ISA_SCALAR;
    for (unsigned isa = 0; isa < INTONLY_ISAS; ++isa) {
        if (known[isa].fill == NULL || !(can >> isa & 1)) continue;
        intonly_kernels *table = &tables[isa];
        intonly_kernels_scalar(table);
        for (unsigned base = INTONLY_ISA_SCALAR + 1; base < isa; ++base) {
            if (known[base].fill != NULL && (can & extends[isa]) >> base & 1) overlay(table, known[base].fill);
        }
        if (isa != INTONLY_ISA_SCALAR) overlay(table, known[isa].fill);
        table->isa = known[isa].name;
        available |= 1u << isa;
    }
}

const intonly_kernels *intonly_kernels_of(intonly_isa isa) {
    (void)pthread_once(&once, fill_tables);
    return (unsigned)isa < INTONLY_ISAS && available >> isa & 1 ? &tables[isa] : NULL;
}

intonly_isa intonly_best_isa(void) {
    (void)pthread_once(&once, fill_tables);
    int best = INTONLY_ISAS - 1;
    while (best > INTONLY_ISA_SCALAR && !(available >> best & 1)) --best;
    return (intonly_isa)best;
}

const char *intonly_isa_name(int isa) { return isa >= 0 && isa < INTONLY_ISAS ? known[isa].name : NULL; }
