// Files behind the strips: mapped, or read into buffers the caller owns.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

#include "guard.hpp"

namespace relex {

// A read-only file, open and optionally mapped, under guard, for as long as the object lives.
// Throws std::system_error.
class File {
  public:
    File(const std::string& path, bool map);
    ~File();
    File(const File&) = delete;
    File& operator=(const File&) = delete;

    std::uint64_t size() const { return size_; }
    std::uintptr_t address() const { return reinterpret_cast<std::uintptr_t>(address_); }
    int descriptor() const { return descriptor_; }
    bool damaged() const { return guard_.has_value() && guard_->damaged(); }

  private:
    int descriptor_ = -1;
    std::uint64_t size_ = 0;
    void* address_ = nullptr;
    std::optional<Guard> guard_;
};

struct Strip {
    int descriptor;        // read: where from
    std::uint64_t offset;  // read: in the file
    std::uintptr_t memory; // read: where to; mapped: where it lies
    std::uint64_t bytes;
};

// What stopped a list of strips: the strip's index, or -1 when nothing did, and an errno
// (0 with an index: the file ended before the strip did; mapped: or its disk failed).
struct StripError {
    std::ptrdiff_t index;
    int code;
};

using StopFlag = std::atomic<bool>;

// Starts reading mapped strips from the device without waiting for them.
void announce(const Strip* strips, std::size_t count);

// Brings mapped strips into memory and this process's page table. A strip that cannot be had (the
// file was truncated, the device failed) is reported here; one that is lost later damages its File.
StripError populate(const Strip* strips, std::size_t count, const StopFlag& stop);

// Gives mapped strips' pages back to the page cache.
void release_strips(const Strip* strips, std::size_t count);

// Reads strips with pread.
StripError read(const Strip* strips, std::size_t count, const StopFlag& stop);

} // namespace relex
