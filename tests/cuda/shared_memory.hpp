// A block's dynamic shared memory: garbage when the block begins, and fenced.
#pragma once

#include <cstddef>
#include <string>

namespace relex::emulation {

// It ends where a page begins that must not be touched, but for up to 127 bytes that its alignment
// costs. Those, and some in front of it, hold a pattern that has to be there afterwards.
class SharedMemory {
  public:
    static constexpr std::size_t kAlignment = 128; // what the device's declaration promises

    ~SharedMemory();
    SharedMemory() = default;
    SharedMemory(const SharedMemory&) = delete;
    SharedMemory& operator=(const SharedMemory&) = delete;

    // `size` bytes of 0xFF: NaN as bf16, f16, f32 and f64, an impossible index as an integer.
    void begin_block(std::size_t size);

    // What was written outside of it without hitting the pages around, or nothing.
    std::string damage() const;

    unsigned char* data() const { return data_; }
    std::size_t size() const { return size_; }
    bool holds(const void* address, std::size_t bytes) const;

    // Whether the address lies in the pages around it.
    bool fences(const void* address) const;

    // "12 bytes past the 1024 bytes of dynamic shared memory"
    std::string place(const void* address) const;

  private:
    std::size_t padding() const { return (kAlignment - size_ % kAlignment) % kAlignment; }

    unsigned char* memory_ = nullptr;
    unsigned char* data_ = nullptr;
    std::size_t size_ = 0;
};

} // namespace relex::emulation
