// Part of kernels_impl.hpp.

// Per block and up to four targets: the weighted deltas are summed in L1, the base is added and the
// result rounded once.

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
