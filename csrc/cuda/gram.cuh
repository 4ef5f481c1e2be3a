// What the two gram kernels share: a block's part of the work, a warp's tile and its sums, and how
// a part ends. gram.cu includes it.
#pragma once

#include "rows.cuh"

namespace relex::cuda {

namespace {

constexpr int kPromote = 128;    // columns between promotions: see Sums
constexpr int kMaxThreads = 512; // 16 warps of 128 registers each

// A chunk of the columns in shared memory. Sixteen bytes between rows keep ldmatrix, which reads
// the same columns of eight rows, from hitting the same banks eight times.
template <int Columns, int Item> struct Panel {
    static constexpr int kColumns = Columns;
    static constexpr int kPitch = Columns * Item + 16; // bytes
    static std::size_t bytes(int rows) { return static_cast<std::size_t>(rows) * kPitch; }
};

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

} // namespace

} // namespace relex::cuda
