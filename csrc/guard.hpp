// Mapped files that lose pages while they are read: shortened by someone else, or on a failing
// disk. The kernel answers the next access with SIGBUS. Under a guard the mapping reads as zeros
// from then on and is marked damaged, and the process lives to say which file it was.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace relex {

class Guard {
  public:
    // bytes from start: a whole mapping, which must outlive the guard.
    Guard(void* start, std::size_t bytes);
    ~Guard();
    Guard(const Guard&) = delete;
    Guard& operator=(const Guard&) = delete;

    // Whether any page was lost. Once no thread reads the mapping, a false means that all that were
    // read were the file's.
    bool damaged() const;

    // How many mappings of this process were damaged so far: cheaper to ask than each of them.
    static std::uint64_t damages();

    struct Slot;

  private:
    Slot* slot_;
};

} // namespace relex
