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

// Addresses and weights of a batch of rows, side by side where every thread reads them.
template <int K, class Acc> struct Batch {
    static constexpr int kRows = 256;
    Row row[kRows];
    Acc weight[kRows][K];
};

template <DType D> struct Raw { // eight columns of a row
    uint4 word[item_size(D) / 2];
};

template <DType D>
__device__ __forceinline__ Raw<D> load_raw8(const unsigned char* row, std::size_t column) {
    const auto* from = reinterpret_cast<const uint4*>(row + item_size(D) * column);
    Raw<D> raw;
#pragma unroll
    for (std::size_t i = 0; i < item_size(D) / 2; ++i) {
        raw.word[i] = __ldg(from + i);
    }
    return raw;
}

template <DType D>
__device__ __forceinline__ void expand8(const Raw<D>& raw, float (&x)[kColumns]) {
    if constexpr (D == DType::f32) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            x[4 * i] = bits_to_float(raw.word[i].x);
            x[4 * i + 1] = bits_to_float(raw.word[i].y);
            x[4 * i + 2] = bits_to_float(raw.word[i].z);
            x[4 * i + 3] = bits_to_float(raw.word[i].w);
        }
    } else {
        const unsigned words[4] = {raw.word[0].x, raw.word[0].y, raw.word[0].z, raw.word[0].w};
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            x[2 * i] = low_half(words[i], D);
            x[2 * i + 1] = high_half(words[i], D);
        }
    }
}

__device__ __forceinline__ void load_values(Row row, std::size_t column, std::size_t columns,
                                            float (&x)[kColumns]) {
#pragma unroll
    for (int i = 0; i < kColumns; ++i) {
        const std::size_t c = column + static_cast<std::size_t>(i);
        x[i] = c < columns ? value_at(row, c) : 0.0f;
    }
}

__device__ __forceinline__ void load_base(Row base, std::size_t column, std::size_t columns,
                                          float (&x)[kColumns]) {
    const bool fast = base.data != nullptr && column + kColumns <= columns &&
                      reinterpret_cast<std::uintptr_t>(base.data) % 16 == 0;
    if (!fast) {
        load_values(base, column, columns, x);
    } else if (base.dtype == DType::bf16) {
        expand8<DType::bf16>(load_raw8<DType::bf16>(base.data, column), x);
    } else if (base.dtype == DType::f16) {
        expand8<DType::f16>(load_raw8<DType::f16>(base.data, column), x);
    } else {
        expand8<DType::f32>(load_raw8<DType::f32>(base.data, column), x);
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
__device__ __forceinline__ void add_row(Acc (&sums)[K][kColumns], const Acc (&weight)[K],
                                        const float (&x)[kColumns], const float (&base)[kColumns]) {
#pragma unroll
    for (int q = 0; q < K; ++q) {
#pragma unroll
        for (int i = 0; i < kColumns; ++i) {
            sums[q][i] = add(sums[q][i], weight[q], x[i], base[i]);
        }
    }
}

// All rows of dtype D and on 16 bytes, eight columns inside of the tensor.
template <DType D, int K, class Acc>
__device__ __forceinline__ void add_fast(const Batch<K, Acc>& batch, int count, std::size_t column,
                                         const float (&base)[kColumns], Acc (&sums)[K][kColumns]) {
    constexpr int kTogether = D == DType::f32 ? 4 : 8;
    int t = 0;
    for (; t + kTogether <= count; t += kTogether) {
        Raw<D> raw[kTogether];
#pragma unroll
        for (int r = 0; r < kTogether; ++r) {
            raw[r] = load_raw8<D>(batch.row[t + r].data, column);
        }
#pragma unroll
        for (int r = 0; r < kTogether; ++r) {
            float x[kColumns];
            expand8<D>(raw[r], x);
            add_row<K>(sums, batch.weight[t + r], x, base);
        }
    }
    for (; t < count; ++t) {
        float x[kColumns];
        expand8<D>(load_raw8<D>(batch.row[t].data, column), x);
        add_row<K>(sums, batch.weight[t], x, base);
    }
}

// Rows of any dtype at any address, and the last columns.
template <int K, class Acc>
__device__ __forceinline__ void add_slow(const Batch<K, Acc>& batch, int count, std::size_t column,
                                         std::size_t columns, const float (&base)[kColumns],
                                         Acc (&sums)[K][kColumns]) {
    for (int t = 0; t < count; ++t) {
        float x[kColumns];
        load_values(batch.row[t], column, columns, x);
        add_row<K>(sums, batch.weight[t], x, base);
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

// Fast: every row has dtype D and lies on 16 bytes.
template <bool Fast, DType D, int K, class Acc>
__global__ void __launch_bounds__(kThreads, sizeof(Acc) == 4 ? 2 : 1)
    combine_kernel(const Table table, std::size_t columns, const double* __restrict__ weights,
                   const Out out) {
    using Rows = Batch<K, Acc>;
    auto& batch = *reinterpret_cast<Rows*>(dynamic_shared());
    const std::size_t column =
        (static_cast<std::size_t>(blockIdx.x) * kThreads + threadIdx.x) * kColumns;
    const bool whole = column + kColumns <= columns;

    float base[kColumns];
    load_base(table.base, column, columns, base);
    Acc sums[K][kColumns] = {};
    for (int first = 0; first < table.count; first += Rows::kRows) {
        const int left = table.count - first, count = left < Rows::kRows ? left : Rows::kRows;
        __syncthreads(); // the batch before has been used
        for (int t = static_cast<int>(threadIdx.x); t < count; t += kThreads) {
            batch.row[t] = table.row[first + t];
            for (int q = 0; q < K; ++q) {
                batch.weight[t][q] = static_cast<Acc>(
                    weights[static_cast<std::size_t>(q) * static_cast<std::size_t>(table.count) +
                            static_cast<std::size_t>(first + t)]);
            }
        }
        __syncthreads();
        if (Fast && whole) {
            add_fast<D, K>(batch, count, column, base, sums);
        } else if (column < columns) {
            add_slow<K>(batch, count, column, columns, base, sums);
        }
    }
    if (column < columns) {
#pragma unroll
        for (int q = 0; q < K; ++q) {
            store8(out.data[q], out.dtype, column, columns, sums[q], base);
        }
    }
}

bool alike(const Rows& rows) {
    bool same = true;
    for (int t = 0; t < rows.count; ++t) {
        same = same && rows.dtype[t] == rows.dtype[0] && on_16_bytes(rows.data[t]);
    }
    return same;
}

template <int K, class Acc> void combine_some(const Table& table, const Rows& rows,
                                              std::size_t columns, const double* weights,
                                              const Out& out, cudaStream_t stream) {
    const std::size_t per_block = kThreads * kColumns;
    const auto blocks = static_cast<unsigned>((columns + per_block - 1) / per_block);
    const DType dtype = rows.dtype[0];
    const auto kernel = !alike(rows)           ? combine_kernel<false, DType::f32, K, Acc>
                        : dtype == DType::bf16 ? combine_kernel<true, DType::bf16, K, Acc>
                        : dtype == DType::f16  ? combine_kernel<true, DType::f16, K, Acc>
                                               : combine_kernel<true, DType::f32, K, Acc>;
    launch(kernel, blocks, 1, kThreads, sizeof(Batch<K, Acc>), stream, table, columns, weights,
           out);
}

template <class Acc> void combine_all(const Table& table, const Rows& rows, std::size_t columns,
                                      const double* weights, int targets, unsigned char* const* out,
                                      DType out_dtype, cudaStream_t stream) {
    for (int q = 0; q < targets;) {
        const int k = targets - q >= 4 ? 4 : targets - q >= 2 ? 2 : 1;
        Out some{{}, out_dtype};
        for (int i = 0; i < k; ++i) {
            some.data[i] = out[q + i];
        }
        const double* w =
            weights + static_cast<std::size_t>(q) * static_cast<std::size_t>(rows.count);
        switch (k) {
        case 4:
            combine_some<4, Acc>(table, rows, columns, w, some, stream);
            break;
        case 2:
            combine_some<2, Acc>(table, rows, columns, w, some, stream);
            break;
        default:
            combine_some<1, Acc>(table, rows, columns, w, some, stream);
        }
        q += k;
    }
}

} // namespace

Needs combine_needs(int rows, int) {
    const std::size_t size = Cutter::padded<Row>(static_cast<std::size_t>(rows));
    return {size, size};
}

void combine(const Rows& rows, std::size_t columns, const double* weights, int targets,
             unsigned char* const* out, DType out_dtype, Workspace workspace, cudaStream_t stream) {
    if (columns == 0 || targets == 0) {
        return;
    }
    Cutter cutter(workspace);
    const Table table =
        write_table(rows, cutter.take<Row>(static_cast<std::size_t>(rows.count)), stream);
    const auto all = out_dtype == DType::f32 ? combine_all<double> : combine_all<float>;
    all(table, rows, columns, weights, targets, out, out_dtype, stream);
}

} // namespace relex::cuda
