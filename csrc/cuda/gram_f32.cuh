// The gram kernel of any other strips, and of mixed ones: fp32 throughout.
#pragma once

#include "gram.cuh"

namespace relex::cuda {

namespace {

using Wide = Panel<64, 4>;

struct WideShared {
    unsigned char* moved;  // (rows)
    unsigned char* panels; // (2, rows, pitch), the end: slices are added in its place
    int rows;              // a multiple of 32

    static std::size_t bytes(int rows, std::size_t slices) {
        const std::size_t panels = 2 * Wide::bytes(rows);
        return static_cast<std::size_t>(rows) + (panels > slices ? panels : slices);
    }
    __device__ explicit WideShared(int r) : moved(dynamic_shared()), panels(moved + r), rows(r) {}
    __device__ __forceinline__ float* row(int chunk, int local) const {
        return reinterpret_cast<float*>(panels + (chunk % 2 * rows + local) * Wide::kPitch);
    }
};

__device__ __forceinline__ void load4(Row row, std::size_t column, std::size_t end, float (&x)[4]) {
    const unsigned char* const at = row.data + column * item_size(row.dtype);
    if (row.data != nullptr && column + 4 <= end &&
        reinterpret_cast<std::uintptr_t>(at) % 16 == 0 && row.dtype == DType::f32) {
        const float4 v = __ldg(reinterpret_cast<const float4*>(at));
        x[0] = v.x, x[1] = v.y, x[2] = v.z, x[3] = v.w;
    } else if (row.data != nullptr && column + 4 <= end &&
               reinterpret_cast<std::uintptr_t>(at) % 8 == 0 && row.dtype != DType::f32) {
        const uint2 v = __ldg(reinterpret_cast<const uint2*>(at));
        x[0] = low_half(v.x, row.dtype), x[1] = high_half(v.x, row.dtype);
        x[2] = low_half(v.y, row.dtype), x[3] = high_half(v.y, row.dtype);
    } else {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const std::size_t c = column + static_cast<std::size_t>(i);
            x[i] = c < end ? value_at(row, c) : 0.0f;
        }
    }
}

// A chunk's deltas, formed in registers on the way to shared memory.
__device__ __forceinline__ void load_deltas(const Part& part, const WideShared& shared, int chunk) {
    constexpr int kVectors = Wide::kColumns / 4;
    const int tid = static_cast<int>(threadIdx.x), v = tid % kVectors;
    const std::size_t column =
        part.begin + static_cast<std::size_t>(chunk * Wide::kColumns + 4 * v);
    float base[4];
    load4(part.table.base, column, part.end, base);
    const int step = static_cast<int>(blockDim.x) / kVectors;
#pragma unroll 4
    for (int local = tid / kVectors; local < part.rows; local += step) {
        float x[4];
        load4(part.table.row[part.job.global_row(local)], column, part.end, x);
        const float4 d =
            make_float4(x[0] - base[0], x[1] - base[1], x[2] - base[2], x[3] - base[3]);
        *reinterpret_cast<float4*>(shared.row(chunk, local) + 4 * v) = d;
        if (!(d.x == 0.0f && d.y == 0.0f && d.z == 0.0f && d.w == 0.0f)) {
            shared.moved[local] = 1;
        }
    }
}

__device__ __forceinline__ float component(const float4& v, int i) {
    return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

__device__ __forceinline__ void multiply_wide(const Part& part, const WideShared& shared,
                                              const Work& work, int chunk, Sums& sums) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    for (int c = 4 * work.slice; c < Wide::kColumns; c += 4 * part.slices) {
        float4 left[2][2];
#pragma unroll
        for (int m = 0; m < 2; ++m) {
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                left[m][h] = *reinterpret_cast<const float4*>(
                    shared.row(chunk, work.row + 16 * m + 8 * h + lane / 4) + c);
            }
        }
#pragma unroll
        for (int n = 0; n < 4; ++n) {
            float4 right[2];
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                right[h] = *reinterpret_cast<const float4*>(
                    shared.row(chunk, work.column + 8 * n + 2 * (lane % 4) + h) + c);
            }
#pragma unroll
            for (int m = 0; m < 2; ++m) {
                if (work.needed[m][n]) {
#pragma unroll
                    for (int e = 0; e < 4; ++e) {
#pragma unroll
                        for (int i = 0; i < 4; ++i) {
                            sums.fresh[m][n][e] =
                                fmaf(component(left[m][e / 2], i), component(right[e % 2], i),
                                     sums.fresh[m][n][e]);
                        }
                    }
                }
            }
        }
    }
}

__global__ void __launch_bounds__(kMaxThreads, 1)
    gram_f32(const Table table, std::size_t columns, std::size_t first_part, int groups,
             int shared_rows, const Results results) {
    const Part part(table, columns, first_part, groups);
    const Work work(part, static_cast<int>(threadIdx.x) / 32);
    const WideShared shared(shared_rows);
    const int chunks = part.chunks(Wide::kColumns);
    for (int i = static_cast<int>(threadIdx.x); i < part.rows; i += static_cast<int>(blockDim.x)) {
        shared.moved[i] = 0;
    }
    Sums sums;
    __syncthreads();
    load_deltas(part, shared, 0);
    for (int chunk = 0; chunk < chunks; ++chunk) {
        __syncthreads(); // this chunk is here, and the other panel has been multiplied
        if (chunk + 1 < chunks) {
            load_deltas(part, shared, chunk + 1);
        }
        if (work.any) {
            multiply_wide(part, shared, work, chunk, sums);
        }
        if ((chunk + 1) * Wide::kColumns % kPromote == 0) {
            sums.promote();
        }
    }
    sums.promote();
    add_slices(part, work, reinterpret_cast<float*>(shared.panels), sums);
    store(part, work, sums, shared.moved, results, groups);
}

} // namespace

} // namespace relex::cuda
