// CUDA's execution model on the processor: what csrc/cuda/platform.cuh and CUDA C++ give a kernel,
// for the host's compiler. Every thread of a block is a fiber; barriers and warp collectives are
// meetings of fibers; the tensor cores' fragments are laid out as the PTX ISA documents.
//
// What it finds: wrong indices into fragments, rows, shared memory; missing barriers (run a kernel
// in two orders, see below), missing waits for asynchronous copies, barriers that not all threads
// reach, misaligned vector accesses, uninitialised or overrun shared memory. What it cannot find:
// anything about speed, and races between blocks, which run one after another.
//
// The environment, read at every launch:
//   RELEX_EMULATED_ORDER   ascending (default), descending, random, random:SEED: of threads and of
//                          blocks. A warp runs as far as it can before another one starts.
//   RELEX_EMULATED_COPIES  late (default): copy_async's bytes arrive when they are waited for;
//                          early: at once. Hardware may do either, or anything between.
//   RELEX_EMULATED_SUMS    nearest (default): the tensor cores round after each product;
//                          truncated: they align products and cut them off, as they were measured
//                          to
//   RELEX_EMULATED_SHARED  bytes of dynamic shared memory a block may have; default 227 KiB
//   RELEX_EMULATED_MULTIPROCESSORS  default 4
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <tuple>
#include <type_traits>
#include <utility>

#include "kernels.hpp"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
// Blocks run one after another, so that a static array is a block's.
#define __shared__ static

// ---- CUDA C++ ----------------------------------------------------------------------------------

struct uint3 {
    unsigned x, y, z;
};
struct dim3 {
    unsigned x = 1, y = 1, z = 1;
};

struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(16) double2 {
    double x, y;
};

inline uint2 make_uint2(unsigned x, unsigned y) {
    return {x, y};
}
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) {
    return {x, y, z, w};
}
inline float2 make_float2(float x, float y) {
    return {x, y};
}
inline float4 make_float4(float x, float y, float z, float w) {
    return {x, y, z, w};
}
inline double2 make_double2(double x, double y) {
    return {x, y};
}

// Of the thread that runs; set whenever another one is switched to.
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

namespace relex::emulation {

// Where a kernel calls something. As a default argument, {__builtin_FILE(), __builtin_LINE()} is
// the caller's place.
struct Site {
    const char* file;
    int line;
};

// Runs body() once for each thread of a grid. Throws cuda::Error for what CUDA refuses or leaves
// undefined.
void run(dim3 grid, unsigned threads, std::size_t shared_bytes, const std::function<void()>& body);

// Waits for all threads of the block.
void barrier(Site at);

// Waits for all lanes of the warp. The last one to come calls exchange(lanes) for all of them:
// `lanes` are their 32 `mine`, in order.
using Exchange = void (*)(void* const* lanes);
void meet(const char* name, void* mine, Exchange exchange, Site at);

} // namespace relex::emulation

inline void __syncthreads(relex::emulation::Site at = {__builtin_FILE(), __builtin_LINE()}) {
    relex::emulation::barrier(at);
}
inline void __syncwarp(relex::emulation::Site at = {__builtin_FILE(), __builtin_LINE()}) {
    relex::emulation::meet("__syncwarp", nullptr, [](void* const*) {}, at);
}

inline unsigned atomicOr(unsigned* address, unsigned value) {
    return std::exchange(*address, *address | value);
}
inline int __popc(unsigned value) {
    return __builtin_popcount(value);
}
inline int __ffs(int value) {
    return __builtin_ffs(value);
}
inline unsigned __float_as_uint(float value) {
    return relex::float_to_bits(value);
}
inline float __uint_as_float(unsigned bits) {
    return relex::bits_to_float(bits);
}
template <class T> T __ldg(const T* address) {
    return *address;
}

// ---- what platform.cuh adds --------------------------------------------------------------------

namespace relex::cuda {

#define RELEX_SITE emulation::Site at = {__builtin_FILE(), __builtin_LINE()}

inline void check(cudaError_t, const char*) {}

std::size_t shared_memory_limit();
int multiprocessors();

template <class... P, class... A> void launch(void (*kernel)(P...), unsigned grid_x,
                                              unsigned grid_y, unsigned threads,
                                              std::size_t shared_bytes, cudaStream_t, A&&... args) {
    static_assert((std::is_trivially_copyable_v<P> && ...), "parameters are copied byte by byte");
    const std::tuple<P...> parameters(std::forward<A>(args)...); // converted once, as a launch does
    emulation::run({grid_x, grid_y, 1}, threads, shared_bytes,
                   [&] { std::apply(kernel, parameters); });
}

unsigned char* dynamic_shared();

void copy_async(void* shared, const void* global, int bytes, RELEX_SITE);
void commit_copies();
void finish_copies(int but); // all committed groups of this thread but that many, the newest
template <int N> void wait_copies() {
    finish_copies(N);
}

void load_matrices(unsigned (&r)[4], const void* row, RELEX_SITE);
void multiply_bf16(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1, RELEX_SITE);

inline float half_to_float(unsigned short bits) {
    return f16_to_float(bits);
}

unsigned shuffle_xor_bits(unsigned value, int mask, RELEX_SITE);
inline float shuffle_xor(float value, int mask, RELEX_SITE) {
    return bits_to_float(shuffle_xor_bits(float_to_bits(value), mask, at));
}
bool any_in_warp(bool value, RELEX_SITE);

#undef RELEX_SITE

} // namespace relex::cuda
