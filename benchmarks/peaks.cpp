// What this processor can do at most, measured: fp32 fused multiply-adds, vdpbf16ps, and reading
// memory. Prints one line of JSON; a rate the processor has no instruction for is null.
//
//     peaks THREADS BYTES SECONDS
//
// The arithmetic loops live in registers only: twelve accumulators hide the latency of two units,
// and inline assembly keeps the compiler from folding or spilling them. The sum reads a buffer once
// per round with eight accumulators, each thread its own contiguous part.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

#include <sys/mman.h>

namespace {

using Clock = std::chrono::steady_clock;
constexpr std::uint64_t kRounds = 1u << 16; // of twelve instructions each: about 0.2 ms
constexpr std::size_t kLine = 512;          // bytes the sum takes per step

double seconds_since(Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
}

#if defined(__x86_64__)

#define CLOBBERS                                                                                   \
    "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10",       \
        "xmm11", "xmm15", "cc", "memory"
#define TWELVE(op, r, x)                                                                           \
    op " " x ", " x ", %%" r "0\n" op " " x ", " x ", %%" r "1\n" op " " x ", " x ", %%" r         \
       "2\n" op " " x ", " x ", %%" r "3\n" op " " x ", " x ", %%" r "4\n" op " " x ", " x         \
       ", %%" r "5\n" op " " x ", " x ", %%" r "6\n" op " " x ", " x ", %%" r "7\n" op " " x       \
       ", " x ", %%" r "8\n" op " " x ", " x ", %%" r "9\n" op " " x ", " x ", %%" r "10\n" op     \
       " " x ", " x ", %%" r "11\n"
#define CLEAR                                                                                      \
    "vpxor %%xmm0, %%xmm0, %%xmm0\n vpxor %%xmm1, %%xmm1, %%xmm1\n"                                \
    "vpxor %%xmm2, %%xmm2, %%xmm2\n vpxor %%xmm3, %%xmm3, %%xmm3\n"                                \
    "vpxor %%xmm4, %%xmm4, %%xmm4\n vpxor %%xmm5, %%xmm5, %%xmm5\n"                                \
    "vpxor %%xmm6, %%xmm6, %%xmm6\n vpxor %%xmm7, %%xmm7, %%xmm7\n"                                \
    "vpxor %%xmm8, %%xmm8, %%xmm8\n vpxor %%xmm9, %%xmm9, %%xmm9\n"                                \
    "vpxor %%xmm10, %%xmm10, %%xmm10\n vpxor %%xmm11, %%xmm11, %%xmm11\n"

// zmm31 is out of the compiler's sight: nothing here is compiled for AVX-512.
void fma512() {
    std::uint64_t n = kRounds;
    asm volatile(CLEAR "vpbroadcastd %[x], %%zmm31\n"
                       "1:\n" TWELVE("vfmadd231ps", "zmm", "%%zmm31") "dec %[n]\n jnz 1b\n"
                                                                      "vzeroupper\n"
                 : [n] "+r"(n)
                 : [x] "r"(0x3f800000)
                 : CLOBBERS);
}

void bf16_512() {
    std::uint64_t n = kRounds;
    asm volatile(CLEAR "vpbroadcastd %[x], %%zmm31\n"
                       "1:\n" TWELVE("vdpbf16ps", "zmm", "%%zmm31") "dec %[n]\n jnz 1b\n"
                                                                    "vzeroupper\n"
                 : [n] "+r"(n)
                 : [x] "r"(0x3f803f80)
                 : CLOBBERS);
}

void fma256() {
    std::uint64_t n = kRounds;
    asm volatile(CLEAR "vmovd %[x], %%xmm15\n vpbroadcastd %%xmm15, %%ymm15\n"
                       "1:\n" TWELVE("vfmadd231ps", "ymm", "%%ymm15") "dec %[n]\n jnz 1b\n"
                                                                      "vzeroupper\n"
                 : [n] "+r"(n)
                 : [x] "r"(0x3f800000)
                 : CLOBBERS);
}

#define EIGHT(width, step)                                                                         \
    "vpaddd (0*" step ")(%[p]), %%" width "0, %%" width "0\n"                                      \
    "vpaddd (1*" step ")(%[p]), %%" width "1, %%" width "1\n"                                      \
    "vpaddd (2*" step ")(%[p]), %%" width "2, %%" width "2\n"                                      \
    "vpaddd (3*" step ")(%[p]), %%" width "3, %%" width "3\n"                                      \
    "vpaddd (4*" step ")(%[p]), %%" width "4, %%" width "4\n"                                      \
    "vpaddd (5*" step ")(%[p]), %%" width "5, %%" width "5\n"                                      \
    "vpaddd (6*" step ")(%[p]), %%" width "6, %%" width "6\n"                                      \
    "vpaddd (7*" step ")(%[p]), %%" width "7, %%" width "7\n"

void sum512(const unsigned char* p, std::size_t bytes) {
    const unsigned char* end = p + bytes;
    asm volatile(CLEAR "1:\n" EIGHT("zmm", "64") "add $512, %[p]\n cmp %[end], %[p]\n jb 1b\n"
                                                 "vzeroupper\n"
                 : [p] "+r"(p)
                 : [end] "r"(end)
                 : CLOBBERS);
}

void sum256(const unsigned char* p, std::size_t bytes) {
    const unsigned char* end = p + bytes;
    asm volatile(CLEAR "1:\n" EIGHT("ymm", "32") "add $256, %[p]\n cmp %[end], %[p]\n jb 1b\n"
                                                 "vzeroupper\n"
                 : [p] "+r"(p)
                 : [end] "r"(end)
                 : CLOBBERS);
}

#endif

void sum_plain(const unsigned char* p, std::size_t bytes) {
    const auto* word = reinterpret_cast<const std::uint64_t*>(p);
    std::uint64_t sums[8] = {};
    for (std::size_t i = 0; i < bytes / 8; i += 8) {
        for (std::size_t j = 0; j < 8; ++j) {
            sums[j] += word[i + j];
        }
    }
    volatile std::uint64_t kept = 0;
    for (const std::uint64_t sum : sums) {
        kept = kept + sum;
    }
}

// Seconds from the common start of `threads` threads to the end of the last one.
template <class Work> double together(int threads, Work work) {
    std::atomic<int> ready{0};
    std::atomic<bool> go{false};
    std::vector<std::thread> workers;
    for (int i = 0; i < threads; ++i) {
        workers.emplace_back([&, i] {
            ready.fetch_add(1);
            while (!go.load(std::memory_order_acquire)) {
            }
            work(i);
        });
    }
    while (ready.load() < threads) {
    }
    const auto start = Clock::now();
    go.store(true, std::memory_order_release);
    for (std::thread& worker : workers) {
        worker.join();
    }
    return seconds_since(start);
}

// The best of several measurements in GFLOP/s: a peak is what the machine does undisturbed.
double arithmetic(int threads, double seconds, void (*work)(), double flops_per_round) {
    double best = 0;
    const auto start = Clock::now();
    do {
        const double took = together(threads, [&](int) {
            for (int i = 0; i < 100; ++i) {
                work();
            }
        });
        best =
            std::max(best, threads * 100 * static_cast<double>(kRounds) * flops_per_round / took);
    } while (seconds_since(start) < seconds);
    return best / 1e9;
}

using Sum = void (*)(const unsigned char*, std::size_t);

double reading(int threads, double seconds, std::size_t bytes, Sum sum) {
    const std::size_t part = bytes / static_cast<std::size_t>(threads) / kLine * kLine;
    const std::size_t size = part * static_cast<std::size_t>(threads);
    void* memory = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
        std::perror("peaks: mmap");
        std::exit(1);
    }
    madvise(memory, size, MADV_HUGEPAGE); // as numpy's own buffers are
    auto* bytes_of = static_cast<unsigned char*>(memory);
    const auto mine = [&](int i) { return bytes_of + static_cast<std::size_t>(i) * part; };
    together(threads, [&](int i) { std::fill_n(mine(i), part, static_cast<unsigned char>(1)); });
    double best = 0;
    const auto start = Clock::now();
    do {
        const double took = together(threads, [&](int i) { sum(mine(i), part); });
        best = std::max(best, static_cast<double>(size) / took);
    } while (seconds_since(start) < seconds);
    munmap(memory, size);
    return best / 1e9;
}

void print(const char* name, bool known, double rate, const char* after) {
    if (known) {
        std::printf("\"%s\": %.2f%s", name, rate, after);
    } else {
        std::printf("\"%s\": null%s", name, after);
    }
}

} // namespace

int main(int argc, char** argv) {
    if (argc != 4) {
        std::fprintf(stderr, "usage: peaks THREADS BYTES SECONDS\n");
        return 2;
    }
    const int threads = std::max(1, std::atoi(argv[1]));
    const auto bytes = static_cast<std::size_t>(std::atof(argv[2]));
    const double seconds = std::atof(argv[3]);
    double fma = 0, bf16 = 0;
    bool has_fma = false, has_bf16 = false;
    Sum sum = sum_plain;
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f");
    has_fma = avx2;
    has_bf16 = avx512 && __builtin_cpu_supports("avx512bf16");
    sum = avx512 ? sum512 : avx2 ? sum256 : sum_plain;
    if (has_fma) {
        fma = arithmetic(threads, seconds, avx512 ? fma512 : fma256, 12.0 * (avx512 ? 16 : 8) * 2);
    }
    if (has_bf16) {
        bf16 = arithmetic(threads, seconds, bf16_512, 12.0 * 16 * 4);
    }
#endif
    std::printf("{");
    print("fma_gflops", has_fma, fma, ", ");
    print("bf16_gflops", has_bf16, bf16, ", ");
    print("sum_gbps", true, reading(threads, seconds, bytes, sum), "}\n");
    return 0;
}
