/* SPDX-License-Identifier: Apache-2.0
 *
 * The kernels of one instruction set: one function for each kind of step, and what prepares constants for them.
 *
 * A kernel does part `part` of `parts` of its step: it divides the work itself, in the same way for the same numbers,
 * and the union of all parts writes every output byte once. A kernel allocates nothing, keeps no state, and may be
 * called from any thread. It reads and writes what exec/program.h says; exec/check.c has checked the step before.
 */
#ifndef INTONLY_KERNELS_H
#define INTONLY_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#include "exec/program.h"

typedef void (*intonly_kernel)(const void *step, uint8_t *const *bases, unsigned part, unsigned parts);

/* y[i] = table[x[i]] for `count` bytes and a table of 256; y may be x. */
typedef void (*intonly_look_up)(const uint8_t *table, const uint8_t *x, uint8_t *y, int64_t count);

/* The constants of a gemm or of a depthwise window before they are packed. */
typedef struct intonly_weights {
    int64_t channels;  /* output channels */
    int64_t taps;
    int64_t depth;     /* codes of a tap: gemm 1 or more, depthwise 1 */
    int64_t tap_bytes; /* gemm: depth rounded up to a multiple of 4; depthwise 1 */
    const int8_t *w;   /* [channels][taps][depth] */
    const int32_t *bias; /* [channels]: with every zero point folded in, so that x enters as it is stored */
    int64_t form;      /* INTONLY_FORM_*; the constants below are [channels] each, null where the form has none */
    const int32_t *multiplier;
    const int8_t *shift;
    const int32_t *residual_multiplier;
    const int8_t *residual_shift;
    int64_t fraction_bits;
    int64_t acc_limit; /* no |accumulator| exceeds this, whatever x is: proven by the planner from the weights */
    int64_t x_signed;  /* whether x is int8 (else uint8) */
    int64_t x_words;   /* gemm: whether x is int16 instead */
} intonly_weights;

typedef struct intonly_kernels {
    const char *isa;
    intonly_kernel run[INTONLY_KINDS];
    intonly_look_up look_up;
    /* Whether gemm and window of this table want signed (1) or unsigned (0) codes of 8 bits; -1 = they take both. */
    int wants_signed;
    /* Bytes of the packed form, a multiple of 64; 0 = this table has no kernel for these constants, use `contract`. */
    size_t (*gemm_size)(const intonly_weights *weights);
    void (*gemm_pack)(const intonly_weights *weights, uint8_t *packed);
    size_t (*depthwise_size)(const intonly_weights *weights);
    void (*depthwise_pack)(const intonly_weights *weights, uint8_t *packed);
    /* Whether the packed form that a step names is one that run[gemm] or run[window] can read: packed_bytes is its
     * length, and none of its bytes, which may come from a file, leads the kernel out of its arrays or into undefined
     * behaviour (a shift out of range). All else in the step has been checked. Null: it can read none. */
    int (*gemm_accepts)(const intonly_gemm *step, const uint8_t *packed);
    int (*depthwise_accepts)(const intonly_window *step, const uint8_t *packed);
} intonly_kernels;

/* The instruction sets, slowest first, in the order in which one replaces another. */
typedef enum intonly_isa {
    INTONLY_ISA_SCALAR = 0,
    INTONLY_ISA_AVX2 = 1,
    INTONLY_ISA_AVXVNNI = 2,
    INTONLY_ISA_AVX512VNNI = 3,
    INTONLY_ISA_NEON = 4,
    INTONLY_ISA_NEON_DOTPROD = 5,
    INTONLY_ISAS = 6
} intonly_isa;

/* Return the first and one past the last unit of part `part` of `parts` over `units` equal units. */
static inline void intonly_share(int64_t units, unsigned part, unsigned parts, int64_t *first, int64_t *end) {
    /* units * part stays far below 2^63; a division by `parts` would be one instruction, so the share is found by
     * stepping: every part gets `whole` units, and the first `rest` parts one more. */
    int64_t whole = 0, rest = units;
    while (rest >= parts) {
        int64_t step = 1;
        while (step * 2 * parts <= rest) step *= 2;
        whole += step;
        rest -= step * parts;
    }
    const int64_t extra = part < rest ? part : rest;
    *first = whole * part + extra;
    *end = *first + whole + (part < rest);
}

/* Return how much of `total` the largest of all parts gets; they share units of `size`, the last perhaps smaller. */
static inline int64_t intonly_largest_share(int64_t total, int64_t size, int64_t units, unsigned parts) {
    int64_t first, end;
    intonly_share(units, 0, parts, &first, &end);
    return end * size < total ? end * size : total;
}

/* Fill in the plain C kernels; every other table starts from these and replaces what it does better. */
void intonly_kernels_scalar(intonly_kernels *table);
void intonly_kernels_avx2(intonly_kernels *table);
void intonly_kernels_avxvnni(intonly_kernels *table);
void intonly_kernels_avx512vnni(intonly_kernels *table);
void intonly_kernels_neon(intonly_kernels *table);
void intonly_kernels_neon_dotprod(intonly_kernels *table);

/* Return the table of an instruction set, or null when this processor or this build lacks it. */
const intonly_kernels *intonly_kernels_of(intonly_isa isa);

/* Return the best instruction set of this processor that the build has. */
intonly_isa intonly_best_isa(void);

/* Return the name as INTONLY_ISA spells it ("scalar", "avx2", ...); null for an unknown number. */
const char *intonly_isa_name(int isa);

#endif
