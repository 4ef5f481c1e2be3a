// What Python's os lacks for writing a large file: honest reservations, writeback, an exchange.
// All but start_writeback throw std::system_error.
#pragma once

#include <cstdint>
#include <string>

namespace relex {

// Allocates a file's blocks [0, size), so that a full disk is found before anything is written.
// Where the file system cannot, the file only gets its size: glibc's posix_fallocate would write
// every block instead. A longer file stays as long. False: a signal came first, and it is to be
// called again.
bool reserve(int descriptor, std::uint64_t size);

// Starts writing a range of a file to the device without waiting, so that a later fsync is short.
void start_writeback(int descriptor, std::uint64_t offset, std::uint64_t bytes);

// Waits until a range of a file is written to the device: no fsync, but it makes one short. A write
// that failed is reported here; the kernel does so once for each descriptor, and fsync may not
// again.
void finish_writeback(int descriptor, std::uint64_t offset, std::uint64_t bytes);

// Exchanges two files or folders in one step: whenever the power fails, both names exist.
void exchange(const std::string& a, const std::string& b);

} // namespace relex
