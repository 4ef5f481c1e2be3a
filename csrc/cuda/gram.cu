// G += Δ Δᵀ, the lower triangle, in tiles of 32 × 32 (tiles.hpp): a warp to a tile, a block of
// threads to a job and a part of the columns.
//
// Two kernels fill the same accumulators. Where the base and all rows are bf16, a chunk's strips
// are copied to shared memory and turned, in place, into bf16 deltas for the tensor cores. A column
// in which some delta is not exactly bf16 (a weight near zero does that) is blanked there and
// multiplied in fp32 from the side. Other dtypes go through fp32 altogether.
//
// Tensor cores truncate where they add. So a warp's accumulators run over 128 columns only, and are
// then added, rounded to nearest, to a second set in fp32.
#include <cmath>

#include "rows.cuh"

namespace relex::cuda {

namespace {

constexpr int kPromote = 128;    // columns
constexpr int kSide = 16;        // inexact columns that are multiplied at once
constexpr int kMaxThreads = 512; // 16 warps of 128 registers each
constexpr int kLargestGroup = 4; // blocks of 32 rows
constexpr std::size_t kMostWorkspace = std::size_t{256} << 20;
constexpr std::size_t kMostParts = 1024; // of one launch

// A chunk of the columns in shared memory. Sixteen bytes between rows keep ldmatrix, which reads
// the same columns of eight rows, from hitting the same banks eight times.
template <int Columns, int Item> struct Panel {
    static constexpr int kColumns = Columns;
    static constexpr int kPitch = Columns * Item + 16; // bytes
    static std::size_t bytes(int rows) { return static_cast<std::size_t>(rows) * kPitch; }
};
using Narrow = Panel<128, 2>; // bf16
using Wide = Panel<64, 4>;    // float

struct Part {
    Table table;
    Job job;
    int rows; // that the job has in shared memory
    std::size_t begin, end;
    int slices;

    __device__ Part(const Table& t, std::size_t columns, std::size_t first_part, int groups)
        : table(t) {
        const int blocks = blocks_of(t.count), jobs = tiles_below(groups);
        const int block = static_cast<int>(blockIdx.x);
        job = job_at(block % jobs, blocks, groups); // the jobs of a part meet in L2
        rows = job.local_count(t.count);
        begin = (first_part + static_cast<std::size_t>(block / jobs)) * kPart;
        end = columns < begin + kPart ? columns : begin + kPart;
        slices = slices_of(blocks);
    }
    __device__ int chunks(int columns) const {
        return static_cast<int>((end - begin + static_cast<std::size_t>(columns) - 1) /
                                static_cast<std::size_t>(columns));
    }
};

// What a warp computes: one tile, or with several slices its share of that tile's columns.
struct Work {
    bool any;
    Tile tile;
    int number, slice; // of the tile in the job; of the columns
    int row, column;   // of the tile in shared memory
    bool needed[2][4]; // its pieces

    __device__ Work(const Part& part, int warp) {
        number = warp / part.slices;
        slice = warp % part.slices;
        any = number < part.job.tiles();
        tile = part.job.tile(any ? number : 0);
        row = part.job.local_row(tile.i);
        column = part.job.local_row(tile.j);
#pragma unroll
        for (int m = 0; m < 2; ++m) {
#pragma unroll
            for (int n = 0; n < 4; ++n) {
                needed[m][n] = any && piece_needed(tile, m, n, part.table.count);
            }
        }
    }
};

// A warp's tile: sums since the last promotion, and before.
struct Sums {
    float fresh[2][4][4] = {}, total[2][4][4] = {};

    __device__ __forceinline__ void promote() {
#pragma unroll
        for (int m = 0; m < 2; ++m) {
#pragma unroll
            for (int n = 0; n < 4; ++n) {
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    total[m][n][e] += fresh[m][n][e];
                    fresh[m][n][e] = 0.0f;
                }
            }
        }
    }
};

// ---- bf16 --------------------------------------------------------------------------------------

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

// ---- the end of a part -------------------------------------------------------------------------

// The slices of a tile are added in their order, by way of shared memory that is free by now.
__device__ __forceinline__ void add_slices(const Part& part, const Work& work, float* scratch,
                                           Sums& sums) {
    if (part.slices == 1) {
        return;
    }
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const auto place = [&](int slice, int element) {
        return scratch + ((work.number * (part.slices - 1) + slice - 1) * 32 + element) * 32 + lane;
    };
    __syncthreads();
    if (work.any && work.slice > 0) {
#pragma unroll
        for (int i = 0; i < 32; ++i) {
            *place(work.slice, i) = sums.total[i / 16][i / 4 % 4][i % 4];
        }
    }
    __syncthreads();
    if (work.any && work.slice == 0) {
        for (int slice = 1; slice < part.slices; ++slice) {
#pragma unroll
            for (int i = 0; i < 32; ++i) {
                sums.total[i / 16][i / 4 % 4][i % 4] += *place(slice, i);
            }
        }
    }
}

std::size_t slices_bytes(int blocks) {
    return static_cast<std::size_t>(tiles_below(blocks) * (slices_of(blocks) - 1)) * kTileSize *
           sizeof(float);
}

// Where a batch of parts leaves its results: tiles (parts, tiles, 32, 32), moved (parts, T).
struct Results {
    float* tiles;
    unsigned char* moved;
};

__device__ __forceinline__ void store(const Part& part, const Work& work, const Sums& sums,
                                      const unsigned char* moved, const Results& results,
                                      int groups) {
    const int tid = static_cast<int>(threadIdx.x), lane = tid % 32;
    const std::size_t batch_part = blockIdx.x / static_cast<unsigned>(tiles_below(groups));
    const int blocks = blocks_of(part.table.count);
    if (work.any && work.slice == 0) {
        float* const tile =
            results.tiles + (batch_part * static_cast<std::size_t>(tiles_below(blocks)) +
                             static_cast<std::size_t>(tile_index(work.tile.i, work.tile.j))) *
                                kTileSize;
#pragma unroll
        for (int m = 0; m < 2; ++m) {
#pragma unroll
            for (int n = 0; n < 4; ++n) {
#pragma unroll
                for (int e = 0; e < 4; e += 2) {
                    float* const to = tile + (16 * m + piece_row(lane, e)) * kTile + 8 * n +
                                      piece_column(lane, e);
                    *reinterpret_cast<float2*>(to) =
                        make_float2(sums.total[m][n][e], sums.total[m][n][e + 1]);
                }
            }
        }
    }
    if (part.job.diagonal()) {
        const std::size_t count = static_cast<std::size_t>(part.table.count);
        for (int i = tid; i < part.rows; i += static_cast<int>(blockDim.x)) {
            results.moved[batch_part * count + static_cast<std::size_t>(part.job.global_row(i))] =
                moved[i];
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

// ---- fp32 --------------------------------------------------------------------------------------

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

// ---- adding the parts --------------------------------------------------------------------------

// A part is unsafe where squares have left fp32's normal range: see cpu/gram_fp64.cpp. A warp each.
__global__ void find_unsafe(const Results results, int rows, int parts, int* unsafe) {
    const int part = static_cast<int>((blockIdx.x * blockDim.x + threadIdx.x) / 32);
    if (part >= parts) {
        return;
    }
    const int tiles = tiles_below(blocks_of(rows));
    bool found = false;
    for (int t = static_cast<int>(threadIdx.x) % 32; t < rows; t += 32) {
        const std::size_t tile = static_cast<std::size_t>(part) * static_cast<std::size_t>(tiles) +
                                 static_cast<std::size_t>(tile_index(t / kTile, t / kTile));
        const float square =
            results.tiles[tile * kTileSize + static_cast<std::size_t>(t % kTile * (kTile + 1))];
        const bool moved =
            results.moved[static_cast<std::size_t>(part) * static_cast<std::size_t>(rows) +
                          static_cast<std::size_t>(t)] != 0;
        found = found || !(square <= 3.402823466e38f) || (square < 0x1p-90f && moved);
    }
    if (any_in_warp(found) && threadIdx.x % 32 == 0) {
        unsafe[part] = 1;
    } else if (threadIdx.x % 32 == 0) {
        unsafe[part] = 0;
    }
}

__device__ double delta_fp64(const Table& table, int t, std::size_t column) {
    return static_cast<double>(value_at(table.row[t], column)) -
           static_cast<double>(value_at(table.base, column));
}

// One thread to an element of G: the parts in their order, in fp64. Unsafe parts are computed anew.
__global__ void add_parts(const Table table, std::size_t columns, std::size_t first_part, int parts,
                          const float* __restrict__ tiles, const int* __restrict__ unsafe,
                          double* gram) {
    const Tile tile = tile_at(static_cast<int>(blockIdx.x));
    const int element = static_cast<int>(blockIdx.y * blockDim.x + threadIdx.x);
    const int i = tile.i * kTile + element / kTile, j = tile.j * kTile + element % kTile;
    if (i >= table.count || j > i) {
        return;
    }
    double* const to =
        gram + static_cast<std::size_t>(i) * static_cast<std::size_t>(table.count) + j;
    const std::size_t step = static_cast<std::size_t>(gridDim.x) * kTileSize;
    const float* from = tiles + static_cast<std::size_t>(blockIdx.x) * kTileSize + element;
    double sum = *to;
#pragma unroll 8
    for (int part = 0; part < parts; ++part, from += step) {
        double add = static_cast<double>(*from);
        if (unsafe[part] != 0) {
            const std::size_t begin = (first_part + static_cast<std::size_t>(part)) * kPart;
            const std::size_t end = columns < begin + kPart ? columns : begin + kPart;
            add = 0.0;
            for (std::size_t c = begin; c < end; ++c) {
                add = fma(delta_fp64(table, i, c), delta_fp64(table, j, c), add);
            }
        }
        sum += add;
    }
    *to = sum;
}

// ---- launchers ---------------------------------------------------------------------------------

using Kernel = void (*)(Table, std::size_t, std::size_t, int, int, Results);

struct Choice {
    Kernel kernel;
    std::size_t shared;
    int groups, rows; // of blocks; in shared memory
};

// Rows that the largest job has in shared memory.
int shared_rows(int blocks, int groups) {
    if (groups == 1) {
        return blocks * kTile;
    }
    int most = 0;
    for (int index = 0; index < tiles_below(groups); ++index) {
        const int rows = job_at(index, blocks, groups).local_blocks() * kTile;
        most = rows > most ? rows : most;
    }
    return most;
}

bool fits(Choice& choice, Kernel kernel, std::size_t bytes, std::size_t limit) {
    choice.kernel = kernel;
    choice.shared = bytes;
    return bytes <= limit;
}

// Groups as large as shared memory lets them be, with as many stages. The groups may show in the
// last bits: a column is inexact or not for the rows of a job. They are the same on the same
// device.
Choice choose(int rows, bool narrow) {
    const int blocks = blocks_of(rows);
    const std::size_t limit = shared_memory_limit(), slices = slices_bytes(blocks);
    for (int largest = kLargestGroup; largest >= 1; --largest) {
        Choice choice{};
        choice.groups = groups_of(blocks, largest);
        choice.rows = shared_rows(blocks, choice.groups);
        const int r = choice.rows;
        if (!narrow) {
            if (fits(choice, gram_f32, WideShared::bytes(r, slices), limit)) {
                return choice;
            }
        } else if (fits(choice, gram_bf16<4>, NarrowShared<4>::bytes(r, slices), limit) ||
                   fits(choice, gram_bf16<3>, NarrowShared<3>::bytes(r, slices), limit) ||
                   fits(choice, gram_bf16<2>, NarrowShared<2>::bytes(r, slices), limit)) {
            return choice;
        }
    }
    throw Error("gram: this device has too little shared memory");
}

// Bytes of workspace for each part of a batch, apart from what padding adds.
std::size_t part_bytes(int rows) {
    const auto tiles = static_cast<std::size_t>(tiles_below(blocks_of(rows)));
    return tiles * kTileSize * sizeof(float) + static_cast<std::size_t>(rows) + sizeof(int);
}

constexpr std::size_t kPadding = 3 * 16; // three pieces

bool all_bf16(const Rows& rows) {
    bool all = rows.base == nullptr || rows.base_dtype == DType::bf16;
    for (int t = 0; t < rows.count; ++t) {
        all = all && rows.dtype[t] == DType::bf16;
    }
    return all;
}

} // namespace

Needs gram_needs(int rows, std::size_t columns) {
    const std::size_t table = Cutter::padded<Row>(static_cast<std::size_t>(rows)) + kPadding;
    const std::size_t one = part_bytes(rows);
    std::size_t parts = kMostWorkspace / one;
    parts = parts < kMostParts ? parts : kMostParts;
    parts = parts < parts_of(columns) ? parts : parts_of(columns);
    return {table + one, table + one * (parts > 0 ? parts : 1)};
}

void gram(const Rows& rows, std::size_t columns, double* sums, Workspace workspace,
          cudaStream_t stream) {
    if (columns == 0) {
        return;
    }
    Cutter cutter(workspace);
    const auto count = static_cast<std::size_t>(rows.count);
    const Table table = write_table(rows, cutter.take<Row>(count), stream);
    const int tiles = tiles_below(blocks_of(rows.count));
    const std::size_t room = cutter.left() < kPadding ? 0 : cutter.left() - kPadding;
    std::size_t at_once = room / part_bytes(rows.count);
    at_once = at_once < kMostParts ? at_once : kMostParts;
    at_once = at_once > 0 ? at_once : 1; // if there is no room for it, the cutter says so
    Results results{};
    results.tiles = cutter.take<float>(at_once * static_cast<std::size_t>(tiles) * kTileSize);
    results.moved = cutter.take<unsigned char>(at_once * count);
    int* const unsafe = cutter.take<int>(at_once);

    const Choice choice = choose(rows.count, all_bf16(rows));
    const int blocks = blocks_of(rows.count);
    const int warps = choice.groups == 1 ? tiles_below(blocks) * slices_of(blocks) : kMaxTiles;
    const auto jobs = static_cast<unsigned>(tiles_below(choice.groups));
    const std::size_t parts = parts_of(columns);
    for (std::size_t first = 0; first < parts; first += at_once) {
        const auto batch = static_cast<int>(parts - first < at_once ? parts - first : at_once);
        launch(choice.kernel, static_cast<unsigned>(batch) * jobs, 1,
               static_cast<unsigned>(32 * warps), choice.shared, stream, table, columns, first,
               choice.groups, choice.rows, results);
        launch(find_unsafe, static_cast<unsigned>(ceil_div(batch, 4)), 1, 128, 0, stream, results,
               rows.count, batch, unsafe);
        launch(add_parts, static_cast<unsigned>(tiles), kTileSize / 256, 256, 0, stream, table,
               columns, first, batch, static_cast<const float*>(results.tiles),
               static_cast<const int*>(unsafe), sums);
    }
}

} // namespace relex::cuda
