#include "io.hpp"

#include <cerrno>
#include <system_error>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#if !defined(MADV_POPULATE_READ)
#define MADV_POPULATE_READ 22 // Linux 5.14; older kernels answer EINVAL
#endif

namespace relex {

namespace {

[[noreturn]] void fail(int code) {
    throw std::system_error(code, std::generic_category());
}

const std::uintptr_t kPage = static_cast<std::uintptr_t>(sysconf(_SC_PAGESIZE));

struct Pages {
    void* start;
    std::size_t bytes;
};

Pages pages_of(const Strip& strip) {
    const std::uintptr_t start = strip.memory / kPage * kPage;
    const std::uintptr_t end = (strip.memory + strip.bytes + kPage - 1) / kPage * kPage;
    return {reinterpret_cast<void*>(start), strip.bytes == 0 ? 0 : end - start};
}

// For kernels without MADV_POPULATE_READ: one access a page. What is not there damages its File.
void touch(const Pages& pages) {
    const auto* p = static_cast<const volatile unsigned char*>(pages.start);
    for (std::size_t i = 0; i < pages.bytes; i += kPage) {
        (void)p[i];
    }
}

int populate_pages(const Pages& pages) {
    while (madvise(pages.start, pages.bytes, MADV_POPULATE_READ) != 0) {
        if (errno == EINVAL) {
            touch(pages);
            return 0;
        }
        if (errno != EINTR && errno != EAGAIN) {
            return errno;
        }
    }
    return 0;
}

} // namespace

File::File(const std::string& path, bool map) {
    // O_NONBLOCK: whoever puts a pipe in a shard's place must not make us wait for its writer.
    descriptor_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (descriptor_ < 0) {
        fail(errno);
    }
    struct stat info{};
    if (::fstat(descriptor_, &info) != 0) {
        const int code = errno;
        ::close(descriptor_);
        fail(code);
    }
    size_ = static_cast<std::uint64_t>(info.st_size);
    if (!map || size_ == 0) {
        return;
    }
    void* address = ::mmap(nullptr, size_, PROT_READ, MAP_SHARED, descriptor_, 0);
    const int code = errno;
    ::close(descriptor_); // the mapping keeps the file; descriptors are scarcer than mappings
    descriptor_ = -1;
    if (address == MAP_FAILED) {
        fail(code);
    }
    address_ = address;
    guard_.emplace(address_, size_);
}

File::~File() {
    guard_.reset();
    if (address_ != nullptr) {
        ::munmap(address_, size_);
    }
    if (descriptor_ >= 0) {
        ::close(descriptor_);
    }
}

void announce(const Strip* strips, std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) {
        const Pages pages = pages_of(strips[i]);
        (void)madvise(pages.start, pages.bytes, MADV_WILLNEED); // advice: its failure costs speed
    }
}

StripError populate(const Strip* strips, std::size_t count, const StopFlag& stop) {
    for (std::size_t i = 0; i < count && !stop.load(std::memory_order_relaxed); ++i) {
        const int code = populate_pages(pages_of(strips[i]));
        if (code != 0) {
            // EFAULT is the kernel's word for what would have been SIGBUS.
            return {static_cast<std::ptrdiff_t>(i), code == EFAULT ? 0 : code};
        }
    }
    return {-1, 0};
}

void release_strips(const Strip* strips, std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) {
        // The last page, if the strip ends inside it, stays: the strip that follows begins there.
        // Dropping it would cost a fault, and the kernel answers a fault by mapping the whole large
        // folio around it, with everything that was just released.
        const std::uintptr_t start = strips[i].memory / kPage * kPage;
        const std::uintptr_t end = (strips[i].memory + strips[i].bytes) / kPage * kPage;
        if (end > start) {
            (void)madvise(reinterpret_cast<void*>(start), end - start, MADV_DONTNEED);
        }
    }
}

StripError read(const Strip* strips, std::size_t count, const StopFlag& stop) {
    for (std::size_t i = 0; i < count; ++i) {
        const Strip& strip = strips[i];
        auto* to = reinterpret_cast<unsigned char*>(strip.memory);
        for (std::uint64_t done = 0; done < strip.bytes;) {
            if (stop.load(std::memory_order_relaxed)) {
                return {-1, 0};
            }
            const std::uint64_t left = strip.bytes - done;
            constexpr std::uint64_t kMost = 8u << 20; // so that a stop is seen within a moment
            const ssize_t got = ::pread(strip.descriptor, to + done, left < kMost ? left : kMost,
                                        static_cast<off_t>(strip.offset + done));
            if (got < 0 && errno == EINTR) {
                continue;
            }
            if (got <= 0) {
                return {static_cast<std::ptrdiff_t>(i), got < 0 ? errno : 0};
            }
            done += static_cast<std::uint64_t>(got);
        }
    }
    return {-1, 0};
}

} // namespace relex
