// SPDX-License-Identifier: Apache-2.0
//
// The engine in the Python module intonly._native: the list of steps, the instruction sets, packing, and programs.
//
// Signatures and their meaning: src/intonly/_native.pyi.

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "engine_arrays.hpp"
#include "engine_c.hpp"
#include "engine_memory.hpp"
#include "engine_program.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace engine {
namespace {

using Contiguous = nb::ndarray<nb::ro, nb::c_contig, nb::device::cpu>;
using Slot = std::tuple<std::string, std::string, std::vector<int64_t>>; // name, type, shape

nb::dict steps() {
    nb::dict result;
#define INTONLY_ONE(name) fields.append(nb::make_tuple(#name, 1));
#define INTONLY_SEVERAL(name, count) fields.append(nb::make_tuple(#name, +count));
#define INTONLY_STEP(name, FIELDS)                                                                                     \
    {                                                                                                                  \
        nb::list fields;                                                                                               \
        FIELDS(INTONLY_ONE, INTONLY_SEVERAL)                                                                           \
        result[#name] = nb::make_tuple(+INTONLY_KIND_##name, nb::tuple(fields));                                       \
    }
    INTONLY_STEP(gemm, INTONLY_GEMM_FIELDS)
    INTONLY_STEP(window, INTONLY_WINDOW_FIELDS)
    INTONLY_STEP(contract, INTONLY_CONTRACT_FIELDS)
    INTONLY_STEP(map, INTONLY_MAP_FIELDS)
    INTONLY_STEP(copy, INTONLY_COPY_FIELDS)
    INTONLY_STEP(gather, INTONLY_GATHER_FIELDS)
    INTONLY_STEP(halo, INTONLY_HALO_FIELDS)
    INTONLY_STEP(attention, INTONLY_ATTENTION_FIELDS)
    INTONLY_STEP(norm, INTONLY_NORM_FIELDS)
#undef INTONLY_STEP
#undef INTONLY_SEVERAL
#undef INTONLY_ONE
    if (nb::len(result) != INTONLY_KINDS) fail("steps: the module does not list every kind");
    return result;
}

std::vector<std::string> isas() {
    std::vector<std::string> names;
    for (int isa = 0; isa < INTONLY_ISAS; ++isa)
        if (intonly_kernels_of(static_cast<intonly_isa>(isa))) names.emplace_back(intonly_isa_name(isa));
    return names;
}

std::string best_isa() { return intonly_isa_name(intonly_best_isa()); }

const intonly_kernels *kernels_of(const std::string &name) {
    std::string here;
    for (int isa = 0; isa < INTONLY_ISAS; ++isa) {
        const intonly_kernels *kernels = intonly_kernels_of(static_cast<intonly_isa>(isa));
        if (kernels && name == intonly_isa_name(isa)) return kernels;
        if (kernels) here += (here.empty() ? "" : ", ") + std::string(intonly_isa_name(isa));
    }
    fail("isa must be one that this machine and this build have (" + here + "), got '" + name + "'");
}

nb::dict isa_facts(const std::string &isa) {
    nb::dict facts;
    facts["wants_signed"] = kernels_of(isa)->wants_signed;
    return facts;
}

int64_t attention_scratch(int64_t keys, int64_t depth, int64_t width) {
    return intonly_attention_scratch(keys, depth, width);
}

nb::object aligned_bytes(size_t size) {
    auto block = std::make_unique<Block>(size);
    Blocks::all().add(*block);
    uint8_t *data = block->data;
    nb::capsule owner(block.release(), [](void *p) noexcept {
        const std::unique_ptr<Block> ending(static_cast<Block *>(p));
        Blocks::all().remove(*ending);
    });
    return nb::cast(nb::ndarray<nb::numpy, uint8_t>(data, 1, &size, owner));
}

template <typename T>
const T *per_channel(const std::optional<Contiguous> &array, const std::string &what, size_t channels) {
    if (!array) return nullptr;
    Wanted{what, nb::dtype<T>(), {channels}}.check(*array);
    return static_cast<const T *>(array->data());
}

using Size = size_t (*)(const intonly_weights *);
using Pack = void (*)(const intonly_weights *, uint8_t *);

// Check the constants that both kinds of packing share, and pack them.
nb::object packed(const std::string &what, intonly_weights weights, const Contiguous &w, const Contiguous &bias,
                  const std::optional<Contiguous> &multiplier, const std::optional<Contiguous> &shift,
                  const std::optional<Contiguous> &residual_multiplier, const std::optional<Contiguous> &residual_shift,
                  Size size_of, Pack pack) {
    const Shape shape = shape_of(w);
    const size_t channels = shape[0];
    Wanted{what + ": w", nb::dtype<int8_t>(), shape}.check(w);
    if (std::count(shape.begin(), shape.end(), size_t{0}) != 0) fail(what + ": w is empty, " + text(shape));
    if (weights.form < INTONLY_FORM_ACC || weights.form > INTONLY_FORM_NARROW)
        fail(what + ": form must be 0, 1 or 2, got " + std::to_string(weights.form));
    const bool rescales = weights.form != INTONLY_FORM_ACC, joins = residual_multiplier.has_value();
    if (multiplier.has_value() != rescales || shift.has_value() != rescales)
        fail(what + ": multiplier and shift go with forms 1 and 2, and only with those");
    if (joins && !rescales) fail(what + ": residual_multiplier goes with forms 1 and 2, and only with those");
    if (residual_shift.has_value() != (joins && weights.form == INTONLY_FORM_NARROW))
        fail(what + ": residual_shift goes with residual_multiplier in form 2, and only with that");
    weights.channels = static_cast<int64_t>(channels);
    weights.taps = static_cast<int64_t>(shape[1]);
    weights.w = static_cast<const int8_t *>(w.data());
    weights.bias = per_channel<int32_t>(bias, what + ": bias", channels);
    weights.multiplier = per_channel<int32_t>(multiplier, what + ": multiplier", channels);
    weights.shift = per_channel<int8_t>(shift, what + ": shift", channels);
    weights.residual_multiplier = per_channel<int32_t>(residual_multiplier, what + ": residual_multiplier", channels);
    weights.residual_shift = per_channel<int8_t>(residual_shift, what + ": residual_shift", channels);
    const size_t size = size_of(&weights);
    if (size == 0) return nb::none();
    nb::object result = aligned_bytes(size);
    auto *data = static_cast<uint8_t *>(nb::cast<nb::ndarray<uint8_t>>(result).data());
    {
        nb::gil_scoped_release release;
        pack(&weights, data);
    }
    return result;
}

nb::object gemm_pack(const std::string &isa, const Contiguous &w, int64_t tap_bytes, const Contiguous &bias,
                     int64_t form, const std::optional<Contiguous> &multiplier, const std::optional<Contiguous> &shift,
                     const std::optional<Contiguous> &residual_multiplier,
                     const std::optional<Contiguous> &residual_shift, int64_t fraction_bits, int64_t acc_limit,
                     bool x_signed, bool x_words) {
    const intonly_kernels *kernels = kernels_of(isa);
    if (w.ndim() != 3) fail("gemm_pack: w must have the axes (channels, taps, depth), got shape " + text(shape_of(w)));
    intonly_weights weights{};
    weights.depth = static_cast<int64_t>(w.shape(2));
    weights.tap_bytes = tap_bytes;
    weights.form = form;
    weights.fraction_bits = fraction_bits;
    weights.acc_limit = acc_limit;
    weights.x_signed = x_signed;
    weights.x_words = x_words;
    if (tap_bytes < weights.depth << x_words || tap_bytes % 4 != 0)
        fail(std::string("gemm_pack: tap_bytes must be a multiple of 4 and at least ") + (x_words ? "twice " : "") +
             "the depth " + std::to_string(weights.depth) + ", got " + std::to_string(tap_bytes));
    return packed("gemm_pack", weights, w, bias, multiplier, shift, residual_multiplier, residual_shift,
                  kernels->gemm_size, kernels->gemm_pack);
}

nb::object depthwise_pack(const std::string &isa, const Contiguous &w, const Contiguous &bias, int64_t form,
                          const std::optional<Contiguous> &multiplier, const std::optional<Contiguous> &shift,
                          const std::optional<Contiguous> &residual_multiplier,
                          const std::optional<Contiguous> &residual_shift, int64_t fraction_bits, int64_t acc_limit,
                          bool x_signed) {
    const intonly_kernels *kernels = kernels_of(isa);
    if (w.ndim() != 2) fail("depthwise_pack: w must have the axes (channels, taps), got shape " + text(shape_of(w)));
    intonly_weights weights{};
    weights.depth = weights.tap_bytes = 1;
    weights.form = form;
    weights.fraction_bits = fraction_bits;
    weights.acc_limit = acc_limit;
    weights.x_signed = x_signed;
    return packed("depthwise_pack", weights, w, bias, multiplier, shift, residual_multiplier, residual_shift,
                  kernels->depthwise_size, kernels->depthwise_pack);
}

nb::dlpack::dtype type_named(const std::string &name, const std::string &what) {
    const nb::dlpack::dtype types[] = {nb::dtype<int8_t>(),   nb::dtype<uint8_t>(), nb::dtype<int16_t>(),
                                       nb::dtype<uint16_t>(), nb::dtype<int32_t>(), nb::dtype<uint32_t>(),
                                       nb::dtype<int64_t>()};
    for (nb::dlpack::dtype type : types)
        if (text(type) == name) return type;
    fail(what + ": the type must be int8, uint8, int16, uint16, int32, uint32 or int64, got '" + name + "'");
}

std::vector<Wanted> wanted(const std::string &role, const std::vector<Slot> &slots) {
    std::vector<Wanted> result;
    for (const auto &[name, type, extents] : slots) {
        const std::string what = role + " '" + name + "'";
        Shape shape;
        size_t bytes = 8;
        for (int64_t extent : extents) {
            if (extent < 1 || extent > INT32_MAX || bytes * static_cast<size_t>(extent) > size_t{1} << 47)
                fail(what + ": every extent must be 1 or more, and the whole within 2^47 bytes");
            shape.push_back(static_cast<size_t>(extent));
            bytes *= shape.back();
        }
        result.push_back(Wanted{what, type_named(type, what), shape});
    }
    return result;
}

void create(Program *self, const nb::ndarray<nb::ro, nb::c_contig, nb::device::cpu> &words, nb::object constants,
            size_t arena_bytes, const std::vector<Slot> &inputs, const std::vector<Slot> &outputs,
            const std::string &isa) {
    if (words.ndim() != 1) fail("program: words must have one axis, got shape " + text(shape_of(words)));
    Wanted{"program: words", nb::dtype<int64_t>(), shape_of(words)}.check(words);
    const auto *data = static_cast<const int64_t *>(words.data());
    new (self) Program(std::vector<int64_t>(data, data + words.size()), std::move(constants), arena_bytes,
                       wanted("input", inputs), wanted("output", outputs), kernels_of(isa));
}

nb::list run(Program &program, nb::sequence inputs, std::optional<nb::sequence> outputs, unsigned threads,
             size_t pieces) {
    Program::Run prepared = program.prepare(std::move(inputs), std::move(outputs), threads, pieces);
    {
        nb::gil_scoped_release release;
        program.execute(prepared);
    }
    program.give_back(std::move(prepared.context));
    return prepared.results;
}

BoundRun *bind(nb::object self, nb::sequence inputs, std::optional<nb::sequence> outputs, unsigned threads,
               size_t pieces) {
    auto &program = nb::cast<Program &>(self);
    return new BoundRun(self, program, program.prepare(std::move(inputs), std::move(outputs), threads, pieces),
                        threads);
}

nb::object profile(Program &program, nb::sequence inputs, size_t repeats, unsigned threads) {
    if (repeats < 1) fail("profile: repeats must be 1 or more");
    Program::Run prepared = program.prepare(std::move(inputs), std::nullopt, threads);
    const Wanted result{"profile", nb::dtype<int64_t>(), {program.steps()}};
    nb::object array = result.make();
    auto *least = static_cast<int64_t *>(result.writable(array).data());
    std::fill_n(least, program.steps(), INT64_MAX);
    {
        nb::gil_scoped_release release;
        std::vector<int64_t> nanoseconds(program.steps());
        for (size_t i = 0; i < repeats; ++i) {
            std::fill(nanoseconds.begin(), nanoseconds.end(), 0);
            program.execute(prepared, nanoseconds.data());
            for (size_t k = 0; k < nanoseconds.size(); ++k) least[k] = std::min(least[k], nanoseconds[k]);
        }
    }
    program.give_back(std::move(prepared.context));
    return array;
}

} // namespace
} // namespace engine

void intonly_bind_engine(nb::module_ &module);

void intonly_bind_engine(nb::module_ &module) {
    using namespace engine;
    module.attr("STEPS") = steps();
    module.def("isas", &isas);
    module.def("best_isa", &best_isa);
    module.def("isa_facts", &isa_facts, "isa"_a);
    module.def("attention_scratch", &attention_scratch, "keys"_a, "depth"_a, "width"_a);
    module.def("aligned_bytes", &aligned_bytes, "size"_a);
    module.def("gemm_pack", &gemm_pack, "isa"_a, "w"_a, "tap_bytes"_a, "bias"_a, "form"_a, "multiplier"_a.none(),
               "shift"_a.none(), "residual_multiplier"_a.none(), "residual_shift"_a.none(), "fraction_bits"_a,
               "acc_limit"_a, "x_signed"_a, "x_words"_a = false);
    module.def("depthwise_pack", &depthwise_pack, "isa"_a, "w"_a, "bias"_a, "form"_a, "multiplier"_a.none(),
               "shift"_a.none(), "residual_multiplier"_a.none(), "residual_shift"_a.none(), "fraction_bits"_a,
               "acc_limit"_a, "x_signed"_a);
    nb::class_<Program>(module, "Program")
        .def("__init__", &create, "words"_a, "constants"_a, "arena_bytes"_a, "inputs"_a, "outputs"_a, "isa"_a)
        .def("run", &run, "inputs"_a, "outputs"_a = nb::none(), "threads"_a = 1, "pieces"_a = 1)
        .def("bind", &bind, nb::rv_policy::take_ownership, "inputs"_a, "outputs"_a = nb::none(), "threads"_a = 1,
             "pieces"_a = 1)
        .def("reserve", &Program::reserve, "contexts"_a = 1, "threads"_a = 1)
        .def("profile", &profile, "inputs"_a, "repeats"_a = 10, "threads"_a = 1)
        .def_prop_ro("arena_bytes", &Program::arena_bytes)
        .def_prop_ro("steps", &Program::steps)
        .def_prop_ro("waits", &Program::waits)
        .def_prop_ro("isa", &Program::isa);
    nb::class_<BoundRun>(module, "BoundRun")
        .def("__call__", &BoundRun::operator())
        .def_prop_ro("outputs", &BoundRun::outputs);
}
