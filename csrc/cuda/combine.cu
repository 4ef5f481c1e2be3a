// out = base + Σ_t w_t Δ_t: one thread to eight columns, rows in order, several targets at once.
//
// Bound by memory. What matters is that many 16-byte loads are under way before the first is used:
// eight rows are loaded together, and the registers of four targets' sums still let several blocks
// share a multiprocessor.
#include "rows.cuh"

namespace relex::cuda {

namespace {

constexpr unsigned kThreads = 256;
constexpr int kColumns = 8; // a thread's
constexpr int kTargets = 4; // of one launch, at most

struct Out {
    unsigned char* data[kTargets];
    DType dtype;
};

// weights (targets × T) → (T × K) of the type that the sums have.
template <int K, class Acc>
__global__ void arrange(const double* weights, int rows, Acc* arranged) {
    const int t = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
    if (t < rows) {
        for (int q = 0; q < K; ++q) {
            arranged[t * K + q] = static_cast<Acc>(weights[static_cast<std::size_t>(q) * rows + t]);
        }
    }
}

template <int N> struct Raw { // eight columns of a row of N-byte elements
    uint4 word[N / 2];
};

template <int N>
__device__ __forceinline__ Raw<N> load_raw8(const unsigned char* row, std::size_t column) {
    const auto* from = reinterpret_cast<const uint4*>(row + N * column);
    Raw<N> raw;
    for (int i = 0; i < N / 2; ++i) {
        raw.word[i] = __ldg(from + i);
    }
    return raw;
}

__device__ __forceinline__ void expand8(const Raw<2>& raw, DType dtype, float (&x)[kColumns]) {
    const unsigned words[4] = {raw.word[0].x, raw.word[0].y, raw.word[0].z, raw.word[0].w};
    for (int i = 0; i < 4; ++i) {
        x[2 * i] = low_half(words[i], dtype);
        x[2 * i + 1] = high_half(words[i], dtype);
    }
}

__device__ __forceinline__ void expand8(const Raw<4>& raw, DType, float (&x)[kColumns]) {
    for (int i = 0; i < 2; ++i) {
        x[4 * i] = bits_to_float(raw.word[i].x);
        x[4 * i + 1] = bits_to_float(raw.word[i].y);
        x[4 * i + 2] = bits_to_float(raw.word[i].z);
        x[4 * i + 3] = bits_to_float(raw.word[i].w);
    }
}

__device__ __forceinline__ void load_base(Row base, std::size_t column, float (&x)[kColumns]) {
    if (base.data == nullptr) {
        for (float& value : x) {
            value = 0.0f;
        }
    } else if (base.dtype == DType::f32) {
        expand8(load_raw8<4>(base.data, column), base.dtype, x);
    } else {
        expand8(load_raw8<2>(base.data, column), base.dtype, x);
    }
}

// As the CPU's kernels: 16-bit outputs are summed in fp32, float32 in fp64.
__device__ __forceinline__ float add(float sum, float w, float x, float base) {
    return fmaf(x - base, w, sum);
}
__device__ __forceinline__ double add(double sum, double w, float x, float base) {
    return fma(static_cast<double>(x) - static_cast<double>(base), w, sum);
}

template <int K, class Acc>
__device__ __forceinline__ void add_row(Acc (&sums)[K][kColumns], const Acc* w,
                                        const float (&x)[kColumns], const float (&base)[kColumns]) {
#pragma unroll
    for (int q = 0; q < K; ++q) {
        const Acc weight = __ldg(w + q);
#pragma unroll
        for (int i = 0; i < kColumns; ++i) {
            sums[q][i] = add(sums[q][i], weight, x[i], base[i]);
        }
    }
}

// All rows of N-byte elements on 16 bytes, eight columns inside of the tensor.
template <int N, int K, class Acc>
__device__ __forceinline__ void sum_fast(const Table& table, const Acc* weights, std::size_t column,
                                         const float (&base)[kColumns], Acc (&sums)[K][kColumns]) {
    constexpr int kTogether = N == 2 ? 8 : 4;
    int t = 0;
    for (; t + kTogether <= table.count; t += kTogether) {
        Raw<N> raw[kTogether];
#pragma unroll
        for (int r = 0; r < kTogether; ++r) {
            raw[r] = load_raw8<N>(table.row[t + r].data, column);
        }
#pragma unroll
        for (int r = 0; r < kTogether; ++r) {
            float x[kColumns];
            expand8(raw[r], table.row[t + r].dtype, x);
            add_row<K>(sums, weights + (t + r) * K, x, base);
        }
    }
    for (; t < table.count; ++t) {
        float x[kColumns];
        expand8(load_raw8<N>(table.row[t].data, column), table.row[t].dtype, x);
        add_row<K>(sums, weights + t * K, x, base);
    }
}

// Rows of any dtype at any address, and the last columns.
template <int K, class Acc>
__device__ __forceinline__ void sum_slow(const Table& table, const Acc* weights, std::size_t column,
                                         std::size_t columns, const float (&base)[kColumns],
                                         Acc (&sums)[K][kColumns]) {
    for (int t = 0; t < table.count; ++t) {
        float x[kColumns];
#pragma unroll
        for (int i = 0; i < kColumns; ++i) {
            const std::size_t c = column + static_cast<std::size_t>(i);
            x[i] = c < columns ? value_at(table.row[t], c) : 0.0f;
        }
        add_row<K>(sums, weights + t * K, x, base);
    }
}

// One rounding. A sum of zero keeps the base's bits: −0 + 0 would be +0.
__device__ __forceinline__ float rounded_odd(float sum, float base) {
    return add_odd(base, sum);
}
__device__ __forceinline__ float rounded_f32(double sum, float base) {
    return sum == 0.0 ? base : static_cast<float>(static_cast<double>(base) + sum);
}

__device__ __forceinline__ unsigned narrow(float value, DType dtype) {
    return dtype == DType::bf16 ? float_to_bf16(value) : float_to_f16(value);
}

__device__ __forceinline__ void store8(unsigned char* out, DType dtype, std::size_t column,
                                       std::size_t columns, const float (&sums)[kColumns],
                                       const float (&base)[kColumns]) {
    unsigned words[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        words[i] = narrow(rounded_odd(sums[2 * i], base[2 * i]), dtype) |
                   narrow(rounded_odd(sums[2 * i + 1], base[2 * i + 1]), dtype) << 16;
    }
    unsigned char* to = out + 2 * column;
    if (column + kColumns <= columns && reinterpret_cast<std::uintptr_t>(to) % 16 == 0) {
        *reinterpret_cast<uint4*>(to) = make_uint4(words[0], words[1], words[2], words[3]);
        return;
    }
#pragma unroll
    for (int i = 0; i < kColumns; ++i) {
        if (column + static_cast<std::size_t>(i) < columns) {
            store_raw(to + 2 * i, static_cast<std::uint16_t>(words[i / 2] >> (i % 2 * 16)));
        }
    }
}

__device__ __forceinline__ void store8(unsigned char* out, DType, std::size_t column,
                                       std::size_t columns, const double (&sums)[kColumns],
                                       const float (&base)[kColumns]) {
    float values[kColumns];
#pragma unroll
    for (int i = 0; i < kColumns; ++i) {
        values[i] = rounded_f32(sums[i], base[i]);
    }
    unsigned char* to = out + 4 * column;
    if (column + kColumns <= columns && reinterpret_cast<std::uintptr_t>(to) % 16 == 0) {
        auto* vector = reinterpret_cast<float4*>(to);
        vector[0] = make_float4(values[0], values[1], values[2], values[3]);
        vector[1] = make_float4(values[4], values[5], values[6], values[7]);
        return;
    }
#pragma unroll
    for (int i = 0; i < kColumns; ++i) {
        if (column + static_cast<std::size_t>(i) < columns) {
            store_raw(to + 4 * i, values[i]);
        }
    }
}

// N: bytes of every row's elements, all rows and the base on 16 bytes; 0: anything.
template <int N, int K, class Acc> __global__ void __launch_bounds__(kThreads)
    combine_kernel(const Table table, std::size_t columns, const Acc* __restrict__ weights,
                   const Out out) {
    const std::size_t column =
        (static_cast<std::size_t>(blockIdx.x) * kThreads + threadIdx.x) * kColumns;
    if (column >= columns) {
        return;
    }
    float base[kColumns];
    Acc sums[K][kColumns] = {};
    if (N != 0 && column + kColumns <= columns) {
        load_base(table.base, column, base);
        sum_fast<N == 0 ? 2 : N, K>(table, weights, column, base, sums);
    } else {
#pragma unroll
        for (int i = 0; i < kColumns; ++i) {
            const std::size_t c = column + static_cast<std::size_t>(i);
            base[i] = c < columns ? value_at(table.base, c) : 0.0f;
        }
        sum_slow<K>(table, weights, column, columns, base, sums);
    }
#pragma unroll
    for (int q = 0; q < K; ++q) {
        store8(out.data[q], out.dtype, column, columns, sums[q], base);
    }
}

// 2 or 4 where the fast path applies to all rows, else 0.
int common_size(const Rows& rows) {
    const std::size_t size = item_size(rows.dtype[0]);
    bool common = on_16_bytes(rows.base);
    for (int t = 0; t < rows.count; ++t) {
        common = common && item_size(rows.dtype[t]) == size && on_16_bytes(rows.data[t]);
    }
    return common ? static_cast<int>(size) : 0;
}

template <int K, class Acc> void combine_some(const Table& table, int size, std::size_t columns,
                                              const double* weights, const Out& out, Acc* arranged,
                                              cudaStream_t stream) {
    launch(arrange<K, Acc>, static_cast<unsigned>(ceil_div(table.count, 256)), 1, 256, 0, stream,
           weights, table.count, arranged);
    const std::size_t per_block = kThreads * kColumns;
    const auto blocks = static_cast<unsigned>((columns + per_block - 1) / per_block);
    const auto kernel = size == 2   ? combine_kernel<2, K, Acc>
                        : size == 4 ? combine_kernel<4, K, Acc>
                                    : combine_kernel<0, K, Acc>;
    launch(kernel, blocks, 1, kThreads, 0, stream, table, columns,
           static_cast<const Acc*>(arranged), out);
}

template <class Acc> void combine_all(const Table& table, int size, std::size_t columns,
                                      const double* weights, int targets, unsigned char* const* out,
                                      DType out_dtype, Acc* arranged, cudaStream_t stream) {
    for (int q = 0; q < targets;) {
        const int k = targets - q >= 4 ? 4 : targets - q >= 2 ? 2 : 1;
        Out some{{}, out_dtype};
        for (int i = 0; i < k; ++i) {
            some.data[i] = out[q + i];
        }
        const double* w = weights + static_cast<std::size_t>(q) * table.count;
        switch (k) {
        case 4:
            combine_some<4>(table, size, columns, w, some, arranged, stream);
            break;
        case 2:
            combine_some<2>(table, size, columns, w, some, arranged, stream);
            break;
        default:
            combine_some<1>(table, size, columns, w, some, arranged, stream);
        }
        q += k;
    }
}

} // namespace

Needs combine_needs(int rows, int) {
    const auto t = static_cast<std::size_t>(rows);
    const std::size_t size = Cutter::padded<Row>(t) + Cutter::padded<double>(t * kTargets);
    return {size, size};
}

void combine(const Rows& rows, std::size_t columns, const double* weights, int targets,
             unsigned char* const* out, DType out_dtype, Workspace workspace, cudaStream_t stream) {
    if (columns == 0 || targets == 0) {
        return;
    }
    const auto t = static_cast<std::size_t>(rows.count);
    Cutter cutter(workspace);
    const Table table = write_table(rows, cutter.take<Row>(t), stream);
    const int size = common_size(rows);
    if (out_dtype == DType::f32) {
        combine_all(table, size, columns, weights, targets, out, out_dtype,
                    cutter.take<double>(t * kTargets), stream);
    } else {
        combine_all(table, size, columns, weights, targets, out, out_dtype,
                    cutter.take<float>(t * kTargets), stream);
    }
}

} // namespace relex::cuda
