// What the kernels need of the device, beyond what CUDA C++ spells: asynchronous copies, the tensor
// cores, launches. Under RELEX_EMULATION the same names come from tests/cuda/emulation.hpp, and the
// kernels run, thread by thread, on the processor.
#pragma once

#ifdef RELEX_EMULATION
#include "emulation.hpp"
#else

#include <cstddef>

#include <cuda_runtime.h>

#include "kernels.hpp"

namespace relex::cuda {

inline void check(cudaError_t status, const char* what) {
    if (status != cudaSuccess) {
        throw Error(std::string(what) + ": " + cudaGetErrorString(status));
    }
}

inline int device_attribute(cudaDeviceAttr which) {
    int device = 0, value = 0;
    check(cudaGetDevice(&device), "cudaGetDevice");
    check(cudaDeviceGetAttribute(&value, which, device), "cudaDeviceGetAttribute");
    return value;
}

// Bytes of dynamic shared memory that one block may have.
inline std::size_t shared_memory_limit() {
    return static_cast<std::size_t>(device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin));
}

template <class... P, class... A>
void launch(void (*kernel)(P...), unsigned grid_x, unsigned grid_y, unsigned threads,
            std::size_t shared_bytes, cudaStream_t stream, A&&... args) {
    if (shared_bytes > 48 * 1024) { // more must be asked for
        check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   static_cast<int>(shared_bytes)),
              "cudaFuncSetAttribute");
    }
    kernel<<<dim3(grid_x, grid_y), threads, shared_bytes, stream>>>(std::forward<A>(args)...);
    check(cudaGetLastError(), "kernel launch");
}

__device__ __forceinline__ unsigned char* dynamic_shared() {
    extern __shared__ __align__(128) unsigned char relex_shared[];
    return relex_shared;
}

__device__ __forceinline__ unsigned shared_address(const void* p) {
    return static_cast<unsigned>(__cvta_generic_to_shared(p));
}

// 16 bytes to shared memory, past the registers and L1: the first `bytes` from global memory, the
// rest zeros. Both addresses lie on 16 bytes.
__device__ __forceinline__ void copy_async(void* shared, const void* global, int bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)),
                 "l"(global), "r"(bytes)
                 : "memory");
}

__device__ __forceinline__ void commit_copies() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}

// Until at most N of this thread's committed groups are under way.
template <int N> __device__ __forceinline__ void wait_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// Four 8 × 8 matrices of 16-bit numbers; lane l gives the address of row l % 8 of matrix l / 8.
__device__ __forceinline__ void load_matrices(unsigned (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// d (16 × 8, fp32) += a (16 × 16, bf16) · b (16 × 8, bf16)
__device__ __forceinline__ void multiply_bf16(float (&d)[4], const unsigned (&a)[4], unsigned b0,
                                              unsigned b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ float half_to_float(unsigned short bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}

__device__ __forceinline__ float shuffle_xor(float value, int mask) {
    return __shfl_xor_sync(0xffffffffu, value, mask);
}

__device__ __forceinline__ bool any_in_warp(bool value) {
    return __any_sync(0xffffffffu, value) != 0;
}

} // namespace relex::cuda

#endif
