#include "writing.hpp"

#include <cerrno>
#include <limits>
#include <system_error>

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#if !defined(RENAME_EXCHANGE)
#define RENAME_EXCHANGE (1 << 1)
#endif

namespace relex {

namespace {

[[noreturn]] void fail() {
    throw std::system_error(errno, std::generic_category());
}

int sync_range(int descriptor, std::uint64_t offset, std::uint64_t bytes, unsigned flags) {
    if (bytes == 0) {
        return 0; // to the kernel no bytes are all that follow
    }
    return sync_file_range(descriptor, static_cast<off64_t>(offset), static_cast<off64_t>(bytes),
                           flags);
}

} // namespace

bool reserve(int descriptor, std::uint64_t size) {
    if (size > static_cast<std::uint64_t>(std::numeric_limits<off_t>::max())) {
        errno = EFBIG;
        fail();
    }
    const auto length = static_cast<off_t>(size);
    if (::fallocate(descriptor, 0, 0, length) == 0) {
        return true;
    }
    if (errno == EINTR) {
        return false;
    }
    struct stat info{};
    const bool cannot = errno == EOPNOTSUPP || errno == ENOSYS || errno == EINVAL;
    if (!cannot || ::fstat(descriptor, &info) != 0 ||
        (info.st_size < length && ::ftruncate(descriptor, length) != 0)) {
        fail();
    }
    return true;
}

void start_writeback(int descriptor, std::uint64_t offset, std::uint64_t bytes) {
    // Its failure costs speed; whoever waits for the write learns that it did not happen.
    (void)sync_range(descriptor, offset, bytes, SYNC_FILE_RANGE_WRITE);
}

void finish_writeback(int descriptor, std::uint64_t offset, std::uint64_t bytes) {
    constexpr unsigned kWait =
        SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER;
    const bool done = sync_range(descriptor, offset, bytes, kWait) == 0;
    if (!done && errno != ENOSYS && errno != EINVAL && errno != ESPIPE) {
        fail();
    }
}

void exchange(const std::string& a, const std::string& b) {
    // By number: a C library older than the kernel's headers lacks renameat2.
    if (syscall(SYS_renameat2, AT_FDCWD, a.c_str(), AT_FDCWD, b.c_str(), RENAME_EXCHANGE) != 0) {
        fail();
    }
}

} // namespace relex
