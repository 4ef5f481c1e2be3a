#include "availability.hpp"

#include <cuda_runtime_api.h>

namespace relex::cuda {

namespace {

constexpr int kLeastMajor = 8; // cp.async, bf16 on the tensor cores

std::string version(int code) { // 12080: 12.8
    return std::to_string(code / 1000) + "." + std::to_string(code % 1000 / 10);
}

// A failed call leaves its error for the next cudaGetLastError(), which would blame a launch.
std::string message(cudaError_t status) {
    cudaGetLastError();
    return cudaGetErrorString(status);
}

} // namespace

std::optional<std::string> unavailable(int device) {
    int driver = 0;
    if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) {
        cudaGetLastError();
        return "no NVIDIA driver was found";
    }
    // Within one major version, older drivers run newer runtimes.
    if (driver / 1000 < CUDART_VERSION / 1000) {
        return "the NVIDIA driver is too old: it supports CUDA " + version(driver) +
               ", the kernels were built with CUDA " + version(CUDART_VERSION);
    }
    int count = 0;
    if (const cudaError_t status = cudaGetDeviceCount(&count); status != cudaSuccess) {
        return "no CUDA device can be used: " + message(status);
    }
    if (device < 0 || device >= count) {
        return "there is no CUDA device " + std::to_string(device) + " (" + std::to_string(count) +
               " found)";
    }
    int major = 0, minor = 0;
    for (const auto& [which, value] : {std::pair{cudaDevAttrComputeCapabilityMajor, &major},
                                       std::pair{cudaDevAttrComputeCapabilityMinor, &minor}}) {
        if (const auto status = cudaDeviceGetAttribute(value, which, device);
            status != cudaSuccess) {
            return "CUDA device " + std::to_string(device) + " cannot be used: " + message(status);
        }
    }
    if (major < kLeastMajor) {
        return "CUDA device " + std::to_string(device) + " has compute capability " +
               std::to_string(major) + "." + std::to_string(minor) + ", the kernels need " +
               std::to_string(kLeastMajor) + ".0";
    }
    return std::nullopt;
}

} // namespace relex::cuda
