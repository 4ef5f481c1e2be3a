#include "places.hpp"

#include <cstring>
#include <new>

#include <sys/mman.h>

namespace fuzz {

namespace {

constexpr std::size_t kGap = std::size_t{64} << 10; // at least a page, on any processor
constexpr std::size_t kMargin = 128;                // canaries before a place

unsigned char* gap_after(unsigned char* memory, std::size_t place) {
    return memory + (place + 1) * (kLargest + kGap) - kGap;
}

bool all_canaries(const unsigned char* begin, const unsigned char* end) {
    for (; begin < end; ++begin) {
        if (*begin != kCanary) {
            return false;
        }
    }
    return true;
}

} // namespace

Places::Places() {
    void* found = mmap(nullptr, kPlaces * (kLargest + kGap), PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (found == MAP_FAILED) {
        throw std::bad_alloc();
    }
    memory_ = static_cast<unsigned char*>(found);
    for (std::size_t place = 0; place < kPlaces; ++place) {
        if (mprotect(gap_after(memory_, place), kGap, PROT_NONE) != 0) {
            throw std::bad_alloc();
        }
    }
}

unsigned char* Places::take(std::size_t bytes, std::size_t shift) {
    if (full() || bytes + shift + kMargin > kLargest) {
        throw std::bad_alloc();
    }
    unsigned char* limit = gap_after(memory_, taken_.size());
    unsigned char* end = limit - shift;
    std::memset(end - bytes - kMargin, kCanary, kMargin);
    std::memset(end, kCanary, shift);
    taken_.push_back({end - bytes, end});
    return end - bytes;
}

bool Places::intact() const {
    for (std::size_t place = 0; place < taken_.size(); ++place) {
        const Taken& taken = taken_[place];
        if (!all_canaries(taken.begin - kMargin, taken.begin) ||
            !all_canaries(taken.end, gap_after(memory_, place))) {
            return false;
        }
    }
    return true;
}

} // namespace fuzz
