/* SPDX-License-Identifier: Apache-2.0
 *
 * What the executor runs: a program is an array of 64-bit words, one step after another, and nothing else. There is no
 * pointer in it, so it can be stored, compared, printed as a C table and checked word by word (exec/check.c).
 *
 * Each step is one of the structs below, written as a list of fields. The list is the only definition: C makes the
 * struct from it, and the Python module tells the planner the names in order, so that neither can be out of step.
 *
 * Memory. A reference is one word: space * 2^48 + byte offset. Space 0 holds the constants, space 1 the arena, and the
 * spaces after that are the caller's inputs and outputs in order. Constants and arena have INTONLY_SLACK bytes behind
 * their last tensor that a kernel may read; the caller's buffers have none. Nothing is ever written outside a tensor.
 * -1 stands for an absent reference.
 *
 * Images are stored NHWC with the channels contiguous. All strides are in bytes. An image may stand in a larger one:
 * with a margin around it (the padding of its consumer, filled by a `halo` step), or as some channels of a wider pixel
 * (concat without a copy). So a convolution needs no bounds check: pixel (n, i, j) of its output reads from
 *
 *     x + n * x_n + i * x_h + j * x_w + tap offset
 *
 * where x_h and x_w already hold the convolution's strides, and the table of tap offsets its kernel and dilations.
 */
#ifndef INTONLY_PROGRAM_H
#define INTONLY_PROGRAM_H

#include <stddef.h>
#include <stdint.h>

#define INTONLY_SLACK 64
#define INTONLY_RANK 8    /* most axes of a general step */
#define INTONLY_REDUCED 4 /* most axes that a contraction sums over */
#define INTONLY_SPACE_SHIFT 48
#define INTONLY_ABSENT (-1)

enum { INTONLY_CONSTANTS = 0, INTONLY_ARENA = 1, INTONLY_CALLER = 2 };

/* The kinds of step, in the order of their numbers. */
#define INTONLY_STEPS(STEP)                                                                                            \
    STEP(gemm)      /* 8-bit sums of products with constant weights: convolution and linear layers */                  \
    STEP(window)    /* per channel: depthwise convolution, sums and maxima of windows */                               \
    STEP(contract)  /* any sum of products, sum or maximum, of any types; the general form of the two above */         \
    STEP(map)       /* one element at a time, with broadcasting */                                                     \
    STEP(copy)      /* moves integers: transpose, slice, concat, pad, change of type */                                \
    STEP(gather)    /* picks rows by index */                                                                          \
    STEP(halo)      /* fills the margin around an image */                                                             \
    STEP(attention) /* means of values under weights that are exponentials of products */                              \
    STEP(norm)      /* rows over their deviation: layer norm and RMS norm */

/* S(name) is one word, V(name, count) are several. Every step begins with its kind, its length in words, into how many
 * parts it is worth dividing among threads, and whether it may run beside the steps before it.
 *
 * beside: 0 = all threads have ended all steps before when the step begins; 1 = nobody waits, so it may run at the same
 * time as any step back to the last one that says 0, and that one. A step of a single part is the caller's thread's. */
#define INTONLY_HEAD(S) S(kind) S(words) S(parts) S(beside)

/* An image: reference, element type (intonly_type), byte strides between images, rows and pixels. */
#define INTONLY_IMAGE(S, x) S(x##_ref) S(x##_type) S(x##_n) S(x##_h) S(x##_w)

/* What happens to an accumulator before it is stored.
 *
 * form: 0 stored as it is, 1 wide, 2 narrow form of the law. The constants are arrays in space 0: multiplier int32,
 * shift int8, residual_multiplier int32, residual_shift int8, x_zero int32. */
#define INTONLY_EPILOGUE(S)                                                                                            \
    S(form) S(multiplier) S(shift) S(residual_multiplier) S(residual_shift) S(x_zero)                                  \
    S(residual_zero) S(zero_point) S(lo) S(hi) S(fraction_bits)

/* y[n, i, j, o] = epilogue(bias[o] + sum over taps t and bytes c of x[n, i, j](t, c) * w[o, t, c], residual[n, i, j, o])
 *
 * x: codes of 8 bits, or int16; zero points are folded into the bias, and the margin holds the zero point. Each tap
 * reads tap_bytes consecutive bytes of codes, a multiple of 4; where the layer has fewer, the weights of the rest are
 * 0. tap_offsets: int64 [taps], space 0. packed: weights, bias and constants as the kernel of this instruction set
 * wants them, made by its `pack` (kernels/gemm/gemm.h). The residual has 8 bits (form 2) or at most 16 (form 1). linear
 * layers: n = 1, oh = 1, ow = rows, taps = 1.
 * channels_first: 1 = all pixels for one group of channels, then the next group; 0 = the other way round. ahead,
 * ahead_bytes: constants that the next gemm reads first; kernels may fetch them into a cache, and do nothing else. */
#define INTONLY_GEMM_FIELDS(S, V)                                                                                      \
    INTONLY_HEAD(S) INTONLY_IMAGE(S, x) INTONLY_IMAGE(S, y) INTONLY_IMAGE(S, r)                                        \
    S(n) S(oh) S(ow) S(oc) S(taps) S(tap_bytes) S(tap_offsets) S(packed) S(packed_bytes) S(channels_first)             \
    S(form) S(residual_zero) S(zero_point) S(lo) S(hi) S(fraction_bits) S(ahead) S(ahead_bytes)

/* op 0: y = epilogue(bias[c] + sum over taps of x(t, c) * w[c, t]): depthwise convolution, weights in `packed`.
 * op 1: y = epilogue(sum over taps of x(t, c) - taps * x_zero folded into bias[c]); op 2: y = max over taps of x(t, c).
 * Only op 0 has `packed`; ops 1 and 2 read `bias` (int32 [c], -1 = 0) and the epilogue's constants directly, with
 * constant index i * constant_h + j * constant_w + c * constant_c. The residual is 8-bit (op 0, form 2 only). */
#define INTONLY_WINDOW_FIELDS(S, V)                                                                                    \
    INTONLY_HEAD(S) S(op) INTONLY_IMAGE(S, x) INTONLY_IMAGE(S, y) INTONLY_IMAGE(S, r)                                  \
    S(n) S(oh) S(ow) S(c) S(taps) S(tap_offsets) S(packed) S(packed_bytes) S(bias)                                     \
    INTONLY_EPILOGUE(S) S(constant_h) S(constant_w) S(constant_c)

/* y[d...] = epilogue(bias[d...] + sum over k... of (a[d..., k...] - a_zero) * (b[d..., k...] - b_zero), residual[d...])
 *
 * Any integer types. b_ref -1: the second factor is 1. op 0: the sum; op 2: the maximum of a over k, without b and bias.
 * extent[INTONLY_RANK]: output axes, 1 where unused; reduced[INTONLY_REDUCED]: summed axes, 1 where unused. Strides in
 * bytes (0 broadcasts); bias_strides in bytes, bias int32; constant_strides in elements of the epilogue's constants,
 * zero_strides in elements of x_zero. Sums are formed modulo 2^64. */
#define INTONLY_CONTRACT_FIELDS(S, V)                                                                                  \
    INTONLY_HEAD(S) S(op)                                                                                              \
    S(a_ref) S(a_type) S(a_zero) S(b_ref) S(b_type) S(b_zero) S(bias) S(y_ref) S(y_type) S(r_ref) S(r_type)            \
    V(extent, INTONLY_RANK) V(reduced, INTONLY_REDUCED)                                                                \
    V(a_strides, INTONLY_RANK) V(b_strides, INTONLY_RANK) V(y_strides, INTONLY_RANK) V(r_strides, INTONLY_RANK)        \
    V(bias_strides, INTONLY_RANK) V(a_reduced, INTONLY_REDUCED) V(b_reduced, INTONLY_REDUCED)                          \
    INTONLY_EPILOGUE(S) V(constant_strides, INTONLY_RANK) V(zero_strides, INTONLY_RANK)

/* y[d...] = epilogue(op(a, b, c), residual). Operands broadcast by stride 0.
 *
 * op (intonly_map_op): add: (a - a_zero) + sign * (b - b_zero); mul; lookup: b[a - offset], b a constant table of
 * b_count entries; floor_div; isqrt; minimum; maximum; less, less_equal, equal, greater_equal, greater: 0 or 1;
 * select: a != 0 ? b : c; identity: a. The epilogue subtracts x_zero and rescales (form 0: nothing). */
#define INTONLY_MAP_FIELDS(S, V)                                                                                       \
    INTONLY_HEAD(S) S(op) S(sign) S(offset) S(b_count)                                                                 \
    S(a_ref) S(a_type) S(a_zero) S(b_ref) S(b_type) S(b_zero) S(c_ref) S(c_type)                                       \
    S(y_ref) S(y_type) S(r_ref) S(r_type)                                                                              \
    V(extent, INTONLY_RANK)                                                                                            \
    V(a_strides, INTONLY_RANK) V(b_strides, INTONLY_RANK) V(c_strides, INTONLY_RANK)                                   \
    V(y_strides, INTONLY_RANK) V(r_strides, INTONLY_RANK)                                                              \
    INTONLY_EPILOGUE(S) V(constant_strides, INTONLY_RANK) V(zero_strides, INTONLY_RANK)

typedef enum intonly_map_op {
    INTONLY_MAP_IDENTITY = 0,
    INTONLY_MAP_ADD = 1,
    INTONLY_MAP_MUL = 2,
    INTONLY_MAP_LOOKUP = 3,
    INTONLY_MAP_FLOOR_DIV = 4,
    INTONLY_MAP_ISQRT = 5,
    INTONLY_MAP_MINIMUM = 6,
    INTONLY_MAP_MAXIMUM = 7,
    INTONLY_MAP_LESS = 8,
    INTONLY_MAP_LESS_EQUAL = 9,
    INTONLY_MAP_EQUAL = 10,
    INTONLY_MAP_GREATER_EQUAL = 11,
    INTONLY_MAP_GREATER = 12,
    INTONLY_MAP_SELECT = 13,
    INTONLY_MAP_OPS = 14
} intonly_map_op;

enum { INTONLY_SUM_PRODUCTS = 0, INTONLY_SUM = 1, INTONLY_MAX = 2 };
enum { INTONLY_FORM_ACC = 0, INTONLY_FORM_WIDE = 1, INTONLY_FORM_NARROW = 2 };

/* y[d...] = a[d...]: the same integers, in the type of y. Types may differ; the planner knows that the values fit. */
#define INTONLY_COPY_FIELDS(S, V)                                                                                      \
    INTONLY_HEAD(S) S(a_ref) S(a_type) S(y_ref) S(y_type)                                                              \
    V(extent, INTONLY_RANK) V(a_strides, INTONLY_RANK) V(y_strides, INTONLY_RANK)

/* y[i, k, :] = a[i, index[k], :] for contiguous a[outer][rows][row_bytes] and y[outer][count][row_bytes]. */
#define INTONLY_GATHER_FIELDS(S, V)                                                                                    \
    INTONLY_HEAD(S) S(a_ref) S(y_ref) S(index_ref) S(index_type) S(outer) S(rows) S(count) S(row_bytes)

/* Writes the margin of n images of h rows of w pixels of pixel_bytes bytes; x is the first pixel inside. pattern: the
 * pixel_bytes bytes of one margin pixel, space 0. Only 1-byte elements and dense pixels (x_w = pixel_bytes). */
#define INTONLY_HALO_FIELDS(S, V)                                                                                      \
    INTONLY_HEAD(S) INTONLY_IMAGE(S, x) S(n) S(h) S(w) S(pixel_bytes)                                                  \
    S(top) S(left) S(bottom) S(right) S(pattern)

/* For queries q[r], keys k[t] and values v[t], at each place of the outer axes:
 *
 *     score[t]  = sum over `depth` bytes of (q[r] - q_zero) * k[t], plus bias[r][t]
 *     weight[t] = 255 * 2^(-(largest score - score[t]) in octaves), 0 where the mask is 0  (kernels/attention/weights.h)
 *     mean[c]   = sum over t of weight[t] * (v[t][c] - v_zero) / sum of the weights, in units of 2^-22
 *     y[r][c]   = clamp(zero_point + ((mean[c] * multiplier + 2^(y_shift-1)) >> y_shift), lo, hi) for `width` c
 *
 * The zero point of k moves all scores of a row alike, so nobody asks for it. Codes of 8 bits; depth and width are
 * contiguous. extent, strides: outer axes, and the queries as the last (0 for k and v); k_key, v_key and mask_key: bytes
 * from one key to the next. bias: int32, contiguous along the keys, at most 2^29, so that no difference of scores leaves
 * int32; -1: none. shift, weight_multiplier: from differences of scores to 1024ths of octaves. mask_ref -1: all keys
 * count. scratch: [parts][scratch_bytes] of the arena, of which each part has its own; at least
 * intonly_attention_scratch (kernels/attention/scratch.h). */
#define INTONLY_ATTENTION_FIELDS(S, V)                                                                                 \
    INTONLY_HEAD(S) S(q_ref) S(q_type) S(q_zero) S(k_ref) S(k_type) S(v_ref) S(v_type) S(v_zero) S(bias_ref)           \
    S(mask_ref) S(y_ref) S(y_type) V(extent, INTONLY_RANK) V(q_strides, INTONLY_RANK) V(k_strides, INTONLY_RANK)       \
    V(v_strides, INTONLY_RANK) V(bias_strides, INTONLY_RANK) V(mask_strides, INTONLY_RANK) V(y_strides, INTONLY_RANK)  \
    S(keys) S(depth) S(width) S(k_key) S(v_key) S(mask_key) S(shift) S(weight_multiplier)                              \
    S(multiplier) S(y_shift) S(zero_point) S(lo) S(hi) S(scratch) S(scratch_bytes)

#define INTONLY_MOST_KEYS 1024
#define INTONLY_MOST_DEPTH 128      /* of depth, and of width */
#define INTONLY_MOST_KEY_BYTES 65536 /* keys * depth, and keys * width, each rounded up to a multiple of 16 */

/* Rows of `count` contiguous integers of at most 16 bits, x counted from `middle`:
 *
 *     total      = sum of x when centered, else 0; u = count * x - total
 *     root       = max(floor(sqrt((count * sum of x^2 - total^2) * 4^root_bits + eps_code)), least_root)
 *     reciprocal = floor(2^reciprocal_bits / root)
 *     result     = floor(u * reciprocal / 2^(reciprocal_bits - root_bits - result_bits))
 *     y[c]       = clamp(zero_point + ((result * multiplier[c] + offset[c]) >> shift[c]), lo, hi)
 *
 * extent, strides: the rows. multiplier int32, shift int8, offset int64 (with the rounding 2^(shift-1)): [count] each,
 * space 0. Sums are formed modulo 2^64. */
#define INTONLY_NORM_FIELDS(S, V)                                                                                      \
    INTONLY_HEAD(S) S(x_ref) S(x_type) S(y_ref) S(y_type) V(extent, INTONLY_RANK) V(x_strides, INTONLY_RANK)           \
    V(y_strides, INTONLY_RANK) S(count) S(middle) S(centered) S(root_bits) S(reciprocal_bits) S(least_root)            \
    S(result_bits) S(eps_code) S(multiplier) S(shift) S(offset) S(zero_point) S(lo) S(hi)

#define INTONLY_FIELD(name) int64_t name;
#define INTONLY_FIELDS(name, count) int64_t name[count];
typedef struct intonly_head { INTONLY_HEAD(INTONLY_FIELD) } intonly_head;
typedef struct intonly_gemm { INTONLY_GEMM_FIELDS(INTONLY_FIELD, INTONLY_FIELDS) } intonly_gemm;
typedef struct intonly_window { INTONLY_WINDOW_FIELDS(INTONLY_FIELD, INTONLY_FIELDS) } intonly_window;
typedef struct intonly_contract { INTONLY_CONTRACT_FIELDS(INTONLY_FIELD, INTONLY_FIELDS) } intonly_contract;
typedef struct intonly_map { INTONLY_MAP_FIELDS(INTONLY_FIELD, INTONLY_FIELDS) } intonly_map;
typedef struct intonly_copy { INTONLY_COPY_FIELDS(INTONLY_FIELD, INTONLY_FIELDS) } intonly_copy;
typedef struct intonly_gather { INTONLY_GATHER_FIELDS(INTONLY_FIELD, INTONLY_FIELDS) } intonly_gather;
typedef struct intonly_halo { INTONLY_HALO_FIELDS(INTONLY_FIELD, INTONLY_FIELDS) } intonly_halo;
typedef struct intonly_attention { INTONLY_ATTENTION_FIELDS(INTONLY_FIELD, INTONLY_FIELDS) } intonly_attention;
typedef struct intonly_norm { INTONLY_NORM_FIELDS(INTONLY_FIELD, INTONLY_FIELDS) } intonly_norm;
#undef INTONLY_FIELD
#undef INTONLY_FIELDS

enum {
#define INTONLY_KIND(name) INTONLY_KIND_##name,
    INTONLY_STEPS(INTONLY_KIND)
#undef INTONLY_KIND
        INTONLY_KINDS
};

/* Return where a reference points. */
static inline uint8_t *intonly_at(uint8_t *const *bases, int64_t ref) {
    return bases[ref >> INTONLY_SPACE_SHIFT] + (ref & ((INT64_C(1) << INTONLY_SPACE_SHIFT) - 1));
}

/* Return the same, or null for an absent reference. */
static inline uint8_t *intonly_at_or_null(uint8_t *const *bases, int64_t ref) {
    return ref < 0 ? NULL : intonly_at(bases, ref);
}

#endif
