// A tensor's rows as the kernels see them, and how values are read from them.
#pragma once

#include "platform.cuh"
#include "tiles.hpp"

namespace relex::cuda {

struct Row {
    const unsigned char* data;
    DType dtype;
};

// The rows' table lies in the workspace: T may exceed what kernel arguments hold.
struct Table {
    const Row* row;
    int count;
    Row base; // data == nullptr: zeros
};

// Cuts aligned pieces off a workspace.
class Cutter {
  public:
    explicit Cutter(Workspace w) : next_(w.data), left_(w.size) {}

    template <class T> T* take(std::size_t count) {
        const std::size_t size = padded<T>(count);
        if (size > left_) {
            throw Error("workspace: too small");
        }
        auto* piece = reinterpret_cast<T*>(next_);
        next_ += size;
        left_ -= size;
        return piece;
    }
    std::size_t left() const { return left_; }

    template <class T> static constexpr std::size_t padded(std::size_t count) {
        return (count * sizeof(T) + 15) / 16 * 16;
    }

  private:
    unsigned char* next_;
    std::size_t left_;
};

// Writes the table on the stream: a host buffer to copy from would have to outlive the copy.
Table write_table(const Rows&, Row* table, cudaStream_t);

inline std::size_t parts_of(std::size_t columns) {
    return (columns + kPart - 1) / kPart;
}

inline bool on_16_bytes(const void* p) {
    return reinterpret_cast<std::uintptr_t>(p) % 16 == 0;
}

__device__ __forceinline__ float expand(unsigned short bits, DType dtype) {
    return dtype == DType::bf16 ? bf16_to_float(bits) : half_to_float(bits);
}

__device__ __forceinline__ float value_at(Row row, std::size_t column) {
    if (row.data == nullptr) {
        return 0.0f;
    }
    return load_scalar(row.data, row.dtype, column);
}

// Two 16-bit numbers side by side in a word.
__device__ __forceinline__ float low_half(unsigned word, DType dtype) {
    return dtype == DType::bf16 ? bits_to_float(word << 16)
                                : half_to_float(static_cast<unsigned short>(word));
}
__device__ __forceinline__ float high_half(unsigned word, DType dtype) {
    return dtype == DType::bf16 ? bits_to_float(word & 0xffff0000u)
                                : half_to_float(static_cast<unsigned short>(word >> 16));
}

// The other way round, for floats that are bf16: the upper halves of two, side by side.
__device__ __forceinline__ unsigned upper_halves(unsigned low, unsigned high) {
    return low >> 16 | (high & 0xffff0000u);
}

// Queues 16 bytes of a row, from byte `at`, on their way to shared memory; what lies at or after
// byte `end` arrives as zeros. Rows that do not lie on 16 bytes are copied here and now.
__device__ __forceinline__ void stage(unsigned char* to, const unsigned char* row, std::size_t at,
                                      std::size_t end) {
    const int bytes = vector_bytes(at, end);
    if (reinterpret_cast<std::uintptr_t>(row) % 16 == 0) {
        copy_async(to, bytes > 0 ? row + at : row, bytes);
        return;
    }
    for (int i = 0; i < 16; ++i) {
        to[i] = i < bytes ? row[at + static_cast<std::size_t>(i)] : static_cast<unsigned char>(0);
    }
}

} // namespace relex::cuda
