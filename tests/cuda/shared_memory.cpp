#include "shared_memory.hpp"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <new>

#include <sys/mman.h>

namespace relex::emulation {

namespace {

constexpr std::size_t kFence = std::size_t{64} << 10; // a page, whatever its size
constexpr std::size_t kRoom = std::size_t{256} << 10; // more than any GPU's, and the front canary
constexpr std::size_t kFront = 512;                   // bytes of it
constexpr unsigned char kCanary = 0xA5, kGarbage = 0xFF;

// The first of n bytes that is not the pattern, or null.
const unsigned char* first_change(const unsigned char* bytes, std::size_t n) {
    const auto* end = bytes + n;
    const auto* found = std::find_if(bytes, end, [](unsigned char b) { return b != kCanary; });
    return found == end ? nullptr : found;
}

} // namespace

SharedMemory::~SharedMemory() {
    if (memory_ != nullptr) {
        munmap(memory_, 2 * kFence + kRoom);
    }
}

void SharedMemory::begin_block(std::size_t size) {
    if (memory_ == nullptr) {
        void* found = mmap(nullptr, 2 * kFence + kRoom, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (found == MAP_FAILED) {
            throw std::bad_alloc();
        }
        memory_ = static_cast<unsigned char*>(found);
        mprotect(memory_, kFence, PROT_NONE);
        mprotect(memory_ + kFence + kRoom, kFence, PROT_NONE);
    }
    size_ = size;
    data_ = memory_ + kFence + kRoom - size - padding();
    std::memset(data_ - kFront, kCanary, kFront);
    std::memset(data_, kGarbage, size);
    std::memset(data_ + size, kCanary, padding());
}

std::string SharedMemory::damage() const {
    const unsigned char* found = first_change(data_ - kFront, kFront);
    if (found == nullptr) {
        found = first_change(data_ + size_, padding());
    }
    return found == nullptr ? "" : "something was written " + place(found);
}

bool SharedMemory::holds(const void* address, std::size_t bytes) const {
    const auto at = reinterpret_cast<std::uintptr_t>(address);
    const auto begin = reinterpret_cast<std::uintptr_t>(data_);
    return at >= begin && at - begin <= size_ && size_ - (at - begin) >= bytes;
}

bool SharedMemory::fences(const void* address) const {
    const auto* at = static_cast<const unsigned char*>(address);
    return (at >= memory_ && at < memory_ + kFence) ||
           (at >= memory_ + kFence + kRoom && at < memory_ + 2 * kFence + kRoom);
}

std::string SharedMemory::place(const void* address) const {
    const auto* at = static_cast<const unsigned char*>(address);
    const std::string whole = "the " + std::to_string(size_) + " bytes of dynamic shared memory";
    if (at < data_) {
        return std::to_string(data_ - at) + " bytes before " + whole;
    }
    return std::to_string(at - (data_ + size_)) + " bytes past " + whole;
}

} // namespace relex::emulation
