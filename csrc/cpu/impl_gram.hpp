// Part of kernels_impl.hpp.

// Hands out the bytes of the next block in runs, spread evenly over the multiplication of this one,
// which asks for them line by line: in a burst they would fill the load buffers and stall it. The
// rows lie megabytes apart and each is read in pieces of half a page, too short for the hardware's
// prefetcher to see a stream.
class Prefetcher {
  public:
    static constexpr std::size_t kRun = 2048; // bytes

    Prefetcher(const Rows& rows, std::size_t begin, std::size_t end)
        : rows_(rows), begin_(begin), end_(end) {}

    // How many times next() will be called. idle: any address in cache, for the turns left over.
    void spread(std::size_t turns, const void* idle) {
        std::size_t bytes = 0;
        for (int t = 0; t < rows_.count && begin_ < end_; ++t) {
            bytes += ((end_ - begin_) * item_size(rows_.dtype[t]) + kRun - 1) / kRun;
        }
        runs_ = bytes;
        turns_ = turns;
        due_ = turns; // the first turn brings the first run
        idle_ = static_cast<const unsigned char*>(idle);
    }

    // The next run to fetch, or nullptr: nothing is due.
    RELEX_INLINE const unsigned char* next() {
        due_ += runs_;
        if (due_ < turns_ || row_ >= rows_.count || begin_ >= end_) {
            return nullptr;
        }
        due_ -= turns_;
        const std::size_t size = item_size(rows_.dtype[row_]);
        const unsigned char* run = rows_.data[row_] + begin_ * size + offset_;
        offset_ += kRun;
        if (offset_ >= (end_ - begin_) * size) {
            offset_ = 0;
            ++row_;
        }
        return run;
    }

    const unsigned char* idle() const { return idle_; }

  private:
    const Rows& rows_;
    std::size_t begin_, end_;
    std::size_t runs_ = 0, turns_ = 1, due_ = 0, offset_ = 0;
    int row_ = 0;
    const unsigned char* idle_ = nullptr;
};

// Per block of columns: the deltas go into a panel of floats (T × kBlock, in L2), whose lower
// triangle of M × M tiles is then accumulated in registers, one dot product per pair of rows, and
// added to the segment's tiles in fp64.

constexpr std::size_t kGramBlock = 64 * Simd::W;     // each lane adds 64 products in fp32, no more
constexpr std::size_t kGramStride = kGramBlock + 16; // rows 4 KiB apart would share L1 sets

static int tile_rows(int rows) {
    return (rows + Simd::M - 1) / Simd::M;
}
static std::size_t tile_count(int rows) {
    const auto n = static_cast<std::size_t>(tile_rows(rows));
    return n * (n + 1) / 2;
}

// acc += the products of columns [from, to) of M rows each at a and b. One line of the run is
// prefetched per vector; when there is none, the same idle line again and again.
static RELEX_INLINE void dot_columns(const float* a, const float* b, std::size_t stride,
                                     std::size_t from, std::size_t to, Simd::f* acc,
                                     Prefetcher& ahead) {
    constexpr int M = Simd::M;
    const unsigned char* run = ahead.next();
    const std::size_t pace = run == nullptr ? 0 : Prefetcher::kRun / (kGramBlock / 2);
    run = run == nullptr ? ahead.idle() : run;
    for (std::size_t k = from; k < to; k += Simd::W) {
        Simd::prefetch(run + (k - from) * pace);
        Simd::f y[M];
        for (int j = 0; j < M; ++j) {
            y[j] = Simd::load(b + static_cast<std::size_t>(j) * stride + k);
        }
        for (int i = 0; i < M; ++i) {
            const Simd::f x = Simd::load(a + static_cast<std::size_t>(i) * stride + k);
            for (int j = 0; j < M; ++j) {
                acc[i * M + j] = Simd::fma(x, y[j], acc[i * M + j]);
            }
        }
    }
}

static RELEX_INLINE void add_tile(const Simd::f* acc, double* sums) {
    constexpr int M = Simd::M;
    float block[M * M + Simd::W];
    Simd::sum_tile(acc, block);
    for (int i = 0; i < M * M; ++i) {
        sums[i] += static_cast<double>(block[i]);
    }
}

// tiles += the lower triangle of panel · panelᵀ over columns (a multiple of W) of the panel.
static void accumulate_tiles(const float* panel, std::size_t columns, int rows, double* tiles,
                             Prefetcher& ahead) {
    constexpr int M = Simd::M;
    const int n = tile_rows(rows);
    const std::size_t half = least(columns, kGramBlock / 2);
    ahead.spread(2 * tile_count(rows), panel);
    for (int i = 0; i < n; ++i) {
        const float* a = panel + static_cast<std::size_t>(i * M) * kGramStride;
        for (int j = 0; j <= i; ++j, tiles += M * M) {
            const float* b = panel + static_cast<std::size_t>(j * M) * kGramStride;
            Simd::f acc[M * M];
            for (int q = 0; q < M * M; ++q) {
                acc[q] = Simd::zero();
            }
            dot_columns(a, b, kGramStride, 0, half, acc, ahead);
            dot_columns(a, b, kGramStride, half, columns, acc, ahead);
            add_tile(acc, tiles);
        }
    }
}

// gram += the lower triangle kept in tiles.
static void scatter_tiles(const double* tiles, int rows, double* gram) {
    constexpr int M = Simd::M;
    const int n = tile_rows(rows);
    for (int ti = 0; ti < n; ++ti) {
        for (int tj = 0; tj <= ti; ++tj, tiles += M * M) {
            for (int i = ti * M; i < ti * M + M && i < rows; ++i) {
                for (int j = tj * M; j < tj * M + M && j <= i; ++j) {
                    gram[static_cast<std::size_t>(i) * static_cast<std::size_t>(rows) +
                         static_cast<std::size_t>(j)] += tiles[(i - ti * M) * M + (j - tj * M)];
                }
            }
        }
    }
}

static std::size_t tile_bytes(int rows) {
    const std::size_t m2 = static_cast<std::size_t>(Simd::M) * Simd::M;
    return (tile_count(rows) * m2 * sizeof(double) + 63) / 64 * 64;
}

static std::size_t gram_scratch(int rows) {
    const auto padded = static_cast<std::size_t>(tile_rows(rows) * Simd::M);
    return tile_bytes(rows) + (padded + 1) * kGramStride * sizeof(float);
}

struct GramScratch {
    double* tiles; // tile_count × M²
    float* base;   // kGramBlock
    float* panel;  // tile_rows · M × kGramStride

    GramScratch(void* memory, int rows) {
        auto* p = static_cast<unsigned char*>(memory);
        tiles = reinterpret_cast<double*>(p);
        base = reinterpret_cast<float*>(p + tile_bytes(rows));
        panel = base + kGramStride;
    }
};

// One block of at most kGramBlock columns from column c, through the float panel.
static void gram_block(const Rows& rows, std::size_t c, std::size_t n, const GramScratch& s,
                       Prefetcher& ahead) {
    expand_base(rows, c, n, s.base);
    for_rows(rows, [&](int t, auto together, auto dtype) {
        delta_rows<decltype(dtype)::value, decltype(together)::value>(
            rows, t, c, n, s.base, s.panel + static_cast<std::size_t>(t) * kGramStride,
            kGramStride);
    });
    accumulate_tiles(s.panel, whole_groups(n), rows.count, s.tiles, ahead);
}

static void clear_gram_scratch(const GramScratch& s, int rows) {
    const std::size_t m2 = static_cast<std::size_t>(Simd::M) * Simd::M;
    std::memset(s.tiles, 0, tile_count(rows) * m2 * sizeof(double));
    // The rows that pad the last tile stay zero for the whole segment.
    const auto padded = static_cast<std::size_t>(tile_rows(rows) * Simd::M);
    const auto count = static_cast<std::size_t>(rows);
    std::memset(s.panel + count * kGramStride, 0, (padded - count) * kGramStride * sizeof(float));
}

static void gram(const Rows& rows, Range range, double* gram, void* memory, const Stop& stop) {
    const GramScratch s(memory, rows.count);
    clear_gram_scratch(s, rows.count);
    for (std::size_t c = range.begin; c < range.end; c += kGramBlock) {
        if (stop.load(std::memory_order_relaxed)) {
            return;
        }
        const std::size_t n = least(kGramBlock, range.end - c);
        Prefetcher ahead(rows, c + n, least(c + n + kGramBlock, range.end));
        gram_block(rows, c, n, s, ahead);
    }
    scatter_tiles(s.tiles, rows.count, gram);
}
