// Which thread computes what: plain arithmetic on indices, tested exhaustively on the processor.
//
// The lower triangle of G is cut into tiles of 32 × 32. A block of threads takes one job: the tiles
// between some block rows and some block columns, for one part of the columns. Small T is one job;
// larger T is cut into groups of block rows, one job for each pair of groups, so that the rows of a
// job fit shared memory.
#pragma once

#include <cstddef>

#include "../dtype.hpp"

namespace relex::cuda {

constexpr int kTile = 32;
constexpr int kTileSize = kTile * kTile;
constexpr int kMaxTiles = 16; // of a job: one per warp
constexpr int kOneJob = 5;    // blocks: 15 tiles

static RELEX_INLINE constexpr int ceil_div(int a, int b) {
    return (a + b - 1) / b;
}

static RELEX_INLINE constexpr int blocks_of(int rows) {
    return ceil_div(rows, kTile);
}
static RELEX_INLINE constexpr int tiles_below(int blocks) {
    return blocks * (blocks + 1) / 2;
}
static RELEX_INLINE constexpr int tile_index(int i, int j) {
    return tiles_below(i) + j;
}

struct Tile {
    int i, j; // block row and block column, j ≤ i
};

static RELEX_INLINE Tile tile_at(int index) {
    int i = 0;
    while (tiles_below(i + 1) <= index) {
        ++i;
    }
    return {i, index - tiles_below(i)};
}

// How the blocks are grouped: at most `largest` (4 or fewer) to a group, or all in one.
static RELEX_INLINE constexpr int groups_of(int blocks, int largest) {
    return blocks <= kOneJob ? 1 : ceil_div(blocks, largest);
}

struct Job {
    int row, rows, column, columns; // in blocks; on the diagonal both ranges are the same

    RELEX_INLINE bool diagonal() const { return row == column; }
    RELEX_INLINE int tiles() const { return diagonal() ? tiles_below(rows) : rows * columns; }

    // The n-th tile of the job, in blocks of G.
    RELEX_INLINE Tile tile(int n) const {
        if (diagonal()) {
            const Tile t = tile_at(n);
            return {row + t.i, column + t.j};
        }
        return {row + n / columns, column + n % columns};
    }

    // Rows in shared memory: those of the block columns, then, off the diagonal, those of the block
    // rows. Only the last block of all can be short, so the rows that exist come first.
    RELEX_INLINE int local_blocks() const { return diagonal() ? rows : rows + columns; }
    RELEX_INLINE int local_row(int block) const {
        const bool among_columns = block < column + columns;
        return kTile * (among_columns ? block - column : columns + block - row);
    }
    RELEX_INLINE int local_count(int total) const {
        const int last = total - row * kTile < rows * kTile ? total - row * kTile : rows * kTile;
        return diagonal() ? last : columns * kTile + last;
    }
    // The row of the tensor that lies at a local row.
    RELEX_INLINE int global_row(int local) const {
        return local < columns * kTile ? column * kTile + local
                                       : row * kTile + local - columns * kTile;
    }
};

static RELEX_INLINE Job job_at(int index, int blocks, int groups) {
    const Tile pair = tile_at(index);
    const int row = pair.i * blocks / groups, row_end = (pair.i + 1) * blocks / groups;
    const int column = pair.j * blocks / groups, column_end = (pair.j + 1) * blocks / groups;
    return {row, row_end - row, column, column_end - column};
}

// Few tiles leave warps idle; then several share a tile, each with a slice of the columns. Depends
// on T alone: it decides in which order a tile's sums are added.
static RELEX_INLINE constexpr int slices_of(int blocks) {
    return blocks == 1 ? 8 : blocks == 2 ? 2 : 1;
}

// A tile is computed as 2 × 4 pieces of 16 × 8. Those above the diagonal, or outside of G, are not.
static RELEX_INLINE bool piece_needed(Tile tile, int m, int n, int total) {
    const int first_row = tile.i * kTile + 16 * m, first_column = tile.j * kTile + 8 * n;
    return first_row < total && first_column <= first_row + 15;
}

// Element e of the four that a lane holds of a 16 × 8 piece (the layout of mma.m16n8k16).
static RELEX_INLINE constexpr int piece_row(int lane, int e) {
    return lane / 4 + 8 * (e / 2);
}
static RELEX_INLINE constexpr int piece_column(int lane, int e) {
    return 2 * (lane % 4) + e % 2;
}

static RELEX_INLINE int count_bits(unsigned word) {
#ifdef __CUDA_ARCH__
    return __popc(word);
#else
    return __builtin_popcount(word);
#endif
}

// The position of the n-th bit that is set in a mask of 128 bits; n < their number.
static RELEX_INLINE int nth_set(const unsigned* mask, int n) {
    int word = 0;
    for (int count; n >= (count = count_bits(mask[word])); ++word) {
        n -= count;
    }
    unsigned left = mask[word];
    for (; n > 0; --n) {
        left &= left - 1; // without its lowest bit
    }
    return 32 * word + count_bits((left & (~left + 1)) - 1);
}

// Bytes from `at` to `end`, at most 16: what a vector access may touch.
static RELEX_INLINE int vector_bytes(std::size_t at, std::size_t end) {
    return at >= end ? 0 : end - at < 16 ? static_cast<int>(end - at) : 16;
}

} // namespace relex::cuda
