// The contract of the CUDA kernels: the three operations of cpu/kernels.hpp on device memory.
//
// A tensor is cut into parts of kPart columns, always from column 0. Each part's sums are fp32
// inside blocks of a few hundred columns; parts are added in fp64, in their order, so neither the
// windows in which a tensor was streamed nor the scheduling can change a bit of the result.
//
// Launchers take the stream last, check every launch and allocate nothing: what they need beyond
// registers and shared memory is a workspace of the caller's. They return when the work is queued.
// Every address below is a device address. Host arrays are read before a launcher returns.
#pragma once

#include <cstddef>
#include <stdexcept>
#include <string>

#include <cuda_runtime_api.h>

#include "../dtype.hpp"

namespace relex::cuda {

constexpr std::size_t kPart = 8192; // columns; divides cpu::kSegment, at which windows begin
constexpr int kMaxRows = 4096;      // T
constexpr int kMaxVectors = 64;     // columns of U in power_step

// The rows of one tensor: host arrays of device addresses and dtypes. base == nullptr: zeros.
// Rows of any alignment are read correctly; those on 16 bytes are read fast.
struct Rows {
    const unsigned char* const* data;
    const DType* dtype;
    int count;
    const unsigned char* base;
    DType base_dtype;
};

struct Workspace {
    unsigned char* data; // 16-byte aligned
    std::size_t size;    // bytes
};

class Error : public std::runtime_error {
    using std::runtime_error::runtime_error;
};

// Bytes of workspace below which an operation cannot run, and above which more does not help.
struct Needs {
    std::size_t least, most;
};

// gram: T × T doubles, row-major; adds ΔΔᵀ to the lower triangle. Deltas that are exactly bf16 are
// multiplied by the tensor cores, the others in fp32; parts whose squares leave fp32's range are
// computed again in fp64.
Needs gram_needs(int rows, std::size_t columns);
void gram(const Rows&, std::size_t columns, double* gram, Workspace, cudaStream_t);

// u: T × k floats, row-major. Adds Δ(Δᵀu) to y, T × k doubles, and, unless null, ‖Δ_t‖² to energy.
Needs power_step_needs(int rows, std::size_t columns, int k);
void power_step(const Rows&, std::size_t columns, const float* u, int k, double* y, double* energy,
                Workspace, cudaStream_t);

// weights: targets × T doubles, row-major; out: host array of `targets` device addresses, each of
// `columns` elements of out_dtype. The same bytes as the CPU's fused kernels write: deltas and sums
// in fp32 for 16-bit outputs, in fp64 for f32, rows in order, one rounding.
Needs combine_needs(int rows, int targets);
void combine(const Rows&, std::size_t columns, const double* weights, int targets,
             unsigned char* const* out, DType out_dtype, Workspace, cudaStream_t);

} // namespace relex::cuda
