// Part of kernels_impl.hpp.

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
