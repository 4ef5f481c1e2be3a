#include "dispatch.hpp"

#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <stdexcept>
#include <thread>

namespace relex::cpu {

namespace {

std::vector<const Kernels*> probe() {
    std::vector<const Kernels*> found;
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                      __builtin_cpu_supports("f16c");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                        __builtin_cpu_supports("avx512vl");
    const bool bf16 = avx512 && __builtin_cpu_supports("avx512bf16");
    // AMD's Zen 4 and 5 issue vdpbf16ps at the rate of an fp32 FMA, so it does twice the work.
    // Intel's cores to date issue it at a quarter of their FMA rate: there fp32 wins (docs/).
    const bool bf16_first = bf16 && !__builtin_cpu_is("intel");
    if (bf16_first) {
        found.push_back(&kAvx512Bf16);
    }
    if (avx512) {
        found.push_back(&kAvx512);
    }
    if (bf16 && !bf16_first) {
        found.push_back(&kAvx512Bf16);
    }
    if (avx2) {
        found.push_back(&kAvx2);
    }
#endif
    found.push_back(&kScalar);
    return found;
}

struct FreeDeleter {
    void operator()(void* p) const { std::free(p); }
};
using Scratch = std::unique_ptr<void, FreeDeleter>;

Scratch allocate(std::size_t bytes) {
    void* p = std::aligned_alloc(64, (bytes + 63) / 64 * 64 + 64);
    if (p == nullptr) {
        throw std::bad_alloc();
    }
    return Scratch(p);
}

// Hands out segments in order to `threads` workers and lets them commit their results in the same
// order. A single segment of few rows is worth no thread: it is done on the calling one.
class Segments {
  public:
    Segments(std::size_t columns, int rows, int threads, Poll poll)
        : columns_(columns), count_((columns + kSegment - 1) / kSegment),
          brief_(columns <= kSegment && rows <= 256), poll_(poll) {
        const auto most = static_cast<std::size_t>(threads < 1 ? 1 : threads);
        threads_ = count_ < most ? count_ : most;
    }

    std::size_t threads() const { return threads_; }
    const Stop& stop() const { return stop_; }

    bool next(std::size_t& segment, Range& range) {
        segment = next_.fetch_add(1, std::memory_order_relaxed);
        if (segment >= count_ || stop_.load(std::memory_order_relaxed)) {
            return false;
        }
        range.begin = segment * kSegment;
        range.end = range.begin + kSegment < columns_ ? range.begin + kSegment : columns_;
        return true;
    }

    template <class Add> void commit(std::size_t segment, Add add) {
        std::unique_lock<std::mutex> lock(mutex_);
        turn_.wait(lock, [&] { return committed_ == segment || stop_.load(); });
        if (stop_.load()) {
            return;
        }
        add();
        ++committed_;
        turn_.notify_all();
    }

    // Calls work() in every worker. False when the poll asked to stop; a worker's exception is
    // thrown again here.
    template <class Work> bool run(Work work) {
        if (brief_) {
            work();
            return true;
        }
        std::vector<std::thread> workers;
        std::exception_ptr failure;
        std::size_t running = threads_;
        const auto guarded = [&] {
            try {
                work();
            } catch (...) {
                const std::lock_guard<std::mutex> lock(mutex_);
                failure = std::current_exception();
                stop_.store(true);
            }
            const std::lock_guard<std::mutex> lock(mutex_);
            --running;
            turn_.notify_all();
        };
        for (std::size_t i = 0; i < threads_; ++i) {
            workers.emplace_back(guarded);
        }
        bool asked = false;
        {
            std::unique_lock<std::mutex> lock(mutex_);
            while (running > 0) {
                const bool over = done_within(lock, running);
                if (!over && poll_ != nullptr && !asked) {
                    lock.unlock();
                    asked = poll_();
                    lock.lock();
                    if (asked) {
                        stop_.store(true);
                        turn_.notify_all();
                    }
                }
            }
        }
        for (std::thread& worker : workers) {
            worker.join();
        }
        if (failure) {
            std::rethrow_exception(failure);
        }
        return !asked;
    }

  private:
    bool done_within(std::unique_lock<std::mutex>& lock, const std::size_t& running) {
        return turn_.wait_for(lock, std::chrono::milliseconds(100), [&] { return running == 0; });
    }

    std::size_t columns_, count_, threads_ = 1;
    bool brief_;
    Poll poll_;
    Stop stop_{false};
    std::atomic<std::size_t> next_{0};
    std::mutex mutex_;
    std::condition_variable turn_;
    std::size_t committed_ = 0;
};

} // namespace

const std::vector<const Kernels*>& supported() {
    static const std::vector<const Kernels*> found = probe();
    return found;
}

const Kernels& select(const std::string& name) {
    std::string names = "auto";
    for (const Kernels* kernels : supported()) {
        if (name == "auto" || name == kernels->name) {
            return *kernels;
        }
        names += std::string(", ") + kernels->name;
    }
    throw std::invalid_argument("isa: expected one of " + names + ", found " + name);
}

bool gram(const Kernels& kernels, const Rows& rows, std::size_t columns, double* gram, int threads,
          Poll poll) {
    Segments segments(columns, rows.count, threads, poll);
    const auto count = static_cast<std::size_t>(rows.count);
    const std::size_t size = count * count;
    return segments.run([&] {
        const Scratch scratch = allocate(kernels.gram_scratch(rows.count));
        std::vector<double> local(size);
        std::size_t segment = 0;
        Range range{};
        while (segments.next(segment, range)) {
            std::memset(local.data(), 0, size * sizeof(double));
            kernels.gram(rows, range, local.data(), scratch.get(), segments.stop());
            if (!segments.stop().load() && !gram_is_safe(rows, range, local.data())) {
                std::memset(local.data(), 0, size * sizeof(double));
                gram_fp64(rows, range, local.data(), segments.stop());
            }
            segments.commit(segment, [&] {
                for (std::size_t i = 0; i < count; ++i) {
                    for (std::size_t j = 0; j <= i; ++j) {
                        gram[i * count + j] += local[i * count + j];
                    }
                }
            });
        }
    });
}

bool power_step(const Kernels& kernels, const Rows& rows, std::size_t columns, const float* u,
                int k, double* y, double* energy, int threads, Poll poll) {
    Segments segments(columns, rows.count, threads, poll);
    const auto count = static_cast<std::size_t>(rows.count);
    const std::size_t size = count * static_cast<std::size_t>(k);
    return segments.run([&] {
        const Scratch scratch = allocate(kernels.power_scratch(rows.count, k));
        std::vector<double> local(size + count);
        std::size_t segment = 0;
        Range range{};
        while (segments.next(segment, range)) {
            std::memset(local.data(), 0, local.size() * sizeof(double));
            kernels.power_step(rows, range, u, k, local.data(),
                               energy == nullptr ? nullptr : local.data() + size, scratch.get(),
                               segments.stop());
            segments.commit(segment, [&] {
                for (std::size_t i = 0; i < size; ++i) {
                    y[i] += local[i];
                }
                for (std::size_t i = 0; energy != nullptr && i < count; ++i) {
                    energy[i] += local[size + i];
                }
            });
        }
    });
}

bool combine(const Kernels& kernels, const Rows& rows, std::size_t columns, const double* weights,
             int targets, unsigned char* const* out, DType out_dtype, int threads, Poll poll) {
    Segments segments(columns, rows.count, threads, poll);
    const std::size_t size = item_size(out_dtype);
    return segments.run([&] {
        const Scratch scratch = allocate(kernels.combine_scratch(rows.count));
        std::vector<unsigned char*> to(static_cast<std::size_t>(targets));
        std::size_t segment = 0;
        Range range{};
        while (segments.next(segment, range)) {
            for (std::size_t i = 0; i < to.size(); ++i) {
                to[i] = out[i] + range.begin * size;
            }
            kernels.combine(rows, range, weights, targets, to.data(), out_dtype, scratch.get(),
                            segments.stop());
        }
    });
}

} // namespace relex::cpu
