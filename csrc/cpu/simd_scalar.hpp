// Plain C++ on groups of four floats, which compilers turn into SSE2 or NEON by themselves.
// Include inside the namespace of one ISA.

struct Simd {
    static constexpr int W = 4;
    static constexpr int M = 3;
    struct f {
        float lane[W];
    };
    struct Pair {
        f even, odd; // of 2 W neighbouring columns
    };

    template <class Op> static RELEX_INLINE f each(Op op) {
        f r;
        for (int i = 0; i < W; ++i) {
            r.lane[i] = op(i);
        }
        return r;
    }

    static RELEX_INLINE f zero() { return set1(0.0f); }
    static RELEX_INLINE f set1(float x) {
        return each([&](int) { return x; });
    }
    static RELEX_INLINE f load(const float* p) {
        return each([&](int i) { return p[i]; });
    }
    static RELEX_INLINE void store(float* p, f x) {
        for (int i = 0; i < W; ++i) {
            p[i] = x.lane[i];
        }
    }
    static RELEX_INLINE f add(f a, f b) {
        return each([&](int i) { return a.lane[i] + b.lane[i]; });
    }
    static RELEX_INLINE f sub(f a, f b) {
        return each([&](int i) { return a.lane[i] - b.lane[i]; });
    }
    static RELEX_INLINE f fma(f a, f b, f c) {
        return each([&](int i) { return a.lane[i] * b.lane[i] + c.lane[i]; });
    }
    static RELEX_INLINE float sum(f x) { return (x.lane[0] + x.lane[2]) + (x.lane[1] + x.lane[3]); }

    template <class Load> static RELEX_INLINE Pair pair(Load at) {
        return {each([&](int i) { return at(2 * i); }), each([&](int i) { return at(2 * i + 1); })};
    }
    static RELEX_INLINE Pair load_f32(const unsigned char* p) {
        return pair([&](int i) { return load_raw<float>(p + 4 * i); });
    }
    static RELEX_INLINE Pair load_f16(const unsigned char* p) {
        return pair([&](int i) { return f16_to_float(load_raw<std::uint16_t>(p + 2 * i)); });
    }
    static RELEX_INLINE Pair load_bf16(const unsigned char* p) {
        return pair([&](int i) { return bf16_to_float(load_raw<std::uint16_t>(p + 2 * i)); });
    }
    static RELEX_INLINE void store_f16(unsigned char* p, Pair x) {
        for (int i = 0; i < W; ++i) {
            store_raw(p + 4 * i, float_to_f16(x.even.lane[i]));
            store_raw(p + 4 * i + 2, float_to_f16(x.odd.lane[i]));
        }
    }
    static RELEX_INLINE void store_bf16(unsigned char* p, Pair x) {
        for (int i = 0; i < W; ++i) {
            store_raw(p + 4 * i, float_to_bf16(x.even.lane[i]));
            store_raw(p + 4 * i + 2, float_to_bf16(x.odd.lane[i]));
        }
    }

    static RELEX_INLINE f add_odd(f a, f b) {
        return each([&](int i) { return relex::add_odd(a.lane[i], b.lane[i]); });
    }

    static RELEX_INLINE void add_wide(double* acc, f x, const double* base, double w) {
        for (int i = 0; i < W; ++i) {
            acc[i] += w * (static_cast<double>(x.lane[i]) - base[i]);
        }
    }

    static RELEX_INLINE void sum_tile(const f* a, float* sums) {
        for (int i = 0; i < M * M; ++i) {
            sums[i] = sum(a[i]);
        }
    }

    // Into L2, and into L1.
    static RELEX_INLINE void prefetch(const void* p) { __builtin_prefetch(p, 0, 2); }
    static RELEX_INLINE void prefetch_near(const void* p) { __builtin_prefetch(p, 0, 3); }
};
