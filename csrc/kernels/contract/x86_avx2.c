/* SPDX-License-Identifier: Apache-2.0
 *
 * contract with AVX2: products of matrices by pairs of 16-bit codes; all else is any.h on vectors.
 */
#include "kernels/contract/x86_avx2.h"

#include "kernels/contract/x86_avx2_tile.h"

#include "kernels/contract/products.h"

void intonly_contract_avx2(const void *step, uint8_t *const *bases, unsigned part, unsigned parts) {
    const intonly_contract *s = (const intonly_contract *)step;
    if (is_product(s))
        contract_products(s, bases, part, parts);
    else
        contract_any(step, bases, part, parts);
}
