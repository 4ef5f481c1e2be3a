// The three element types the kernels read and write, and their scalar conversions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

// This header is compiled into every kernel file, each for another instruction set. Forced inlining
// with internal linkage keeps the linker from sharing one file's copy with a processor that cannot
// run it.
#ifdef __CUDACC__
#define RELEX_INLINE __host__ __device__ __forceinline__
#else
#define RELEX_INLINE inline __attribute__((always_inline))
#endif

namespace relex {

// The numbers are part of the Python contract (relex_ext.dtypes.CODES).
enum class DType : std::uint8_t { f32 = 0, f16 = 1, bf16 = 2 };

constexpr int kDTypeCount = 3;

static RELEX_INLINE constexpr std::size_t item_size(DType dtype) {
    return dtype == DType::f32 ? 4 : 2;
}

// Payloads of a safetensors file are only as aligned as its writer left them: every access to them
// goes through memcpy or an unaligned vector load.
template <class T> static RELEX_INLINE T load_raw(const void* address) {
    T value;
    std::memcpy(&value, address, sizeof value);
    return value;
}

template <class T> static RELEX_INLINE void store_raw(void* address, T value) {
    std::memcpy(address, &value, sizeof value);
}

static RELEX_INLINE float bits_to_float(std::uint32_t bits) {
    return load_raw<float>(&bits);
}
static RELEX_INLINE std::uint32_t float_to_bits(float value) {
    return load_raw<std::uint32_t>(&value);
}

static RELEX_INLINE float bf16_to_float(std::uint16_t half) {
    return bits_to_float(static_cast<std::uint32_t>(half) << 16);
}

static RELEX_INLINE float f16_to_float(std::uint16_t half) {
    const std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000u) << 16;
    const std::uint32_t magnitude = half & 0x7fffu;
    if (magnitude >= 0x7c00u) { // infinity, NaN
        return bits_to_float(sign | 0x7f800000u | ((magnitude & 0x3ffu) << 13));
    }
    if (magnitude >= 0x0400u) { // normal: move the exponent bias from 15 to 127
        return bits_to_float(sign | ((magnitude << 13) + 0x38000000u));
    }
    const float tiny = static_cast<float>(magnitude) * 0x1p-24f; // subnormal, exact
    return bits_to_float(sign | float_to_bits(tiny));
}

// Round to nearest, ties to even.
static RELEX_INLINE std::uint16_t float_to_bf16(float value) {
    const std::uint32_t bits = float_to_bits(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) { // NaN stays NaN, quiet
        return static_cast<std::uint16_t>((bits >> 16) | 0x40u);
    }
    return static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

static RELEX_INLINE std::uint16_t float_to_f16(float value) {
    const std::uint32_t bits = float_to_bits(value);
    const std::uint32_t sign = (bits >> 16) & 0x8000u;
    const std::uint32_t magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) {
        return static_cast<std::uint16_t>(sign | 0x7e00u | ((magnitude >> 13) & 0x3ffu));
    }
    if (magnitude >= 0x477ff000u) { // rounds to 65520 or more: infinity
        return static_cast<std::uint16_t>(sign | 0x7c00u);
    }
    if (magnitude < 0x38800000u) { // below 2^-14: the adder rounds at 2^-24 for us
        const float shifted = bits_to_float(magnitude) + 0.5f;
        return static_cast<std::uint16_t>(sign | (float_to_bits(shifted) - 0x3f000000u));
    }
    const std::uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
    return static_cast<std::uint16_t>(sign | ((rounded - 0x38000000u) >> 13));
}

// a + b rounded to odd: when the sum is inexact its last bit is set, so that the rounding to 16
// bits that follows is the rounding of the exact sum (Boldo & Melquiond 2008).
static RELEX_INLINE float add_odd(float a, float b) {
    if (b == 0.0f) {
        return a;
    }
    const float s = a + b;
    const float bb = s - a;
    const float error = (a - (s - bb)) + (b - bb);
    const std::uint32_t bits = float_to_bits(s);
    // An even s that was rounded moves one unit towards the exact sum.
    if (error < 0.0f || error > 0.0f) {
        if ((bits & 1u) == 0) {
            const bool outwards = ((bits ^ float_to_bits(error)) >> 31) == 0;
            return bits_to_float(outwards ? bits + 1 : bits - 1);
        }
    }
    return s;
}

static RELEX_INLINE float load_scalar(const void* data, DType dtype, std::size_t index) {
    const auto* bytes = static_cast<const unsigned char*>(data);
    switch (dtype) {
    case DType::f32:
        return load_raw<float>(bytes + 4 * index);
    case DType::f16:
        return f16_to_float(load_raw<std::uint16_t>(bytes + 2 * index));
    case DType::bf16:
        break;
    }
    return bf16_to_float(load_raw<std::uint16_t>(bytes + 2 * index));
}

} // namespace relex
