// Small kernels that show what the emulation does, for tests/test_cuda_emulation.py: correct ones,
// which numpy computes again, and wrong ones, which must be found out.
#include <map>
#include <vector>

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "emulation.hpp"
#include "selftest.hpp"

namespace relex {

namespace {

namespace py = pybind11;

template <class T> using Array = py::array_t<T, py::array::c_style | py::array::forcecast>;

// ---- what numpy computes again -----------------------------------------------------------------

__global__ void multiply_kernel(const unsigned* a, const unsigned* b, float* d) {
    const unsigned lane = threadIdx.x;
    unsigned fragment[4];
    float sums[4];
    for (unsigned i = 0; i < 4; ++i) {
        fragment[i] = a[4 * lane + i];
        sums[i] = d[4 * lane + i];
    }
    cuda::multiply_bf16(sums, fragment, b[2 * lane], b[2 * lane + 1]);
    for (unsigned i = 0; i < 4; ++i) {
        d[4 * lane + i] = sums[i];
    }
}

Array<float> multiply(const Array<unsigned>& a, const Array<unsigned>& b, const Array<float>& d) {
    Array<float> sums({32, 4});
    std::copy(d.data(), d.data() + 128, sums.mutable_data());
    cuda::launch(multiply_kernel, 1, 1, 32, 0, nullptr, a.data(), b.data(), sums.mutable_data());
    return sums;
}

__global__ void load_kernel(const unsigned char* tile, int bytes, const int* offsets, unsigned* r) {
    const int lane = static_cast<int>(threadIdx.x);
    for (int i = lane; i < bytes; i += 32) {
        cuda::dynamic_shared()[i] = tile[i];
    }
    __syncwarp();
    unsigned fragment[4];
    cuda::load_matrices(fragment, cuda::dynamic_shared() + offsets[lane]);
    for (int i = 0; i < 4; ++i) {
        r[4 * lane + i] = fragment[i];
    }
}

Array<unsigned> load_matrices(const Array<unsigned char>& tile, const Array<int>& offsets) {
    Array<unsigned> r({32, 4});
    const auto bytes = static_cast<std::size_t>(tile.size());
    cuda::launch(load_kernel, 1, 1, 32, bytes, nullptr, tile.data(), static_cast<int>(bytes),
                 offsets.data(), r.mutable_data());
    return r;
}

__global__ void shuffle_kernel(const float* values, int mask, float* out) {
    out[threadIdx.x] = cuda::shuffle_xor(values[threadIdx.x], mask);
}

Array<float> shuffle_xor(const Array<float>& values, int mask) {
    Array<float> out(values.size());
    cuda::launch(shuffle_kernel, 1, 1, static_cast<unsigned>(values.size()), 0, nullptr,
                 values.data(), mask, out.mutable_data());
    return out;
}

__global__ void vote_kernel(const unsigned char* values, unsigned char* out) {
    out[threadIdx.x] = cuda::any_in_warp(values[threadIdx.x] != 0) ? 1 : 0;
}

Array<unsigned char> any_in_warp(const Array<unsigned char>& values) {
    Array<unsigned char> out(values.size());
    cuda::launch(vote_kernel, 1, 1, static_cast<unsigned>(values.size()), 0, nullptr, values.data(),
                 out.mutable_data());
    return out;
}

// ---- when things happen ------------------------------------------------------------------------

constexpr int kCopied = 32; // bytes: a group of 16, a group of `second` and zeros

__global__ void copy_kernel(const unsigned char* from, int second, unsigned char* seen) {
    unsigned char* const shared = cuda::dynamic_shared();
    const auto look = [&](int when) { std::copy(shared, shared + kCopied, seen + when * kCopied); };
    cuda::copy_async(shared, from, 16);
    cuda::commit_copies();
    cuda::copy_async(shared + 16, from + 16, second);
    cuda::commit_copies();
    look(0);
    cuda::wait_copies<1>();
    look(1);
    cuda::wait_copies<0>();
    look(2);
}

// Shared memory as a thread finds it before, between and after its waits.
Array<unsigned char> copies(std::uint64_t from, int second) {
    Array<unsigned char> seen({3, kCopied});
    cuda::launch(copy_kernel, 1, 1, 1, kCopied, nullptr,
                 reinterpret_cast<const unsigned char*>(from), second, seen.mutable_data());
    return seen;
}

using Visit = std::tuple<unsigned, unsigned, unsigned>;

__global__ void visit_kernel(std::vector<Visit>* visits) {
    visits->emplace_back(blockIdx.x, blockIdx.y, threadIdx.x);
    __syncthreads();
}

// Who came in which order.
std::vector<Visit> visits(unsigned grid_x, unsigned grid_y, unsigned threads) {
    std::vector<Visit> found;
    cuda::launch(visit_kernel, grid_x, grid_y, threads, 0, nullptr, &found);
    return found;
}

__global__ void rotate_kernel(bool synchronise, unsigned* out) {
    auto* const shared = reinterpret_cast<unsigned*>(cuda::dynamic_shared());
    shared[threadIdx.x] = threadIdx.x;
    if (synchronise) {
        __syncthreads();
    }
    out[threadIdx.x] = shared[(threadIdx.x + 1) % blockDim.x];
}

// What each thread reads of its right neighbour, with a barrier or without.
std::vector<unsigned> rotate(unsigned threads, bool synchronise) {
    std::vector<unsigned> found(threads);
    cuda::launch(rotate_kernel, 1, 1, threads, 4 * threads, nullptr, synchronise, found.data());
    return found;
}

__global__ void garbage_kernel(int bytes, bool* fresh) {
    for (int i = 0; i < bytes; ++i) {
        *fresh = *fresh && cuda::dynamic_shared()[i] == 0xFF;
        cuda::dynamic_shared()[i] = 1;
    }
}

// Whether every block finds shared memory of 0xFF, and may write all of it.
bool garbage(unsigned blocks, int bytes) {
    bool fresh = true;
    cuda::launch(garbage_kernel, blocks, 1, 1, static_cast<std::size_t>(bytes), nullptr, bytes,
                 &fresh);
    return fresh;
}

// ---- mistakes ----------------------------------------------------------------------------------

int hungry(int depth) {
    volatile char room[4096];
    room[0] = static_cast<char>(depth);
    return depth == 0 ? room[0] : hungry(depth - 1) + room[0];
}

using Mistake = void (*)(unsigned thread, unsigned char* shared, std::size_t bytes);

const std::map<std::string, Mistake> kMistakes = {
    {"none", [](unsigned, unsigned char*, std::size_t) { __syncthreads(); }},
    {"a thread returns before a barrier",
     [](unsigned thread, unsigned char*, std::size_t) {
         if (thread != 40) {
             __syncthreads();
         }
     }},
    {"barriers of two branches",
     [](unsigned thread, unsigned char*, std::size_t) {
         if (thread < 32) {
             __syncthreads();
         } else {
             __syncthreads();
         }
     }},
    {"a barrier in one more turn of a loop",
     [](unsigned thread, unsigned char*, std::size_t) {
         for (unsigned i = 0; i < 3 + thread / 63; ++i) {
             __syncthreads();
         }
     }},
    {"half a warp shuffles",
     [](unsigned thread, unsigned char*, std::size_t) {
         if (thread % 32 < 16) {
             cuda::shuffle_xor(1.0f, 1);
         }
         __syncthreads();
     }},
    {"lanes at different collectives",
     [](unsigned thread, unsigned char*, std::size_t) {
         if (thread % 32 < 16) {
             cuda::shuffle_xor(1.0f, 1);
         } else {
             cuda::any_in_warp(true);
         }
     }},
    {"a lane returns before a collective",
     [](unsigned thread, unsigned char*, std::size_t) {
         if (thread % 32 != 0) {
             cuda::any_in_warp(true);
         }
     }},
    {"writes past the end",
     [](unsigned, unsigned char* shared, std::size_t bytes) { shared[bytes] = 0; }},
    {"writes far past the end",
     [](unsigned, unsigned char* shared, std::size_t bytes) { shared[bytes + 130] = 0; }},
    {"reads far past the end",
     [](unsigned, unsigned char* shared, std::size_t bytes) {
         volatile unsigned char read = shared[bytes + 130];
         shared[0] = read;
     }},
    {"writes before the beginning",
     [](unsigned, unsigned char* shared, std::size_t) { shared[-3] = 0; }},
    {"copies past the end",
     [](unsigned, unsigned char* shared, std::size_t bytes) {
         cuda::copy_async(shared + (bytes + 15) / 16 * 16, nullptr, 0);
     }},
    {"copies to an odd place", [](unsigned, unsigned char* shared,
                                  std::size_t) { cuda::copy_async(shared + 8, nullptr, 0); }},
    {"copies from an odd place",
     [](unsigned, unsigned char* shared, std::size_t) {
         alignas(16) static const unsigned char from[32] = {};
         cuda::copy_async(shared, from + 2, 16);
     }},
    {"copies 17 bytes",
     [](unsigned, unsigned char* shared, std::size_t) { cuda::copy_async(shared, shared, 17); }},
    {"never waits for a copy",
     [](unsigned, unsigned char* shared, std::size_t) {
         cuda::copy_async(shared, nullptr, 0);
         cuda::commit_copies();
     }},
    {"loads matrices from an odd place",
     [](unsigned thread, unsigned char* shared, std::size_t) {
         unsigned r[4];
         cuda::load_matrices(r, shared + (thread == 33 ? 4 : 0));
     }},
    {"loads matrices from elsewhere",
     [](unsigned, unsigned char* shared, std::size_t) {
         unsigned r[4];
         cuda::load_matrices(r, shared - 4096);
     }},
    {"a misaligned vector",
     [](unsigned, unsigned char* shared, std::size_t) {
         *reinterpret_cast<uint4*>(shared + 4) = make_uint4(1, 2, 3, 4);
     }},
    {"an index beyond an array",
     [](unsigned thread, unsigned char* shared, std::size_t) {
         const int table[4] = {1, 2, 3, 4};
         shared[0] = static_cast<unsigned char>(table[thread]);
     }},
    {"a null pointer",
     [](unsigned, unsigned char* shared, std::size_t) {
         shared[0] = *static_cast<volatile unsigned char*>(nullptr);
     }},
    {"too much stack", [](unsigned, unsigned char* shared,
                          std::size_t) { shared[0] = static_cast<unsigned char>(hungry(1000)); }},
};

__global__ void mistaken_kernel(Mistake mistake, std::size_t bytes) {
    mistake(threadIdx.x, cuda::dynamic_shared(), bytes);
}

void misbehave(const std::string& mistake, unsigned threads, std::size_t shared_bytes) {
    cuda::launch(mistaken_kernel, 1, 1, threads, shared_bytes, nullptr, kMistakes.at(mistake),
                 shared_bytes);
}

std::vector<std::string> mistakes() {
    std::vector<std::string> names;
    for (const auto& mistake : kMistakes) {
        names.push_back(mistake.first);
    }
    return names;
}

} // namespace

void bind_selftest(py::module_ m) {
    m.def("multiply", &multiply);
    m.def("load_matrices", &load_matrices);
    m.def("shuffle_xor", &shuffle_xor);
    m.def("any_in_warp", &any_in_warp);
    m.def("half_to_float", &cuda::half_to_float);
    m.def("copies", &copies);
    m.def("visits", &visits);
    m.def("rotate", &rotate);
    m.def("garbage", &garbage);
    m.def("shared_memory_limit", &cuda::shared_memory_limit);
    m.def("check_tiles", &cuda::check_tiles);
    m.def("mistakes", &mistakes);
    m.def("misbehave", &misbehave);
}

} // namespace relex
