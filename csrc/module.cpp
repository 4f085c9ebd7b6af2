// SPDX-License-Identifier: Apache-2.0
//
// The Python module intonly._native: checks types and shapes, then calls the C functions with the GIL released.
//
// Signatures and their meaning: src/intonly/_native.pyi.

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <type_traits>
#include <vector>

#include "intonly.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using Array = nb::ndarray<nb::ro, nb::c_contig, nb::device::cpu>;
using Shape = std::vector<size_t>;

[[noreturn]] void fail(const std::string &message) {
    nb::object kind = nb::module_::import_("intonly.core.errors").attr("BackendError");
    nb::object error = kind(message.c_str(), "backend"_a = "native");
    PyErr_SetObject(kind.ptr(), error.ptr());
    throw nb::python_error();
}

Shape shape_of(const Array &array) {
    Shape shape(array.ndim());
    for (size_t i = 0; i < shape.size(); ++i) shape[i] = array.shape(i);
    return shape;
}

std::string text(const Shape &shape) {
    std::string result = "(";
    for (size_t i = 0; i < shape.size(); ++i) result += (i ? ", " : "") + std::to_string(shape[i]);
    return result + (shape.size() == 1 ? ",)" : ")");
}

std::string type_name(const Array &array) {
    const nb::dlpack::dtype type = array.dtype();
    const std::string bits = std::to_string(type.bits);
    switch (static_cast<nb::dlpack::dtype_code>(type.code)) {
    case nb::dlpack::dtype_code::Int: return "int" + bits;
    case nb::dlpack::dtype_code::UInt: return "uint" + bits;
    case nb::dlpack::dtype_code::Float: return "float" + bits;
    case nb::dlpack::dtype_code::Bool: return "bool";
    default: return "another type of " + bits + " bits";
    }
}

// Return the element type, or fail naming the argument.
intonly_type type_of(const Array &array, const std::string &what, const char *expected, int max_bits) {
    const nb::dlpack::dtype type = array.dtype();
    const bool is_signed = type.code == static_cast<uint8_t>(nb::dlpack::dtype_code::Int);
    const bool is_unsigned = type.code == static_cast<uint8_t>(nb::dlpack::dtype_code::UInt);
    if (type.lanes == 1 && type.bits <= max_bits && (is_signed || is_unsigned)) {
        switch (type.bits) {
        case 8: return is_signed ? INTONLY_S8 : INTONLY_U8;
        case 16: return is_signed ? INTONLY_S16 : INTONLY_U16;
        case 32: return is_signed ? INTONLY_S32 : INTONLY_U32;
        case 64:
            if (is_signed) return INTONLY_S64;
            break;
        default: break;
        }
    }
    fail(what + " must be " + expected + ", got " + type_name(array));
}

// Return the elements, or fail when they have another type or lie where the processor could not read them.
template <typename T> const T *elements(const Array &array, const std::string &what) {
    if (array.dtype() != nb::dtype<T>()) {
        const std::string kind = std::is_signed_v<T> ? "int" : "uint";
        fail(what + " must be " + kind + std::to_string(8 * sizeof(T)) + ", got " + type_name(array));
    }
    if (reinterpret_cast<uintptr_t>(array.data()) % alignof(T) != 0) fail(what + " is not aligned in memory");
    return static_cast<const T *>(array.data());
}

const void *raw(const Array &array, const std::string &what) {
    if (reinterpret_cast<uintptr_t>(array.data()) % array.itemsize() != 0) fail(what + " is not aligned in memory");
    return array.data();
}

template <typename T> struct Result {
    std::unique_ptr<T[]> owned;
    explicit Result(size_t count) : owned(new T[count ? count : 1]) {}

    nb::object array(const Shape &shape) {
        T *data = owned.get();
        nb::capsule owner(data, [](void *p) noexcept { delete[] static_cast<T *>(p); });
        owned.release();
        return nb::cast(nb::ndarray<nb::numpy, T>(data, shape.size(), shape.data(), owner));
    }
};

void check(intonly_status status, const std::string &rule) {
    if (status != INTONLY_OK) fail(rule + " (" + intonly_status_text(status) + ")");
}

std::string limits(int qmin, int qmax) { return std::to_string(qmin) + ".." + std::to_string(qmax); }

// How per-channel constants lie against the rows and channels of an operand.
struct Layout {
    size_t period = 1, width = 1;
};

Layout layout_of(const Shape &constants, const Shape &shape, const std::string &what) {
    const size_t rank = shape.size();
    if (constants.empty()) return {};
    if (constants.size() == 1 && rank >= 1 && (constants[0] == shape[rank - 1] || constants[0] == 1))
        return {1, constants[0]};
    const bool spatial = constants.size() == 3 && rank >= 3 && constants[2] == 1;
    if (spatial && constants[0] == shape[rank - 3] && constants[1] == shape[rank - 2])
        return {constants[0] * constants[1], 1};
    fail("requantize: " + what + " must have shape (), (C,) or (H, W, 1) for an accumulator of shape " + text(shape) +
         ", got " + text(constants));
}

int32_t int32_of(int64_t value, const char *what) {
    if (value < INT32_MIN || value > INT32_MAX)
        fail(std::string("requantize: ") + what + " must fit in int32, got " + std::to_string(value));
    return static_cast<int32_t>(value);
}

void expect_shape(const Array &array, const Shape &shape, const char *rule) {
    if (shape_of(array) != shape)
        fail(std::string("requantize: ") + rule + ", " + text(shape) + ", got " + text(shape_of(array)));
}

struct Operand {
    const void *data;
    intonly_type type;
};

template <typename T>
nb::object requantized(const intonly_rescale &rescale, Operand x, Operand residual, const Shape &shape,
                       intonly_type type) {
    const size_t channels = shape.empty() ? 1 : shape.back();
    size_t rows = 1;
    for (size_t i = 0; i + 1 < shape.size(); ++i) rows *= shape[i];
    Result<T> result(rows * channels);
    intonly_status status;
    {
        nb::gil_scoped_release release;
        status = intonly_requantize(&rescale, x.data, x.type, residual.data, residual.type, rows, channels,
                                    result.owned.get(), type);
    }
    check(status, rescale.fraction_bits == 0
                      ? "requantize: |multiplier| must be 0 or in [2^30, 2^31), shift in 1..62"
                      : "requantize: in the narrow form |multiplier| must be 0 or in [2^14, 2^15), shift in -15..30, "
                        "fraction_bits in 4..7, acc at most int32, zero_point, lo and hi all in -128..127 or in 0..255");
    return result.array(shape);
}

nb::object requantize(const Array &acc, const Array &multiplier, const Array &shift, int64_t zero_point, int64_t lo,
                      int64_t hi, const std::optional<Array> &x_zero, const std::optional<Array> &residual,
                      const std::optional<Array> &residual_multiplier, int64_t residual_zero, int64_t fraction_bits,
                      const std::optional<Array> &residual_shift) {
    const Shape shape = shape_of(acc), constants = shape_of(multiplier);
    const Layout layout = layout_of(constants, shape, "multiplier");
    expect_shape(shift, constants, "shift must have the shape of multiplier");
    if (lo > hi) fail("requantize: lo must not exceed hi, got " + std::to_string(lo) + ".." + std::to_string(hi));
    intonly_rescale rescale{};
    rescale.multiplier = elements<int32_t>(multiplier, "requantize: multiplier");
    rescale.shift = elements<int8_t>(shift, "requantize: shift");
    rescale.period = layout.period;
    rescale.width = layout.width;
    rescale.fraction_bits = int32_of(fraction_bits, "fraction_bits");
    rescale.zero_point = int32_of(zero_point, "zero_point");
    rescale.lo = int32_of(lo, "lo");
    rescale.hi = int32_of(hi, "hi");
    if (x_zero) {
        const Shape zeros = shape_of(*x_zero);
        if (zeros.size() > 1) fail("requantize: x_zero must have shape () or (C,), got " + text(zeros));
        rescale.x_zero_width = layout_of(zeros, shape, "x_zero").width;
        rescale.x_zero = elements<int32_t>(*x_zero, "requantize: x_zero");
    }
    Operand x{raw(acc, "requantize: acc"), type_of(acc, "requantize: acc", "an integer array, int64 at most", 64)};
    Operand joining{nullptr, INTONLY_S8};
    if (residual.has_value() != residual_multiplier.has_value())
        fail("requantize: residual and residual_multiplier go together; give both or none");
    if (residual) {
        expect_shape(*residual, shape, "residual must have the shape of acc");
        expect_shape(*residual_multiplier, constants, "residual_multiplier must have the shape of multiplier");
        joining.data = raw(*residual, "requantize: residual");
        joining.type = type_of(*residual, "requantize: residual", "an integer array of at most 16 bits", 16);
        rescale.residual_multiplier = elements<int32_t>(*residual_multiplier, "requantize: residual_multiplier");
        rescale.residual_zero = int32_of(residual_zero, "residual_zero");
    }
    if (residual_shift.has_value() != (fraction_bits != 0 && residual.has_value()))
        fail("requantize: residual_shift goes with a residual in the narrow form, and only there");
    if (residual_shift) {
        expect_shape(*residual_shift, constants, "residual_shift must have the shape of multiplier");
        rescale.residual_shift = elements<int8_t>(*residual_shift, "requantize: residual_shift");
    }
    const auto run = [&](auto kind, intonly_type type) {
        return requantized<decltype(kind)>(rescale, x, joining, shape, type);
    };
    if (lo >= 0 && hi <= UINT8_MAX) return run(uint8_t{}, INTONLY_U8);
    if (lo >= 0 && hi <= UINT16_MAX) return run(uint16_t{}, INTONLY_U16);
    if (lo >= 0) return run(uint32_t{}, INTONLY_U32);
    if (lo >= INT8_MIN && hi <= INT8_MAX) return run(int8_t{}, INTONLY_S8);
    if (lo >= INT16_MIN && hi <= INT16_MAX) return run(int16_t{}, INTONLY_S16);
    return run(int32_t{}, INTONLY_S32);
}

nb::object floor_div(const Array &a, const Array &b) {
    const int64_t *dividends = elements<int64_t>(a, "floor_div: a"), *divisors = elements<int64_t>(b, "floor_div: b");
    if (b.ndim() != 0 && shape_of(b) != shape_of(a))
        fail("floor_div: b must have the shape of a, " + text(shape_of(a)) + ", or (), got " + text(shape_of(b)));
    Result<int64_t> result(a.size());
    intonly_status status;
    {
        nb::gil_scoped_release release;
        status = intonly_floor_div(dividends, a.size(), divisors, b.size(), result.owned.get());
    }
    check(status, "floor_div: every entry of b must be 1 or more");
    return result.array(shape_of(a));
}

nb::object isqrt(const Array &a) {
    const int64_t *radicands = elements<int64_t>(a, "isqrt: a");
    Result<int64_t> result(a.size());
    intonly_status status;
    {
        nb::gil_scoped_release release;
        status = intonly_isqrt(radicands, a.size(), result.owned.get());
    }
    check(status, "isqrt: every entry of a must be 0 or more");
    return result.array(shape_of(a));
}

void check_format(const char *what, int bits, int qmin, int qmax) {
    const bool fits = bits >= 1 && bits <= 8 && qmin <= qmax &&
                      (qmin >= 0 ? qmax < 1 << bits : qmin >= -(1 << (bits - 1)) && qmax < 1 << (bits - 1));
    if (!fits)
        fail(std::string(what) + ": limits " + limits(qmin, qmax) + " do not fit in " + std::to_string(bits) +
             " bits; the native packing knows 1 to 8");
}

nb::object pack(const Array &codes, int bits, int qmin, int qmax) {
    check_format("pack", bits, qmin, qmax);
    const void *data = nullptr;
    if (qmin < 0)
        data = elements<int8_t>(codes, "pack: codes of a signed format");
    else
        data = elements<uint8_t>(codes, "pack: codes of an unsigned format");
    const size_t size = intonly_packed_size(codes.size(), static_cast<unsigned>(bits));
    Result<uint8_t> result(size);
    intonly_status status;
    {
        nb::gil_scoped_release release;
        status = intonly_pack(static_cast<const uint8_t *>(data), codes.size(), static_cast<unsigned>(bits), qmin, qmax,
                              result.owned.get(), size);
    }
    check(status, "pack: every code must lie in " + limits(qmin, qmax));
    return result.array({size});
}

template <typename T>
nb::object unpacked(const uint8_t *data, size_t size, size_t count, int bits, int qmin, int qmax) {
    Result<T> result(count);
    intonly_status status;
    {
        nb::gil_scoped_release release;
        status = intonly_unpack(data, size, count, static_cast<unsigned>(bits), qmin, qmax,
                                reinterpret_cast<uint8_t *>(result.owned.get()));
    }
    check(status, "unpack: every stored code must lie in " + limits(qmin, qmax));
    return result.array({count});
}

nb::object unpack(const Array &packed, size_t count, int bits, int qmin, int qmax) {
    check_format("unpack", bits, qmin, qmax);
    const uint8_t *data = elements<uint8_t>(packed, "unpack: packed");
    const size_t size = intonly_packed_size(count, static_cast<unsigned>(bits));
    if (packed.size() != size)
        fail("unpack: " + std::to_string(count) + " codes of " + std::to_string(bits) + " bits take " +
             std::to_string(size) + " bytes, got " + std::to_string(packed.size()));
    return qmin < 0 ? unpacked<int8_t>(data, size, count, bits, qmin, qmax)
                    : unpacked<uint8_t>(data, size, count, bits, qmin, qmax);
}

} // namespace

void intonly_bind_engine(nb::module_ &module); // engine_module.cpp
void intonly_bind_boundary(nb::module_ &module); // boundary_module.cpp
void intonly_bind_peak(nb::module_ &module); // peak_module.cpp

NB_MODULE(_native, module) {
    module.doc() = "The arithmetic law and bit packing in C; bytes equal to intonly.core.";
    module.def("law_version", &intonly_law_version);
    module.def("requantize", &requantize, "acc"_a, "multiplier"_a, "shift"_a, "zero_point"_a, "lo"_a, "hi"_a,
               "x_zero"_a = nb::none(), "residual"_a = nb::none(), "residual_multiplier"_a = nb::none(),
               "residual_zero"_a = 0, "fraction_bits"_a = 0, "residual_shift"_a = nb::none());
    module.def("floor_div", &floor_div, "a"_a, "b"_a);
    module.def("isqrt", &isqrt, "a"_a);
    module.def("pack", &pack, "codes"_a, "bits"_a, "qmin"_a, "qmax"_a);
    module.def("unpack", &unpack, "packed"_a, "count"_a, "bits"_a, "qmin"_a, "qmax"_a);
    intonly_bind_engine(module);
    intonly_bind_boundary(module);
    intonly_bind_peak(module);
}
