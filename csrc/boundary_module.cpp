// SPDX-License-Identifier: Apache-2.0
//
// Real inputs become integers (boundary.h), in the Python module intonly._native.
//
// Signatures and their meaning: src/intonly/_native.pyi.

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "engine_arrays.hpp"

extern "C" {
#include "boundary.h"
}

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using engine::fail;
using Reals = nb::ndarray<nb::ro, nb::c_contig, nb::device::cpu>;

struct CodeType {
    nb::dlpack::dtype array;
    intonly_type code;
};

CodeType type_holding(int64_t lo, int64_t hi) {
    if (lo > hi) fail("codes_of_reals: lo must not exceed hi, got " + std::to_string(lo) + ".." + std::to_string(hi));
    if (lo >= 0 && hi <= UINT8_MAX) return {nb::dtype<uint8_t>(), INTONLY_U8};
    if (lo >= 0 && hi <= UINT16_MAX) return {nb::dtype<uint16_t>(), INTONLY_U16};
    if (lo >= 0 && hi <= UINT32_MAX) return {nb::dtype<uint32_t>(), INTONLY_U32};
    if (lo >= INT8_MIN && hi <= INT8_MAX) return {nb::dtype<int8_t>(), INTONLY_S8};
    if (lo >= INT16_MIN && hi <= INT16_MAX) return {nb::dtype<int16_t>(), INTONLY_S16};
    if (lo >= INT32_MIN && hi <= INT32_MAX) return {nb::dtype<int32_t>(), INTONLY_S32};
    fail("codes_of_reals: lo and hi must fit in 32 bits, got " + std::to_string(lo) + ".." + std::to_string(hi));
}

bool is_positive(double value) { return value > 0 && std::isfinite(value); }

// Return one entry for each channel.
std::vector<double> per_channel(std::vector<double> given, size_t channels, const char *what) {
    if (given.size() == 1) given.resize(channels, given[0]);
    if (given.size() != channels)
        fail(std::string("codes_of_reals: ") + what + " must have one entry, or one for each of the " +
             std::to_string(channels) + " channels, got " + std::to_string(given.size()));
    return given;
}

nb::object codes_of_reals(const Reals &x, double scale, int64_t zero_point, int64_t lo, int64_t hi,
                          std::vector<double> means, std::vector<double> stds, int axis, nb::object out) {
    const bool is_double = x.dtype() == nb::dtype<double>();
    if (!is_double && x.dtype() != nb::dtype<float>())
        fail("codes_of_reals: x must be float32 or float64, got " + engine::text(x.dtype()));
    const CodeType type = type_holding(lo, hi);
    const engine::Wanted result{"codes_of_reals: out", type.array, engine::shape_of(x)};
    size_t channels = 1, inner = x.size();
    if (means.size() > 1 || stds.size() > 1) {
        if (axis < 0 || static_cast<size_t>(axis) >= x.ndim())
            fail("codes_of_reals: x of shape " + engine::text(result.shape) + " has no axis " + std::to_string(axis));
        channels = result.shape[static_cast<size_t>(axis)];
        inner = 1;
        for (size_t i = static_cast<size_t>(axis) + 1; i < x.ndim(); ++i) inner *= result.shape[i];
    }
    means = per_channel(std::move(means), channels, "mean");
    stds = per_channel(std::move(stds), channels, "std");
    if (!is_positive(scale)) fail("codes_of_reals: scale must be positive and finite");
    if (!std::all_of(means.begin(), means.end(), [](double m) { return std::isfinite(m); }) ||
        !std::all_of(stds.begin(), stds.end(), is_positive))
        fail("codes_of_reals: mean must be finite, std positive and finite");
    if (zero_point < INT32_MIN || zero_point > INT32_MAX)
        fail("codes_of_reals: zero_point must fit in int32, got " + std::to_string(zero_point));

    nb::object codes = out.is_none() ? result.make() : std::move(out);
    void *data = result.writable(codes).data();
    if (x.size() == 0) return codes;
    const intonly_boundary boundary{
        scale, means.data(), stds.data(), channels, inner, static_cast<int32_t>(zero_point), lo, hi};
    int complete;
    {
        nb::gil_scoped_release release;
        complete = intonly_codes_of_reals(&boundary, x.data(), is_double, x.size(), data, type.code);
    }
    return complete ? codes : nb::none();
}

} // namespace

void intonly_bind_boundary(nb::module_ &module);

void intonly_bind_boundary(nb::module_ &module) {
    module.def("codes_of_reals", &codes_of_reals, "x"_a, "scale"_a, "zero_point"_a, "lo"_a, "hi"_a,
               "mean"_a = nb::make_tuple(0.0), "std"_a = nb::make_tuple(1.0), "axis"_a = 1, "out"_a = nb::none());
}
