// The contract of the CPU kernels: three operations on one segment of one tensor.
//
// A tensor is T rows (its values in T checkpoints) over a base, all flattened to the same d
// columns. It is cut into segments of kSegment columns, always from column 0: the cut depends on
// nothing else, and results of segments are added in their order, so neither the number of threads
// nor the way the bytes were streamed can change a bit of the result.
//
//   gram        G   += Δ Δᵀ            fp32 inside a block (≤ 2048 columns), fp64 across blocks
//   power_step  Y   += Δ (Δᵀ U)        likewise
//   combine     out  = base + Σ_t w_t Δ_t, rounded once
//
// Δ_t = row_t − base is formed in registers, in fp32. It is never stored outside the caches.
#pragma once

#include <atomic>
#include <cstddef>

#include "../dtype.hpp"

namespace relex::cpu {

constexpr std::size_t kSegment = 16384; // columns; 32 KiB of a 16-bit row
constexpr int kMaxRows = 4096;          // T; a T × T Gram of doubles is then 128 MiB
constexpr int kMaxVectors = 64;         // columns of U in power_step

// Where the values of one tensor lie. base == nullptr stands for zeros.
struct Rows {
    const unsigned char* const* data;
    const DType* dtype;
    int count;
    const unsigned char* base;
    DType base_dtype;
};

struct Range {
    std::size_t begin, end; // columns
};

using Stop = std::atomic<bool>;

// Adds to gram, T × T row-major, its lower triangle. scratch: gram_scratch(T) bytes, 64-byte
// aligned. Squares of deltas must stay inside fp32's normal range; gram_is_safe() says whether they
// did.
using GramFn = void (*)(const Rows&, Range, double* gram, void* scratch, const Stop&);

// u: T × k floats, row-major. Adds to y (T × k) and, unless null, to energy (T): ‖Δ_t‖².
using PowerFn = void (*)(const Rows&, Range, const float* u, int k, double* y, double* energy,
                         void* scratch, const Stop&);

// weights: targets × T doubles, row-major. out[i] receives end − begin elements of out_dtype.
// Accumulates in fp32 when out_dtype has 16 bits, in fp64 when it is f32.
using CombineFn = void (*)(const Rows&, Range, const double* weights, int targets,
                           unsigned char* const* out, DType out_dtype, void* scratch, const Stop&);

struct Kernels {
    const char* name;
    GramFn gram;
    PowerFn power_step;
    CombineFn combine;
    std::size_t (*gram_scratch)(int rows);
    std::size_t (*power_scratch)(int rows, int k);
    std::size_t (*combine_scratch)(int rows);
};

// One per translation unit; the x86 ones exist only on x86-64.
extern const Kernels kScalar;
extern const Kernels kAvx2;
extern const Kernels kAvx512;
extern const Kernels kAvx512Bf16;

// Slow double-precision Gram, for the segments whose squares leave fp32's range.
void gram_fp64(const Rows&, Range, double* gram, const Stop&);
bool gram_is_safe(const Rows&, Range, const double* gram);

} // namespace relex::cpu
