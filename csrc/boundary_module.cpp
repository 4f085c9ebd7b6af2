// SPDX-License-Identifier: Apache-2.0
//
// Real inputs become integers (boundary.h), in the Python module intonly._native.

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>
#include <stdexcept>

extern "C" {
#include "boundary.h"
}

namespace nb = nanobind;
using namespace nb::literals;

using Reals = nb::ndarray<const float, nb::c_contig, nb::device::cpu>;
using Codes = nb::ndarray<nb::c_contig, nb::device::cpu>;

static bool codes_of_reals(const Reals &x, double scale, int32_t zero_point, const Codes &out) {
    const bool is_signed = out.dtype() == nb::dtype<int8_t>();
    if (!is_signed && out.dtype() != nb::dtype<uint8_t>()) throw nb::value_error("codes_of_reals: out must be int8 or uint8");
    const int32_t lo = is_signed ? INT8_MIN : 0, hi = is_signed ? INT8_MAX : UINT8_MAX;
    if (x.size() != out.size()) throw nb::value_error("codes_of_reals: x and out must have the same number of elements");
    if (!(scale > 0) || zero_point < lo || zero_point > hi)
        throw nb::value_error("codes_of_reals: scale must be positive, and zero_point a code");
    nb::gil_scoped_release release;
    return intonly_codes_of_reals(x.data(), x.size(), scale, zero_point, lo, hi, static_cast<uint8_t *>(out.data())) != 0;
}

void intonly_bind_boundary(nb::module_ &module) {
    module.def("codes_of_reals", &codes_of_reals, "x"_a.noconvert(), "scale"_a, "zero_point"_a, "out"_a.noconvert());
}
