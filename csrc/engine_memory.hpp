// SPDX-License-Identifier: Apache-2.0
//
// Memory of the engine: aligned, zeroed, with bytes behind it that a kernel may read; and the list of such blocks that
// Python holds, so that a program can tell whether its constants are one of them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <map>
#include <mutex>
#include <new>
#include <utility>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "engine_c.hpp"

namespace engine {

constexpr size_t line = 64, huge_page = size_t{1} << 21;
constexpr size_t behind = 2 * INTONLY_SLACK; // twice what kernels may rely on

// A block of its own; zeroed, aligned to a cache line. Large blocks ask for huge pages, which the system may refuse.
class Block {
public:
    Block() = default;

    explicit Block(size_t bytes) : size(bytes) {
        const size_t alignment = bytes >= huge_page ? huge_page : line;
        void *memory = nullptr;
        if (bytes > SIZE_MAX - behind || posix_memalign(&memory, alignment, bytes + behind) != 0)
            throw std::bad_alloc();
#if defined(__linux__) && defined(MADV_HUGEPAGE)
        if (bytes >= huge_page) (void)madvise(memory, bytes, MADV_HUGEPAGE);
#endif
        std::memset(memory, 0, bytes + behind);
        data = static_cast<uint8_t *>(memory);
    }

    Block(Block &&other) noexcept : data(std::exchange(other.data, nullptr)), size(other.size) {}
    Block &operator=(Block &&other) noexcept {
        std::swap(data, other.data);
        std::swap(size, other.size);
        return *this;
    }
    ~Block() { std::free(data); }

    // Leave the memory to whoever still uses it.
    void forget() { data = nullptr; }

    uint8_t *data = nullptr;
    size_t size = 0;
};

// The blocks that stand behind arrays of Python.
class Blocks {
public:
    static Blocks &all() {
        static Blocks blocks;
        return blocks;
    }

    void add(const Block &block) {
        const std::lock_guard<std::mutex> guard(mutex);
        sizes[block.data] = block.size;
    }

    void remove(const Block &block) {
        const std::lock_guard<std::mutex> guard(mutex);
        sizes.erase(block.data);
    }

    bool hold(const uint8_t *data, size_t size) {
        const std::lock_guard<std::mutex> guard(mutex);
        auto above = sizes.upper_bound(data);
        if (above == sizes.begin()) return false;
        const auto &[start, length] = *std::prev(above);
        const size_t offset = static_cast<size_t>(data - start);
        return offset <= length && size <= length - offset;
    }

private:
    std::mutex mutex;
    std::map<const uint8_t *, size_t> sizes;
};

} // namespace engine
