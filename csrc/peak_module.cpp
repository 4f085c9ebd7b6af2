// SPDX-License-Identifier: Apache-2.0
//
// How fast a core can multiply and add at all (peak.h), in the Python module intonly._native.

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include <cstdint>
#include <string>

extern "C" {
#include "peak.h"
}

namespace nb = nanobind;
using namespace nb::literals;

static int64_t peak_macs(const std::string &isa, int64_t iterations) {
    nb::gil_scoped_release release;
    for (int number = 0; number < INTONLY_ISAS; ++number) {
        const auto known = static_cast<intonly_isa>(number);
        if (intonly_isa_name(number) == isa && intonly_kernels_of(known) != nullptr)
            return intonly_peak_macs(known, iterations);
    }
    return 0;
}

void intonly_bind_peak(nb::module_ &module) { module.def("peak_macs", &peak_macs, "isa"_a, "iterations"_a); }
