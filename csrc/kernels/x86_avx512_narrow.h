/* SPDX-License-Identifier: Apache-2.0
 *
 * The narrow form of the law (arith.h) on BYTES values at a time, for steps of which narrow_fits says that they fit:
 * saturation to 16 bits then happens in the order of the law, and every intermediate is exact.
 *
 * Half a vector (32 bytes) holds the first two of the four lanes of a whole one, so it finds its constants at the same
 * places.
 */
#if defined(__AVX512BW__) && defined(BYTES)

/* The scalars of a step, spread over vectors. */
typedef struct NAME(narrow_scalars) {
    VECTOR constant;      /* (zero_point << k) + 2^(k-1), 16 bits */
    VECTOR fraction_bits; /* k, 16 bits */
    VECTOR lo, hi;        /* 8 bits */
    VECTOR residual_flip; /* 128 turns signed codes into unsigned ones ... */
    VECTOR residual_zero; /* ... whose zero point is this, 16 bits */
    int clamps;           /* whether lo or hi is narrower than the type of y */
    int y_signed;
    int left; /* whether an accumulator is shifted left somewhere */
} NAME(narrow_scalars);

ALWAYS_INLINE NAME(narrow_scalars)
    NAME(narrow_scalars_of)(int left, int64_t y_type, int64_t zero_point, int64_t lo, int64_t hi, int64_t fraction_bits,
                            int64_t residual_type, int64_t residual_zero) {
    const int flip = residual_type == INTONLY_S8 ? 128 : 0, y_signed = y_type == INTONLY_S8;
    return (NAME(narrow_scalars)){
        .constant = OP(set1_epi16)((int16_t)(zero_point * (1 << fraction_bits) + (1 << (fraction_bits - 1)))),
        .fraction_bits = OP(set1_epi16)((int16_t)fraction_bits),
        .lo = OP(set1_epi8)((char)lo),
        .hi = OP(set1_epi8)((char)hi),
        .residual_flip = OP(set1_epi8)((char)flip),
        .residual_zero = OP(set1_epi16)((int16_t)(residual_zero + flip)),
        .clamps = lo > (y_signed ? -128 : 0) || hi < (y_signed ? 127 : 255),
        .y_signed = y_signed,
        .left = left,
    };
}

/* Tell the compiler that a step is of the most common kind: no left shift, and y unsigned without clamps of its own. */
ALWAYS_INLINE void NAME(narrow_most_common)(NAME(narrow_scalars) * n) { n->left = n->y_signed = n->clamps = 0; }

ALWAYS_INLINE int NAME(narrow_is_most_common)(const NAME(narrow_scalars) * n) {
    return !(n->left | n->y_signed | n->clamps);
}

/* Scaled values of 16 bits: ab from the first two vectors of accumulators, cd from the others. */
typedef struct NAME(narrow_pair) {
    VECTOR ab, cd;
} NAME(narrow_pair);

/* Return u = (sat16(acc shifted) * m + 2^14) >> 15. */
ALWAYS_INLINE NAME(narrow_pair) NAME(narrow_scale)(const NAME(narrow_scalars) * n, const narrow_constants *k, VECTOR a,
                                                   VECTOR b, VECTOR c, VECTOR d) {
    if (n->left) {
        a = OP(sllv_epi32)(a, LOAD(k->left));
        b = OP(sllv_epi32)(b, LOAD(k->left + 16));
        c = OP(sllv_epi32)(c, LOAD(k->left + 32));
        d = OP(sllv_epi32)(d, LOAD(k->left + 48));
    }
    a = OP(srav_epi32)(a, LOAD(k->right));
    b = OP(srav_epi32)(b, LOAD(k->right + 16));
    c = OP(srav_epi32)(c, LOAD(k->right + 32));
    d = OP(srav_epi32)(d, LOAD(k->right + 48));
    return (NAME(narrow_pair)){OP(mulhrs_epi16)(OP(packs_epi32)(a, b), LOAD(k->multiplier)),
                               OP(mulhrs_epi16)(OP(packs_epi32)(c, d), LOAD(k->multiplier + 32))};
}

/* Return sat16(u + u_r) for the residual codes. */
ALWAYS_INLINE NAME(narrow_pair) NAME(narrow_join)(const NAME(narrow_scalars) * n, const narrow_constants *k,
                                                  NAME(narrow_pair) u, VECTOR residual) {
    const VECTOR codes = residual ^ n->residual_flip, none = codes ^ codes;
    VECTOR ab = OP(sub_epi16)(OP(unpacklo_epi8)(codes, none), n->residual_zero);
    VECTOR cd = OP(sub_epi16)(OP(unpackhi_epi8)(codes, none), n->residual_zero);
    ab = OP(sllv_epi16)(ab, LOAD(k->residual_left));
    cd = OP(sllv_epi16)(cd, LOAD(k->residual_left + 32));
    ab = OP(mulhrs_epi16)(ab, LOAD(k->residual_multiplier));
    cd = OP(mulhrs_epi16)(cd, LOAD(k->residual_multiplier + 32));
    return (NAME(narrow_pair)){OP(adds_epi16)(u.ab, ab), OP(adds_epi16)(u.cd, cd)};
}

/* Return the codes clamp(sat16(u + constant) >> k, lo, hi). */
ALWAYS_INLINE VECTOR NAME(narrow_codes)(const NAME(narrow_scalars) * n, NAME(narrow_pair) u) {
    const VECTOR ab = OP(srav_epi16)(OP(adds_epi16)(u.ab, n->constant), n->fraction_bits);
    const VECTOR cd = OP(srav_epi16)(OP(adds_epi16)(u.cd, n->constant), n->fraction_bits);
    if (n->y_signed) {
        const VECTOR y = OP(packs_epi16)(ab, cd);
        return n->clamps ? OP(min_epi8)(OP(max_epi8)(y, n->lo), n->hi) : y;
    }
    const VECTOR y = OP(packus_epi16)(ab, cd);
    return n->clamps ? OP(min_epu8)(OP(max_epu8)(y, n->lo), n->hi) : y;
}

#endif
