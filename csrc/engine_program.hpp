// SPDX-License-Identifier: Apache-2.0
//
// A checked program that Python runs: its words, its constants, and a stock of contexts, each with what one run needs
// for itself. Meaning and errors: src/intonly/_native.pyi.
#pragma once

#include <algorithm>
#include <atomic>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <pthread.h>

#include "engine_arrays.hpp"
#include "engine_c.hpp"
#include "engine_memory.hpp"

namespace engine {

// How often this process has been forked off: a child has no threads of the teams that its parent started.
inline unsigned generation() {
    static std::atomic<unsigned> forks{0};
    static const int registered = pthread_atfork(nullptr, nullptr, [] { ++forks; });
    (void)registered;
    return forks;
}

// An arena and a team of threads: one run at a time.
class Context {
public:
    Context(size_t arena_bytes, unsigned team) : arena(arena_bytes), threads(team), born(generation()) {
        if (team == 1) return;
        memory = Block(intonly_pool_bytes(team));
        if (intonly_pool_start(memory.data, team, &pool) != INTONLY_OK)
            fail("the system did not start " + std::to_string(team - 1) + " threads; ask for fewer");
    }
    Context(const Context &) = delete;
    Context &operator=(const Context &) = delete;

    ~Context() {
        if (fits(threads))
            intonly_pool_stop(pool);
        else
            memory.forget();
    }

    // Whether it can run with this many threads, in this process.
    bool fits(unsigned wanted) const { return threads == wanted && (threads == 1 || born == generation()); }

    Block arena;
    intonly_pool *pool = nullptr;

private:
    unsigned threads, born;
    Block memory;
};

class Program {
public:
    Program(std::vector<int64_t> steps_, nb::object constants_, size_t arena_bytes_, std::vector<Wanted> inputs_,
            std::vector<Wanted> outputs_, const intonly_kernels *kernels_)
        : words(std::move(steps_)), inputs(std::move(inputs_)), outputs(std::move(outputs_)), kernels(kernels_),
          arena_size(arena_bytes_), constants(std::move(constants_)) {
        adopt_constants();
        check();
    }

    // Hold what a run reads and writes, and the context it has for itself until it ends. The arrays hold `pieces` times
    // what the program takes; it runs on one piece after another.
    struct Run {
        size_t pieces = 1;
        std::vector<Readable> inputs;
        std::vector<Array> outputs;
        nb::list results;
        std::vector<uint8_t *> bases;
        std::unique_ptr<Context> context;
    };

    Run prepare(nb::sequence given, std::optional<nb::sequence> targets, unsigned threads, size_t pieces = 1) {
        if (pieces < 1 || pieces > INT32_MAX) fail("pieces must be 1 or more, got " + std::to_string(pieces));
        if (intonly_pool_bytes(threads) == 0)
            fail("threads must be 1 to " + std::to_string(+INTONLY_MOST_THREADS) + ", got " + std::to_string(threads));
        Run run;
        run.pieces = pieces;
        expect_count("inputs", nb::len(given), inputs.size());
        for (size_t i = 0; i < inputs.size(); ++i) run.inputs.push_back(inputs[i].times(pieces).readable(given[i]));
        if (targets) expect_count("outputs", nb::len(*targets), outputs.size());
        for (size_t i = 0; i < outputs.size(); ++i) {
            const Wanted wanted = outputs[i].times(pieces);
            nb::object array = targets ? nb::object((*targets)[i]) : wanted.make();
            run.outputs.push_back(wanted.writable(array));
            run.results.append(array);
        }
        expect_apart(run);
        run.context = take(threads);
        bind(run);
        return run;
    }

    // Point a run to its spaces; again after its context has changed.
    void bind(Run &run) const {
        run.bases = {constants_data, run.context->arena.data};
        for (const Readable &array : run.inputs)
            run.bases.push_back(static_cast<uint8_t *>(const_cast<void *>(array.data())));
        for (const Array &array : run.outputs) run.bases.push_back(static_cast<uint8_t *>(array.data()));
    }

    // Called without the interpreter lock.
    void execute(Run &run, int64_t *nanoseconds = nullptr) const {
        for (size_t piece = 0; piece < run.pieces; ++piece) {
            intonly_program_run(words.data(), words.size(), kernels, run.bases.data(), run.context->pool, nanoseconds);
            if (run.pieces > 1) advance(run, 1);
        }
        if (run.pieces > 1) advance(run, -static_cast<std::ptrdiff_t>(run.pieces));
    }

    std::unique_ptr<Context> take(unsigned threads) {
        {
            const std::lock_guard<std::mutex> guard(mutex);
            for (auto it = idle.rbegin(); it != idle.rend(); ++it) {
                if (!(*it)->fits(threads)) continue;
                std::unique_ptr<Context> found = std::move(*it);
                idle.erase(std::next(it).base());
                return found;
            }
        }
        return std::make_unique<Context>(arena_size, threads);
    }

    void give_back(std::unique_ptr<Context> context) {
        const std::lock_guard<std::mutex> guard(mutex);
        idle.push_back(std::move(context));
    }

    void reserve(size_t contexts, unsigned threads) {
        std::vector<std::unique_ptr<Context>> taken;
        for (size_t i = 0; i < contexts; ++i) taken.push_back(take(threads));
        for (auto &context : taken) give_back(std::move(context));
    }

    size_t arena_bytes() const { return arena_size; }
    size_t steps() const { return step_count; }
    size_t waits() const { return wait_count; }
    const char *isa() const { return kernels->isa; }

private:
    // Move the caller's spaces by so many pieces.
    void advance(Run &run, std::ptrdiff_t pieces) const {
        for (size_t i = 0; i < inputs.size(); ++i)
            run.bases[INTONLY_CALLER + i] += pieces * static_cast<std::ptrdiff_t>(inputs[i].bytes());
        for (size_t i = 0; i < outputs.size(); ++i)
            run.bases[INTONLY_CALLER + inputs.size() + i] += pieces * static_cast<std::ptrdiff_t>(outputs[i].bytes());
    }

    static void expect_count(const char *what, size_t got, size_t wanted) {
        if (got != wanted)
            fail(std::string("program: ") + what + " must be " + std::to_string(wanted) + " arrays, got " +
                 std::to_string(got));
    }

    // A kernel may write an output before it has read all of an input.
    void expect_apart(const Run &run) const {
        const auto overlap = [](const void *a, size_t m, const void *b, size_t n) {
            const auto x = reinterpret_cast<uintptr_t>(a), y = reinterpret_cast<uintptr_t>(b);
            return x < y + n && y < x + m;
        };
        for (size_t i = 0; i < outputs.size(); ++i) {
            const void *target = run.outputs[i].data();
            for (size_t k = 0; k < inputs.size(); ++k)
                if (overlap(target, run.pieces * outputs[i].bytes(), run.inputs[k].data(),
                            run.pieces * inputs[k].bytes()))
                    fail(outputs[i].what + " shares memory with " + inputs[k].what);
            for (size_t k = 0; k < i; ++k)
                if (overlap(target, run.pieces * outputs[i].bytes(), run.outputs[k].data(),
                            run.pieces * outputs[k].bytes()))
                    fail(outputs[i].what + " shares memory with " + outputs[k].what);
        }
    }

    void adopt_constants() {
        Readable array;
        const bool fits = nb::try_cast(constants, array, false) && array.ndim() == 1 &&
                          array.dtype() == nb::dtype<uint8_t>() && array.stride(0) == 1;
        if (!fits) fail("program: constants must be a uint8 array of one axis, made by aligned_bytes");
        constants_data = static_cast<uint8_t *>(const_cast<void *>(array.data()));
        constants_size = array.size();
        if (reinterpret_cast<uintptr_t>(constants_data) % line != 0 ||
            !Blocks::all().hold(constants_data, constants_size))
            fail("program: constants must be made by aligned_bytes, which aligns them and keeps readable bytes behind "
                 "them");
        constants.attr("setflags")(nb::arg("write") = false);
    }

    void check() {
        std::vector<size_t> sizes = {constants_size, arena_size};
        for (const Wanted &input : inputs) sizes.push_back(input.bytes());
        for (const Wanted &output : outputs) sizes.push_back(output.bytes());
        const intonly_spaces spaces = {sizes.data(), sizes.size(), INTONLY_CALLER + inputs.size(), constants_data};
        intonly_fault fault = {0, nullptr};
        intonly_status status;
        {
            nb::gil_scoped_release release;
            status = intonly_program_check(words.data(), words.size(), kernels, &spaces, &fault);
        }
        if (status != INTONLY_OK) {
            const std::string name = kind_of(fault.step);
            fail("program: step " + std::to_string(fault.step) + (name.empty() ? "" : " (" + name + ")") + ": " +
                 (fault.what ? fault.what : intonly_status_text(status)));
        }
        (void)intonly_program_loosen(words.data(), words.size(), kernels, &spaces, &fault);
        for (size_t at = 0; at < words.size(); at += static_cast<size_t>(words[at + 1])) {
            ++step_count;
            wait_count += reinterpret_cast<const intonly_head *>(words.data() + at)->beside == 0;
        }
    }

    // Return the name of a step's kind; "" when it has none. All steps before it are sound.
    std::string kind_of(size_t step) const {
        size_t at = 0;
        for (size_t i = 0; i < step; ++i) at += static_cast<size_t>(words[at + 1]);
        if (at >= words.size()) return "";
        switch (words[at]) {
#define INTONLY_NAME(name)                                                                                             \
    case INTONLY_KIND_##name: return #name;
            INTONLY_STEPS(INTONLY_NAME)
#undef INTONLY_NAME
        default: return "";
        }
    }

    std::vector<int64_t> words;
    const std::vector<Wanted> inputs, outputs;
    const intonly_kernels *kernels;
    const size_t arena_size;
    nb::object constants;
    uint8_t *constants_data = nullptr;
    size_t constants_size = 0, step_count = 0, wait_count = 0;
    std::mutex mutex;
    std::vector<std::unique_ptr<Context>> idle;
};

// A program with its arrays and a context of its own, ready to run again and again.
class BoundRun {
public:
    BoundRun(nb::object owner_, Program &program_, Program::Run run_, unsigned threads_)
        : owner(std::move(owner_)), program(program_), run(std::move(run_)), threads(threads_) {}

    ~BoundRun() { program.give_back(std::move(run.context)); }

    void operator()() {
        if (!run.context->fits(threads)) renew();
        nb::gil_scoped_release release;
        const std::lock_guard<std::mutex> guard(mutex);
        program.execute(run);
    }

    nb::list outputs() const { return run.results; }

private:
    // In a forked process, start a team of its own. Needs the interpreter lock.
    void renew() {
        const std::lock_guard<std::mutex> guard(mutex);
        run.context = program.take(threads);
        program.bind(run);
    }

    nb::object owner;
    Program &program;
    Program::Run run;
    unsigned threads;
    std::mutex mutex;
};

} // namespace engine
