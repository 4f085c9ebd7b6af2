/* SPDX-License-Identifier: Apache-2.0
 *
 * One loop for each instruction set. Twelve accumulators do not wait for each other, which hides the latency of every
 * processor that we know: 4 to 5 cycles, two instructions a cycle. The assembler is volatile, so nothing is left out.
 */
#include "peak.h"

#define TWELVE(OP) OP(a0) OP(a1) OP(a2) OP(a3) OP(a4) OP(a5) OP(a6) OP(a7) OP(a8) OP(a9) OP(a10) OP(a11)
#define ACCUMULATORS a0 = x, a1 = x, a2 = x, a3 = x, a4 = x, a5 = x, a6 = x, a7 = x, a8 = x, a9 = x, a10 = x, a11 = x

/* One 64-bit multiplication and one addition. */
static int64_t scalar(int64_t iterations) {
    int64_t x = 3, y = -5, ACCUMULATORS;
    __asm__ volatile("" : "+r"(x)); /* forget x, or multiplying by it becomes an address calculation */
    for (int64_t i = 0; i < iterations; ++i) {
#define STEP(a)                                                                                                        \
    __asm__ volatile("" : "+r"(y)); /* forget y, or the product is formed once */                                      \
    a = (int64_t)((uint64_t)a + (uint64_t)x * (uint64_t)y);                                                            \
    __asm__ volatile("" : "+r"(a));
        TWELVE(STEP)
#undef STEP
    }
    return 12 * iterations;
}

#if defined(__x86_64__)

typedef int32_t int32x8 __attribute__((vector_size(32)));
typedef int32_t int32x16 __attribute__((vector_size(64)));

/* 16-bit pairs to 32-bit sums, and their addition: 16 products. Bytes must be widened before, which is not counted. */
__attribute__((target("avx2"))) static int64_t avx2(int64_t iterations) {
    int32x8 x = {3, 3, 3, 3, 3, 3, 3, 3}, ACCUMULATORS, t;
    for (int64_t i = 0; i < iterations; ++i) {
#define STEP(a) __asm__ volatile("vpmaddwd %2, %2, %1\n\tvpaddd %1, %0, %0" : "+x"(a), "=&x"(t) : "x"(x));
        TWELVE(STEP)
#undef STEP
    }
    return 12 * 16 * iterations;
}

#if defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11
#define INTONLY_PEAK_AVXVNNI 1
/* Four products a lane of 32 bits, eight lanes. */
__attribute__((target("avx2,avxvnni"))) static int64_t avxvnni(int64_t iterations) {
    int32x8 x = {3, 3, 3, 3, 3, 3, 3, 3}, ACCUMULATORS;
    for (int64_t i = 0; i < iterations; ++i) {
#define STEP(a) __asm__ volatile("%{vex%} vpdpbusd %1, %1, %0" : "+x"(a) : "x"(x));
        TWELVE(STEP)
#undef STEP
    }
    return 12 * 32 * iterations;
}
#endif

/* The same, sixteen lanes. */
__attribute__((target("avx512f,avx512vnni"))) static int64_t avx512vnni(int64_t iterations) {
    int32x16 x = {3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3}, ACCUMULATORS;
    for (int64_t i = 0; i < iterations; ++i) {
#define STEP(a) __asm__ volatile("vpdpbusd %1, %1, %0" : "+v"(a) : "v"(x));
        TWELVE(STEP)
#undef STEP
    }
    return 12 * 64 * iterations;
}

#elif defined(__aarch64__)

typedef int32_t int32x4 __attribute__((vector_size(16)));

/* 8-bit products added to 16-bit sums, eight of them. Widening the sums is not counted. */
static int64_t neon(int64_t iterations) {
    int32x4 x = {3, 3, 3, 3}, ACCUMULATORS;
    for (int64_t i = 0; i < iterations; ++i) {
#define STEP(a) __asm__ volatile("smlal %0.8h, %1.8b, %1.8b" : "+w"(a) : "w"(x));
        TWELVE(STEP)
#undef STEP
    }
    return 12 * 8 * iterations;
}

#ifdef __clang__
#define DOTPROD "dotprod"
#else
#define DOTPROD "arch=armv8.2-a+dotprod"
#endif
/* Four products a lane of 32 bits, four lanes. */
__attribute__((target(DOTPROD))) static int64_t neon_dotprod(int64_t iterations) {
    int32x4 x = {3, 3, 3, 3}, ACCUMULATORS;
    for (int64_t i = 0; i < iterations; ++i) {
#define STEP(a) __asm__ volatile("sdot %0.4s, %1.16b, %1.16b" : "+w"(a) : "w"(x));
        TWELVE(STEP)
#undef STEP
    }
    return 12 * 16 * iterations;
}

#endif

int64_t intonly_peak_macs(intonly_isa isa, int64_t iterations) {
    switch (isa) {
    case INTONLY_ISA_SCALAR: return scalar(iterations);
#if defined(__x86_64__)
    case INTONLY_ISA_AVX2: return avx2(iterations);
#ifdef INTONLY_PEAK_AVXVNNI
    case INTONLY_ISA_AVXVNNI: return avxvnni(iterations);
#endif
    case INTONLY_ISA_AVX512VNNI: return avx512vnni(iterations);
#elif defined(__aarch64__)
    case INTONLY_ISA_NEON: return neon(iterations);
    case INTONLY_ISA_NEON_DOTPROD: return neon_dotprod(iterations);
#endif
    default: return 0;
    }
}
