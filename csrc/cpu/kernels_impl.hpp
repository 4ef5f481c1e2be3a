// The three kernels, written once over the Simd of the instruction set that includes this file.
// Include after it, inside the same namespace. No std:: templates here: see RELEX_INLINE.

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

// ---- columns ------------------------------------------------------------------------------------
//
// Columns are taken in groups of kGroup = 2 W, split into the even and the odd ones: two bf16
// numbers then unpack with a shift and a mask, no shuffle. Every array of floats inside a kernel
// (base, sums, panel) is in this order: W even columns, W odd ones, and so on. Sums do not care;
// combine puts the columns back in order as it rounds them. A group at the end of the tensor is
// padded with zeros.

constexpr std::size_t kGroup = 2 * Simd::W;
constexpr std::size_t kPrefetchBytes = 512; // how far ahead of its loads a row is fetched
using Pair = Simd::Pair;

static RELEX_INLINE std::size_t least(std::size_t a, std::size_t b) {
    return a < b ? a : b;
}
static RELEX_INLINE std::size_t whole_groups(std::size_t n) {
    return (n + kGroup - 1) / kGroup * kGroup;
}

template <DType D> static RELEX_INLINE Pair load_group(const unsigned char* p) {
    if constexpr (D == DType::f32) {
        return Simd::load_f32(p);
    } else if constexpr (D == DType::f16) {
        return Simd::load_f16(p);
    } else {
        return Simd::load_bf16(p);
    }
}

// Calls body(i, load) for each group of the n columns, where load(p) reads the group of the row at
// p.
template <DType D, class Body> static RELEX_INLINE void for_groups(std::size_t n, Body body) {
    std::size_t i = 0;
    for (; i + kGroup <= n; i += kGroup) {
        body(i, [i](const unsigned char* p) { return load_group<D>(p + i * item_size(D)); });
    }
    if (i < n) {
        body(i, [i, n](const unsigned char* p) {
            unsigned char padded[kGroup * item_size(D)] = {};
            std::memcpy(padded, p + i * item_size(D), (n - i) * item_size(D));
            return load_group<D>(padded);
        });
    }
}

static RELEX_INLINE Pair load_pair(const float* p) {
    return {Simd::load(p), Simd::load(p + Simd::W)};
}
static RELEX_INLINE void store_pair(float* p, Pair x) {
    Simd::store(p, x.even);
    Simd::store(p + Simd::W, x.odd);
}
static RELEX_INLINE Pair sub(Pair a, Pair b) {
    return {Simd::sub(a.even, b.even), Simd::sub(a.odd, b.odd)};
}
static RELEX_INLINE Pair fma(Pair a, Simd::f b, Pair c) {
    return {Simd::fma(a.even, b, c.even), Simd::fma(a.odd, b, c.odd)};
}
static RELEX_INLINE Pair fma(Pair a, Pair b, Pair c) {
    return {Simd::fma(a.even, b.even, c.even), Simd::fma(a.odd, b.odd, c.odd)};
}
static RELEX_INLINE Pair zero_pair() {
    return {Simd::zero(), Simd::zero()};
}
static RELEX_INLINE float sum(Pair x) {
    return Simd::sum(Simd::add(x.even, x.odd));
}

template <DType D> struct DTypeTag {
    static constexpr DType value = D;
};

// Calls op(DTypeTag<dtype>): the one place where a dtype becomes static.
template <class Op> static RELEX_INLINE void with_dtype(DType dtype, Op op) {
    switch (dtype) {
    case DType::f32:
        op(DTypeTag<DType::f32>{});
        return;
    case DType::f16:
        op(DTypeTag<DType::f16>{});
        return;
    case DType::bf16:
        op(DTypeTag<DType::bf16>{});
        return;
    }
}

// out = the base's n columns from c on, as floats; zeros where there is no base.
static void expand_base(const Rows& rows, std::size_t c, std::size_t n, float* out) {
    if (rows.base == nullptr) {
        std::memset(out, 0, whole_groups(n) * sizeof(float));
        return;
    }
    with_dtype(rows.base_dtype, [&](auto tag) {
        constexpr DType D = decltype(tag)::value;
        const unsigned char* p = rows.base + c * item_size(D);
        for_groups<D>(n, [&](std::size_t i, auto load) {
            store_pair(out + i, load(p));
            Simd::prefetch(p + (i + n) * item_size(D)); // the next block's, long before its turn
        });
    });
}

// Calls op(t, RowsTag<R>, DTypeTag<D>) for all rows, eight neighbours of one dtype together where
// there are as many, else four, else one. Eight rows read abreast are what it takes to keep enough
// cache lines in flight to use the memory's bandwidth.
template <int R> struct RowsTag {
    static constexpr int value = R;
};

template <class Op> static RELEX_INLINE void for_rows(const Rows& rows, Op op) {
    const auto alike = [&](int t, int count) {
        bool same = t + count <= rows.count;
        for (int r = 1; same && r < count; ++r) {
            same = rows.dtype[t + r] == rows.dtype[t];
        }
        return same;
    };
    for (int t = 0; t < rows.count;) {
        const int taken = alike(t, 8) ? 8 : alike(t, 4) ? 4 : 1;
        with_dtype(rows.dtype[t], [&](auto dtype) {
            switch (taken) {
            case 8:
                op(t, RowsTag<8>{}, dtype);
                break;
            case 4:
                op(t, RowsTag<4>{}, dtype);
                break;
            default:
                op(t, RowsTag<1>{}, dtype);
            }
        });
        t += taken;
    }
}

// out[r · stride …] = row t + r − base for n columns from c on, R rows.
template <DType D, int R>
static RELEX_INLINE void delta_rows(const Rows& rows, int t, std::size_t c, std::size_t n,
                                    const float* base, float* out, std::size_t stride) {
    const unsigned char* p[R];
    for (int r = 0; r < R; ++r) {
        p[r] = rows.data[t + r] + c * item_size(D);
    }
    for_groups<D>(n, [&](std::size_t i, auto load) {
        const Pair b = load_pair(base + i);
        for (int r = 0; r < R; ++r) {
            Simd::prefetch_near(p[r] + i * item_size(D) + kPrefetchBytes);
            store_pair(out + static_cast<std::size_t>(r) * stride + i, sub(load(p[r]), b));
        }
    });
}

// ---- gram ---------------------------------------------------------------------------------------
//
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

struct GramScratch {
    double* tiles; // tile_count × M²
    float* base;   // kGramBlock
    float* panel;  // tile_rows · M × kGramStride
    std::size_t bytes;

    GramScratch(void* memory, int rows) {
        const std::size_t m2 = static_cast<std::size_t>(Simd::M) * Simd::M;
        const std::size_t tile_bytes = (tile_count(rows) * m2 * sizeof(double) + 63) / 64 * 64;
        const auto padded = static_cast<std::size_t>(tile_rows(rows) * Simd::M);
        auto* p = static_cast<unsigned char*>(memory);
        tiles = reinterpret_cast<double*>(p);
        base = reinterpret_cast<float*>(p + tile_bytes);
        panel = base + kGramStride;
        bytes = tile_bytes + (padded + 1) * kGramStride * sizeof(float);
    }
};

static std::size_t gram_scratch(int rows) {
    return GramScratch(nullptr, rows).bytes;
}

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

// ---- power_step ---------------------------------------------------------------------------------
//
// Per block: z = Δ_Bᵀ U kept in L1, then Y += Δ_B z while the block's rows are still in L2. Both
// sweeps form the deltas anew: subtracting again is cheaper than a panel twice the size.

constexpr std::size_t kPowerBlock = 64 * Simd::W;
constexpr int kPowerVectors = 4; // columns of U per sweep: their z fit L1 beside the base

static std::size_t power_scratch(int, int) {
    return (1 + kPowerVectors) * kPowerBlock * sizeof(float);
}

// z[q] += Σ over R rows from t of u[t][q] · Δ_t, for K vectors.
template <DType D, int R, int K>
static RELEX_INLINE void project_rows(const Rows& rows, int t, std::size_t c, std::size_t n,
                                      const float* base, const float* u, int k, float* z) {
    const unsigned char* p[R];
    Simd::f w[R][K];
    for (int r = 0; r < R; ++r) {
        p[r] = rows.data[t + r] + c * item_size(D);
        for (int q = 0; q < K; ++q) {
            w[r][q] = Simd::set1(u[(t + r) * k + q]);
        }
    }
    for_groups<D>(n, [&](std::size_t i, auto load) {
        const Pair b = load_pair(base + i);
        Pair sums[K];
        for (int q = 0; q < K; ++q) {
            sums[q] = load_pair(z + static_cast<std::size_t>(q) * kPowerBlock + i);
        }
        for (int r = 0; r < R; ++r) {
            const Pair d = sub(load(p[r]), b);
            Simd::prefetch_near(p[r] + i * item_size(D) + kPrefetchBytes);
            for (int q = 0; q < K; ++q) {
                sums[q] = fma(d, w[r][q], sums[q]);
            }
        }
        for (int q = 0; q < K; ++q) {
            store_pair(z + static_cast<std::size_t>(q) * kPowerBlock + i, sums[q]);
        }
    });
}

// y[q] += ⟨Δ_t, z[q]⟩ and, with Energy, energy += ‖Δ_t‖², over one block.
template <DType D, int K, bool Energy>
static RELEX_INLINE void correlate_row(const unsigned char* p, std::size_t n, const float* base,
                                       const float* z, double* y, double* energy) {
    Pair sums[K], square = zero_pair();
    for (int q = 0; q < K; ++q) {
        sums[q] = zero_pair();
    }
    for_groups<D>(n, [&](std::size_t i, auto load) {
        // This row comes from L2; the same row of the next block is fetched meanwhile.
        for (std::size_t line = 0; line < kGroup * item_size(D); line += 64) {
            Simd::prefetch(p + (i + kPowerBlock) * item_size(D) + line);
        }
        const Pair d = sub(load(p), load_pair(base + i));
        for (int q = 0; q < K; ++q) {
            sums[q] = fma(d, load_pair(z + static_cast<std::size_t>(q) * kPowerBlock + i), sums[q]);
        }
        if constexpr (Energy) {
            square = fma(d, d, square);
        }
    });
    for (int q = 0; q < K; ++q) {
        y[q] += static_cast<double>(sum(sums[q]));
    }
    if constexpr (Energy) {
        *energy += static_cast<double>(sum(square));
    }
}

template <int K> static void power_block(const Rows& rows, std::size_t c, std::size_t n,
                                         const float* base, const float* u, int k, float* z,
                                         double* y, double* energy) {
    std::memset(z, 0, K * kPowerBlock * sizeof(float));
    for_rows(rows, [&](int t, auto together, auto dtype) {
        project_rows<decltype(dtype)::value, decltype(together)::value, K>(rows, t, c, n, base, u,
                                                                           k, z);
    });
    for (int t = 0; t < rows.count; ++t) {
        with_dtype(rows.dtype[t], [&](auto tag) {
            constexpr DType D = decltype(tag)::value;
            const unsigned char* p = rows.data[t] + c * item_size(D);
            if (energy != nullptr) {
                correlate_row<D, K, true>(p, n, base, z, y + t * k, energy + t);
            } else {
                correlate_row<D, K, false>(p, n, base, z, y + t * k, nullptr);
            }
        });
    }
}

static void power_step(const Rows& rows, Range range, const float* u, int k, double* y,
                       double* energy, void* memory, const Stop& stop) {
    auto* base = static_cast<float*>(memory);
    float* z = base + kPowerBlock;
    for (std::size_t c = range.begin; c < range.end; c += kPowerBlock) {
        if (stop.load(std::memory_order_relaxed)) {
            return;
        }
        const std::size_t n = least(kPowerBlock, range.end - c);
        expand_base(rows, c, n, base);
        for (int q = 0; q < k; q += kPowerVectors) {
            double* once = q == 0 ? energy : nullptr;
            switch (k - q) {
            case 1:
                power_block<1>(rows, c, n, base, u + q, k, z, y + q, once);
                break;
            case 2:
                power_block<2>(rows, c, n, base, u + q, k, z, y + q, once);
                break;
            case 3:
                power_block<3>(rows, c, n, base, u + q, k, z, y + q, once);
                break;
            default:
                power_block<kPowerVectors>(rows, c, n, base, u + q, k, z, y + q, once);
            }
        }
    }
}

// ---- combine ------------------------------------------------------------------------------------

constexpr std::size_t kCombineBlock = 1024;
constexpr int kCombineTargets = 4; // targets per sweep over a block: their sums fit L1
static_assert(kCombineTargets * sizeof(float) >= 2 * sizeof(double), "the wide path's arrays fit");

static std::size_t combine_scratch(int rows) {
    // The larger of the narrow path's base, sums and weights and the wide path's two fp64 arrays.
    return (1 + kCombineTargets) * kCombineBlock * sizeof(float) +
           static_cast<std::size_t>(rows) * kCombineTargets * sizeof(float);
}

// acc[q] += Σ over R rows from t of w[t][q] · Δ_t in fp32, for K targets.
template <DType D, int R, int K>
static RELEX_INLINE void add_rows(const Rows& rows, int t, std::size_t c, std::size_t n,
                                  const float* base, const float* w, float* acc) {
    const unsigned char* p[R];
    Simd::f weight[R][K];
    for (int r = 0; r < R; ++r) {
        p[r] = rows.data[t + r] + c * item_size(D);
        for (int q = 0; q < K; ++q) {
            weight[r][q] = Simd::set1(w[(t + r) * kCombineTargets + q]);
        }
    }
    for_groups<D>(n, [&](std::size_t i, auto load) {
        const Pair b = load_pair(base + i);
        Pair sums[K];
        for (int q = 0; q < K; ++q) {
            sums[q] = load_pair(acc + static_cast<std::size_t>(q) * kCombineBlock + i);
        }
        for (int r = 0; r < R; ++r) {
            const Pair d = sub(load(p[r]), b);
            Simd::prefetch_near(p[r] + i * item_size(D) + kPrefetchBytes);
            for (int q = 0; q < K; ++q) {
                sums[q] = fma(d, weight[r][q], sums[q]);
            }
        }
        for (int q = 0; q < K; ++q) {
            store_pair(acc + static_cast<std::size_t>(q) * kCombineBlock + i, sums[q]);
        }
    });
}

template <int K> static void sum_block(const Rows& rows, std::size_t c, std::size_t n,
                                       const float* base, const float* w, float* acc) {
    std::memset(acc, 0, K * kCombineBlock * sizeof(float));
    for_rows(rows, [&](int t, auto together, auto dtype) {
        add_rows<decltype(dtype)::value, decltype(together)::value, K>(rows, t, c, n, base, w, acc);
    });
}

// out = round(base + acc) to a 16-bit type, columns in order again.
template <DType D> static RELEX_INLINE void finish_narrow(const float* base, const float* acc,
                                                          std::size_t n, unsigned char* out) {
    const auto group = [&](std::size_t i, unsigned char* to) {
        const Pair b = load_pair(base + i);
        const Pair a = load_pair(acc + i);
        const Pair x = {Simd::add_odd(b.even, a.even), Simd::add_odd(b.odd, a.odd)};
        if constexpr (D == DType::f16) {
            Simd::store_f16(to, x);
        } else {
            Simd::store_bf16(to, x);
        }
    };
    std::size_t i = 0;
    for (; i + kGroup <= n; i += kGroup) {
        group(i, out + 2 * i);
    }
    if (i < n) {
        unsigned char padded[2 * kGroup];
        group(i, padded);
        std::memcpy(out + 2 * i, padded, 2 * (n - i));
    }
}

static void combine_narrow(const Rows& rows, Range range, const double* weights, int targets,
                           unsigned char* const* out, DType out_dtype, void* memory,
                           const Stop& stop) {
    auto* base = static_cast<float*>(memory);
    float* acc = base + kCombineBlock;
    float* w = acc + kCombineTargets * kCombineBlock;
    const auto count = static_cast<std::size_t>(rows.count);
    for (int q = 0; q < targets; q += kCombineTargets) {
        const int k = targets - q < kCombineTargets ? targets - q : kCombineTargets;
        for (std::size_t t = 0; t < count; ++t) {
            for (int i = 0; i < k; ++i) {
                w[t * kCombineTargets + static_cast<std::size_t>(i)] =
                    static_cast<float>(weights[static_cast<std::size_t>(q + i) * count + t]);
            }
        }
        for (std::size_t c = range.begin; c < range.end; c += kCombineBlock) {
            if (stop.load(std::memory_order_relaxed)) {
                return;
            }
            const std::size_t n = least(kCombineBlock, range.end - c);
            expand_base(rows, c, n, base);
            switch (k) {
            case 1:
                sum_block<1>(rows, c, n, base, w, acc);
                break;
            case 2:
                sum_block<2>(rows, c, n, base, w, acc);
                break;
            case 3:
                sum_block<3>(rows, c, n, base, w, acc);
                break;
            default:
                sum_block<kCombineTargets>(rows, c, n, base, w, acc);
            }
            for (int i = 0; i < k; ++i) {
                unsigned char* to = out[q + i] + 2 * (c - range.begin);
                const float* sums = acc + static_cast<std::size_t>(i) * kCombineBlock;
                if (out_dtype == DType::f16) {
                    finish_narrow<DType::f16>(base, sums, n, to);
                } else {
                    finish_narrow<DType::bf16>(base, sums, n, to);
                }
            }
        }
    }
}

// acc[0..kGroup) += w · (x − base) in fp64.
static RELEX_INLINE void add_wide(double* acc, Pair x, const double* base, double w) {
    Simd::add_wide(acc, x.even, base, w);
    Simd::add_wide(acc + Simd::W, x.odd, base + Simd::W, w);
}

// A float32 result has as many bits as the arithmetic above: it is summed in fp64, one target at a
// time, which still outpaces memory at the four bytes an element that such checkpoints have.
static void combine_wide(const Rows& rows, Range range, const double* weights, int targets,
                         unsigned char* const* out, void* memory, const Stop& stop) {
    auto* narrow = static_cast<float*>(memory);
    auto* base = reinterpret_cast<double*>(narrow + kCombineBlock);
    double* acc = base + kCombineBlock;
    const auto count = static_cast<std::size_t>(rows.count);
    for (std::size_t c = range.begin; c < range.end; c += kCombineBlock) {
        if (stop.load(std::memory_order_relaxed)) {
            return;
        }
        const std::size_t n = least(kCombineBlock, range.end - c);
        expand_base(rows, c, n, narrow);
        for (std::size_t i = 0; i < whole_groups(n); ++i) {
            base[i] = static_cast<double>(narrow[i]);
        }
        for (int q = 0; q < targets; ++q) {
            const double* w = weights + static_cast<std::size_t>(q) * count;
            std::memset(acc, 0, whole_groups(n) * sizeof(double));
            for (std::size_t t = 0; t < count; ++t) {
                with_dtype(rows.dtype[t], [&](auto tag) {
                    constexpr DType D = decltype(tag)::value;
                    const unsigned char* p = rows.data[t] + c * item_size(D);
                    for_groups<D>(n, [&](std::size_t i, auto load) {
                        add_wide(acc + i, load(p), base + i, w[t]);
                    });
                });
            }
            unsigned char* to = out[q] + 4 * (c - range.begin);
            for (std::size_t i = 0; i < n; ++i) {
                const std::size_t at = i / kGroup * kGroup + i % 2 * Simd::W + i % kGroup / 2;
                store_raw(to + 4 * i,
                          acc[at] == 0.0 ? narrow[at] : static_cast<float>(base[at] + acc[at]));
            }
        }
    }
}

static void combine(const Rows& rows, Range range, const double* weights, int targets,
                    unsigned char* const* out, DType out_dtype, void* memory, const Stop& stop) {
    if (out_dtype == DType::f32) {
        combine_wide(rows, range, weights, targets, out, memory, stop);
    } else {
        combine_narrow(rows, range, weights, targets, out, out_dtype, memory, stop);
    }
}
