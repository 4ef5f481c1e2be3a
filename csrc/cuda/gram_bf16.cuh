// The gram kernel of bf16 strips: on the tensor cores where a delta is exactly bf16, from the side
// where it is not.
#pragma once

#include "gram.cuh"

namespace relex::cuda {

namespace {

constexpr int kSide = 16; // inexact columns that are multiplied at once
using Narrow = Panel<128, 2>;

template <int Stages> struct NarrowShared {
    const unsigned char** source; // (rows + 2): where a row lies in global memory; the base is last
    float* side;                  // (kSide, rows)
    unsigned (*inexact)[4];       // [chunk % 2]: a bit for each column
    unsigned char* moved;         // (rows): some delta is not zero
    unsigned char* stages; // (Stages, rows + 1, pitch), the end: slices are added in its place
    int rows;              // a multiple of 32, which keeps every piece on 16 bytes

    static RELEX_INLINE int before_stages(int rows) {
        const int size = (rows + 2) * static_cast<int>(sizeof(void*)) +
                         kSide * rows * static_cast<int>(sizeof(float)) +
                         8 * static_cast<int>(sizeof(unsigned)) + rows;
        return (size + 15) / 16 * 16;
    }
    static std::size_t bytes(int rows, std::size_t slices) {
        const std::size_t stages = Stages * Narrow::bytes(rows + 1);
        return static_cast<std::size_t>(before_stages(rows)) + (stages > slices ? stages : slices);
    }
    __device__ explicit NarrowShared(int r) : rows(r) {
        source = reinterpret_cast<const unsigned char**>(dynamic_shared());
        side = reinterpret_cast<float*>(source + r + 2);
        inexact = reinterpret_cast<unsigned(*)[4]>(side + kSide * r);
        moved = reinterpret_cast<unsigned char*>(inexact + 2);
        stages = dynamic_shared() + before_stages(r);
    }
    __device__ __forceinline__ unsigned char* row(int chunk, int local) const {
        return stages + (chunk % Stages * (rows + 1) + local) * Narrow::kPitch;
    }
};

template <int Stages> __device__ __forceinline__ void
stage_chunk(const Part& part, const NarrowShared<Stages>& shared, int chunk) {
    constexpr int kVectors = Narrow::kColumns / 8;
    if (chunk < part.chunks(Narrow::kColumns)) {
        const std::size_t first =
            2 * (part.begin + static_cast<std::size_t>(chunk) * Narrow::kColumns);
        for (int i = static_cast<int>(threadIdx.x); i < (part.rows + 1) * kVectors;
             i += static_cast<int>(blockDim.x)) {
            const int local = i / kVectors, v = i % kVectors;
            const unsigned char* const from = shared.source[local];
            if (from != nullptr) {
                stage(shared.row(chunk, local) + 16 * v, from,
                      first + 16 * static_cast<std::size_t>(v), 2 * part.end);
            }
        }
    }
    commit_copies();
}

// The staged rows become deltas, in place. A thread keeps to eight columns, whose base it holds.
template <int Stages> __device__ __forceinline__ void
form_deltas(const Part& part, const NarrowShared<Stages>& shared, int chunk) {
    constexpr int kVectors = Narrow::kColumns / 8;
    const int tid = static_cast<int>(threadIdx.x), v = tid % kVectors;
    float base[8] = {};
    if (part.table.base.data != nullptr) {
        const uint4 raw = *reinterpret_cast<const uint4*>(shared.row(chunk, part.rows) + 16 * v);
        const unsigned words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            base[2 * i] = bits_to_float(words[i] << 16);
            base[2 * i + 1] = bits_to_float(words[i] & 0xffff0000u);
        }
    }
    unsigned bits[8] = {}; // of every delta in the column, or-ed: bf16 has none of the lower half
    const int step = static_cast<int>(blockDim.x) / kVectors;
    for (int local = tid / kVectors; local < part.rows; local += step) {
        auto* const at = reinterpret_cast<uint4*>(shared.row(chunk, local) + 16 * v);
        const uint4 raw = *at;
        const unsigned words[4] = {raw.x, raw.y, raw.z, raw.w};
        unsigned deltas[4], any = 0;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const unsigned low = float_to_bits(bits_to_float(words[i] << 16) - base[2 * i]);
            const unsigned high =
                float_to_bits(bits_to_float(words[i] & 0xffff0000u) - base[2 * i + 1]);
            bits[2 * i] |= low;
            bits[2 * i + 1] |= high;
            any |= low | high;
            deltas[i] = upper_halves(low, high);
        }
        *at = make_uint4(deltas[0], deltas[1], deltas[2], deltas[3]);
        if (any << 1 != 0) { // not for the sign of a zero
            shared.moved[local] = 1;
        }
    }
    unsigned inexact = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        inexact |= (bits[i] & 0xffffu) != 0 ? 1u << i : 0u;
    }
    if (inexact != 0) {
        atomicOr(&shared.inexact[chunk % 2][v / 4], inexact << (8 * (v % 4)));
    }
}

// The columns that bf16 cannot hold: fetched again, multiplied in fp32, blanked for what follows.
template <int Stages> __device__ void multiply_inexact(const Part& part,
                                                       const NarrowShared<Stages>& shared,
                                                       const Work& work, int chunk, Sums& sums) {
    const unsigned* const mask = shared.inexact[chunk % 2];
    const int total =
        count_bits(mask[0]) + count_bits(mask[1]) + count_bits(mask[2]) + count_bits(mask[3]);
    const int pitch = shared.rows;
    const int lane = static_cast<int>(threadIdx.x) % 32;
    for (int first = 0; first < total; first += kSide) {
        const int count = total - first < kSide ? total - first : kSide;
        if (first > 0) {
            __syncthreads(); // the side is still being read
        }
        for (int i = static_cast<int>(threadIdx.x); i < count * part.rows;
             i += static_cast<int>(blockDim.x)) {
            const int s = i / part.rows, local = i % part.rows;
            const int c = nth_set(mask, first + s);
            const std::size_t column =
                part.begin + static_cast<std::size_t>(chunk * Narrow::kColumns + c);
            const Row row = part.table.row[part.job.global_row(local)];
            shared.side[s * pitch + local] =
                value_at(row, column) - value_at(part.table.base, column);
            reinterpret_cast<unsigned short*>(shared.row(chunk, local))[c] = 0;
        }
        __syncthreads();
        if (!work.any) {
            continue;
        }
        for (int s = work.slice; s < count; s += part.slices) {
            const float* const rows = shared.side + s * pitch + work.row + lane / 4;
            const float* const columns = shared.side + s * pitch + work.column + 2 * (lane % 4);
#pragma unroll
            for (int m = 0; m < 2; ++m) {
#pragma unroll
                for (int n = 0; n < 4; ++n) {
                    if (work.needed[m][n]) {
#pragma unroll
                        for (int e = 0; e < 4; ++e) {
                            sums.fresh[m][n][e] = fmaf(rows[16 * m + 8 * (e / 2)],
                                                       columns[8 * n + e % 2], sums.fresh[m][n][e]);
                        }
                    }
                }
            }
        }
    }
}

// Rows g and columns n of Δ Δᵀ both come from rows of Δ, and the fragment that ldmatrix gives for
// 16 rows as the left factor holds, register for register, the right factor's for 8 rows twice.
template <int Stages>
__device__ __forceinline__ void multiply_exact(const Part& part, const NarrowShared<Stages>& shared,
                                               const Work& work, int chunk, Sums& sums) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int row = lane % 16, vector = lane / 16; // of the matrices whose rows this lane points at
    const bool diagonal = work.row == work.column;
    for (int k = work.slice; k < Narrow::kColumns / 16; k += part.slices) {
        unsigned left[2][4], right[2][4];
#pragma unroll
        for (int m = 0; m < 2; ++m) {
            load_matrices(left[m],
                          shared.row(chunk, work.row + 16 * m + row) + 32 * k + 16 * vector);
        }
        if (!diagonal) {
#pragma unroll
            for (int m = 0; m < 2; ++m) {
                load_matrices(right[m],
                              shared.row(chunk, work.column + 16 * m + row) + 32 * k + 16 * vector);
            }
        } else {
#pragma unroll
            for (int m = 0; m < 2; ++m) {
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    right[m][i] = left[m][i];
                }
            }
        }
#pragma unroll
        for (int m = 0; m < 2; ++m) {
#pragma unroll
            for (int n = 0; n < 4; ++n) {
                if (work.needed[m][n]) {
                    multiply_bf16(sums.fresh[m][n], left[m], right[n / 2][n % 2],
                                  right[n / 2][2 + n % 2]);
                }
            }
        }
    }
}

template <int Stages> __global__ void __launch_bounds__(kMaxThreads, 1)
    gram_bf16(const Table table, std::size_t columns, std::size_t first_part, int groups,
              int shared_rows, const Results results) {
    const Part part(table, columns, first_part, groups);
    const Work work(part, static_cast<int>(threadIdx.x) / 32);
    const NarrowShared<Stages> shared(shared_rows);
    const int tid = static_cast<int>(threadIdx.x), chunks = part.chunks(Narrow::kColumns);
    for (int i = tid; i < part.rows; i += static_cast<int>(blockDim.x)) {
        shared.moved[i] = 0;
        shared.source[i] = table.row[part.job.global_row(i)].data;
    }
    if (tid == 0) {
        shared.source[part.rows] = table.base.data;
    }
    if (tid < 8) {
        shared.inexact[tid / 4][tid % 4] = 0;
    }
    __syncthreads();
    Sums sums;
    for (int chunk = 0; chunk < Stages - 1; ++chunk) {
        stage_chunk(part, shared, chunk);
    }
    for (int chunk = 0; chunk < chunks; ++chunk) {
        wait_copies<Stages - 2>();
        __syncthreads(); // this chunk is here, and the last one has been multiplied
        stage_chunk(part, shared, chunk + Stages - 1);
        if (tid < 4) {
            shared.inexact[(chunk + 1) % 2][tid] = 0;
        }
        form_deltas(part, shared, chunk);
        __syncthreads();
        multiply_inexact(part, shared, work, chunk, sums);
        if (work.any) {
            multiply_exact(part, shared, work, chunk, sums);
        }
        if ((chunk + 1) * Narrow::kColumns % kPromote == 0) {
            sums.promote();
        }
    }
    sums.promote();
    wait_copies<0>();
    add_slices(part, work, reinterpret_cast<float*>(shared.stages), sums);
    store(part, work, sums, shared.moved, results, groups);
}

} // namespace

} // namespace relex::cuda
