// Part of kernels_impl.hpp.

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
