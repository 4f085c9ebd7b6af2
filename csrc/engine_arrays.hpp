// SPDX-License-Identifier: Apache-2.0
//
// Arrays that come from Python and go there: what was expected, what came, and errors that say both.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace engine {

namespace nb = nanobind;

using Array = nb::ndarray<nb::device::cpu>;
using Readable = nb::ndarray<nb::ro, nb::device::cpu>;
using Shape = std::vector<size_t>;

[[noreturn]] inline void fail(const std::string &message) {
    using namespace nb::literals;
    nb::object kind = nb::module_::import_("intonly.core.errors").attr("BackendError");
    nb::object error = kind(message.c_str(), "backend"_a = "native");
    PyErr_SetObject(kind.ptr(), error.ptr());
    throw nb::python_error();
}

inline std::string text(const Shape &shape) {
    std::string result = "(";
    for (size_t i = 0; i < shape.size(); ++i) result += (i ? ", " : "") + std::to_string(shape[i]);
    return result + (shape.size() == 1 ? ",)" : ")");
}

inline std::string text(nb::dlpack::dtype type) {
    const std::string bits = std::to_string(type.bits);
    switch (static_cast<nb::dlpack::dtype_code>(type.code)) {
    case nb::dlpack::dtype_code::Int: return "int" + bits;
    case nb::dlpack::dtype_code::UInt: return "uint" + bits;
    case nb::dlpack::dtype_code::Float: return "float" + bits;
    case nb::dlpack::dtype_code::Bool: return "bool";
    default: return "another type of " + bits + " bits";
    }
}

template <typename A> Shape shape_of(const A &array) {
    Shape shape(array.ndim());
    for (size_t i = 0; i < shape.size(); ++i) shape[i] = array.shape(i);
    return shape;
}

// An array that a function wants: fixed in type and shape, contiguous, aligned.
struct Wanted {
    std::string what; // how messages call it
    nb::dlpack::dtype type;
    Shape shape;

    size_t bytes() const {
        size_t result = type.bits / 8;
        for (size_t extent : shape) result *= extent;
        return result;
    }

    // The same with `pieces` times as many entries on the first axis.
    Wanted times(size_t pieces) const {
        Wanted several = *this;
        if (pieces == 1) return several;
        if (shape.empty()) fail(what + " has no axis that could hold several pieces");
        if ((bytes() >> 16) * pieces >= size_t{1} << 31) fail(what + ": so many pieces are more than 2^47 bytes");
        several.shape[0] *= pieces;
        return several;
    }

    template <typename A> void check(const A &array) const {
        if (array.dtype() != type) fail(what + " must be " + text(type) + ", got " + text(array.dtype()));
        if (shape_of(array) != shape) fail(what + " must have shape " + text(shape) + ", got " + text(shape_of(array)));
        int64_t stride = 1;
        for (size_t i = shape.size(); i-- > 0;) {
            if (shape[i] > 1 && array.stride(i) != stride)
                fail(what + " must be contiguous in C order; numpy.ascontiguousarray makes it so");
            stride *= static_cast<int64_t>(shape[i]);
        }
        if (reinterpret_cast<uintptr_t>(array.data()) % array.itemsize() != 0) fail(what + " is not aligned in memory");
    }

    Readable readable(nb::handle value) const {
        Readable array;
        if (!nb::try_cast(value, array, false)) fail(what + " must be a NumPy array, got " + type_name(value));
        check(array);
        return array;
    }

    Array writable(nb::handle value) const {
        Array array;
        if (!nb::try_cast(value, array, false)) {
            (void)readable(value); // fails here when it is no array or does not fit
            fail(what + " is read-only");
        }
        check(array);
        return array;
    }

    // Return a new array whose contents are not set.
    nb::object make() const {
        auto *data = new uint64_t[bytes() / 8 + 1];
        nb::capsule owner(data, [](void *p) noexcept { delete[] static_cast<uint64_t *>(p); });
        return nb::cast(nb::ndarray<nb::numpy>(data, shape.size(), shape.data(), owner, nullptr, type));
    }

    static std::string type_name(nb::handle value) { return nb::inst_name(value).c_str(); }
};

} // namespace engine
