// The kernels' index arithmetic (csrc/cuda/tiles.hpp), checked for every T and every grouping.
#include <stdexcept>
#include <string>
#include <vector>

#include "../../csrc/cuda/tiles.hpp"
#include "selftest.hpp"

namespace relex::cuda {

namespace {

void require(bool holds, const char* what, int rows, int detail) {
    if (!holds) {
        throw std::runtime_error(std::string(what) + ": T = " + std::to_string(rows) + ", " +
                                 std::to_string(detail));
    }
}

// Every element of the lower triangle belongs to one lane of one piece of one tile of one job.
long check_cover(int rows, int largest) {
    const int blocks = blocks_of(rows), groups = groups_of(blocks, largest);
    std::vector<int> seen(static_cast<std::size_t>(rows) * static_cast<std::size_t>(rows));
    for (int index = 0; index < tiles_below(groups); ++index) {
        const Job job = job_at(index, blocks, groups);
        require(job.tiles() >= 1 && job.tiles() <= kMaxTiles, "tiles of a job", rows, index);
        require(job.diagonal() || job.column + job.columns <= job.row, "groups overlap", rows,
                index);
        for (int n = 0; n < job.tiles(); ++n) {
            const Tile tile = job.tile(n);
            require(tile.j <= tile.i && tile.i < blocks, "tile above the diagonal", rows, n);
            const Tile again = tile_at(tile_index(tile.i, tile.j));
            require(again.i == tile.i && again.j == tile.j, "tile_at", rows, n);
            for (int piece = 0; piece < 8; ++piece) {
                const int m = piece / 4, k = piece % 4;
                for (int lane = 0; lane < 32; ++lane) {
                    for (int e = 0; e < 4; ++e) {
                        const int i = tile.i * kTile + 16 * m + piece_row(lane, e);
                        const int j = tile.j * kTile + 8 * k + piece_column(lane, e);
                        const bool wanted = i < rows && j <= i;
                        if (piece_needed(tile, m, k, rows)) {
                            if (wanted) {
                                ++seen[static_cast<std::size_t>(i * rows + j)];
                            }
                        } else {
                            require(!wanted, "piece left out", rows, n);
                        }
                    }
                }
            }
        }
    }
    for (int i = 0; i < rows; ++i) {
        for (int j = 0; j < rows; ++j) {
            require(seen[static_cast<std::size_t>(i * rows + j)] == (j <= i ? 1 : 0), "cover", rows,
                    i * rows + j);
        }
    }
    return static_cast<long>(seen.size());
}

// Local rows, the ones that shared memory holds, lead to the tensor's and back.
long check_rows(int rows, int largest) {
    long checks = 0;
    const int blocks = blocks_of(rows), groups = groups_of(blocks, largest);
    std::vector<int> on_diagonal(static_cast<std::size_t>(rows));
    for (int index = 0; index < tiles_below(groups); ++index) {
        const Job job = job_at(index, blocks, groups);
        const int count = job.local_count(rows);
        require(count >= 1 && count <= job.local_blocks() * kTile, "local_count", rows, index);
        for (int local = 0; local < count; ++local, ++checks) {
            const int t = job.global_row(local);
            require(t >= 0 && t < rows, "global_row", rows, local);
            require(job.local_row(t / kTile) + t % kTile == local, "local_row", rows, local);
            on_diagonal[static_cast<std::size_t>(t)] += job.diagonal() ? 1 : 0;
        }
        // A tile's rows that exist are among those in shared memory.
        for (int n = 0; n < job.tiles(); ++n) {
            const Tile tile = job.tile(n);
            for (const int block : {tile.i, tile.j}) {
                for (int r = 0; r < kTile && block * kTile + r < rows; ++r, ++checks) {
                    require(job.local_row(block) + r < count, "row not loaded", rows, n);
                }
            }
        }
    }
    for (int t = 0; t < rows; ++t) {
        require(on_diagonal[static_cast<std::size_t>(t)] == 1, "row on the diagonal", rows, t);
    }
    return checks;
}

long check_masks() {
    long checks = 0;
    unsigned state = 1;
    for (int round = 0; round < 2000; ++round) {
        unsigned mask[4];
        for (unsigned& word : mask) {
            state = state * 1664525u + 1013904223u;
            word = round % 3 == 0   ? state & (state >> 7) & (state << 5)
                   : round % 3 == 1 ? state
                                    : ~0u;
        }
        int n = 0;
        for (int position = 0; position < 128; ++position) {
            if ((mask[position / 32] >> (position % 32) & 1u) != 0) {
                require(nth_set(mask, n) == position, "nth_set", round, position);
                ++n, ++checks;
            }
        }
        require(n == count_bits(mask[0]) + count_bits(mask[1]) + count_bits(mask[2]) +
                         count_bits(mask[3]),
                "count_bits", round, n);
    }
    for (std::size_t end = 0; end < 64; ++end) {
        for (std::size_t at = 0; at < 96; at += 16, ++checks) {
            const int bytes = vector_bytes(at, end);
            const long left = static_cast<long>(end) - static_cast<long>(at);
            const long expected = left < 0 ? 0 : left > 16 ? 16 : left;
            require(bytes == expected, "vector_bytes", static_cast<int>(end), static_cast<int>(at));
        }
    }
    return checks;
}

} // namespace

long check_tiles(int most_rows) {
    long checks = check_masks();
    for (int rows = 1; rows <= most_rows; ++rows) {
        for (int largest = 1; largest <= 4; ++largest) {
            checks += check_rows(rows, largest);
            if (rows <= 200 || rows % 37 == 0 || rows % 32 <= 1) {
                checks += check_cover(rows, largest);
            }
        }
        const int blocks = blocks_of(rows);
        require(groups_of(blocks, 4) > 1 || tiles_below(blocks) * slices_of(blocks) <= kMaxTiles,
                "warps", rows, blocks);
    }
    return checks;
}

} // namespace relex::cuda
