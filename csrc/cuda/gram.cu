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
#include "gram_bf16.cuh"
#include "gram_f32.cuh"

namespace relex::cuda {

namespace {

constexpr int kLargestGroup = 4; // blocks of 32 rows
constexpr std::size_t kMostWorkspace = std::size_t{256} << 20;
constexpr std::size_t kMostParts = 1024; // of one launch

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
