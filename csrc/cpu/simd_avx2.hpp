// AVX2 + FMA + F16C vectors of 8 floats. Include inside the namespace of one ISA.

struct Simd {
    using f = __m256;
    static constexpr int W = 8;
    struct Pair {
        f even, odd; // of 2 W neighbouring columns
    };
    static constexpr int M = 3; // 3 × 3 accumulators + 3 + 1 operands of the 16 registers

    static RELEX_INLINE f zero() { return _mm256_setzero_ps(); }
    static RELEX_INLINE f set1(float x) { return _mm256_set1_ps(x); }
    static RELEX_INLINE f load(const float* p) { return _mm256_loadu_ps(p); }
    static RELEX_INLINE void store(float* p, f x) { _mm256_storeu_ps(p, x); }
    static RELEX_INLINE f add(f a, f b) { return _mm256_add_ps(a, b); }
    static RELEX_INLINE f sub(f a, f b) { return _mm256_sub_ps(a, b); }
    static RELEX_INLINE f fma(f a, f b, f c) { return _mm256_fmadd_ps(a, b, c); }
    static RELEX_INLINE float sum(f x) {
        __m128 s = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
        s = _mm_add_ps(s, _mm_movehl_ps(s, s));
        return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
    }

    static RELEX_INLINE __m256i load_bits(const unsigned char* p) {
        return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    }

    static RELEX_INLINE Pair load_f32(const unsigned char* p) {
        const f a = _mm256_castsi256_ps(load_bits(p));
        const f b = _mm256_castsi256_ps(load_bits(p + 32));
        return {in_order(_mm256_shuffle_ps(a, b, 0x88)), in_order(_mm256_shuffle_ps(a, b, 0xdd))};
    }
    static RELEX_INLINE Pair load_f16(const unsigned char* p) {
        const __m256i x = load_bits(p);
        const __m256i even = _mm256_and_si256(x, _mm256_set1_epi32(0xffff));
        return {_mm256_cvtph_ps(narrow(even)), _mm256_cvtph_ps(narrow(_mm256_srli_epi32(x, 16)))};
    }
    static RELEX_INLINE Pair load_bf16(const unsigned char* p) {
        const __m256i x = load_bits(p);
        return {_mm256_castsi256_ps(_mm256_slli_epi32(x, 16)),
                _mm256_castsi256_ps(_mm256_and_si256(x, _mm256_set1_epi32(-65536)))};
    }
    // Undoes the way 256-bit shuffles work on their halves apart.
    static RELEX_INLINE f in_order(f x) {
        return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(x), 0xd8));
    }
    // Lanes below 65536 as 16-bit words.
    static RELEX_INLINE __m128i narrow(__m256i x) {
        return _mm_packus_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    }

    static RELEX_INLINE void store_bits(unsigned char* p, __m256i x) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x);
    }
    static RELEX_INLINE void store_f16(unsigned char* p, Pair x) {
        constexpr int mode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        const __m256i even = _mm256_cvtepu16_epi32(_mm256_cvtps_ph(x.even, mode));
        const __m256i odd = _mm256_cvtepu16_epi32(_mm256_cvtps_ph(x.odd, mode));
        store_bits(p, _mm256_or_si256(even, _mm256_slli_epi32(odd, 16)));
    }
    static RELEX_INLINE void store_bf16(unsigned char* p, Pair x) {
        const __m256i odd = _mm256_and_si256(round_bf16(x.odd), _mm256_set1_epi32(-65536));
        store_bits(p, _mm256_or_si256(_mm256_srli_epi32(round_bf16(x.even), 16), odd));
    }
    // Rounded to the upper half of each lane; the lower half is left over.
    static RELEX_INLINE __m256i round_bf16(f x) {
        const __m256i bits = _mm256_castps_si256(x);
        const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
        const __m256i rounded =
            _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
        const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
        const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
        return _mm256_blendv_epi8(rounded, quiet, nan);
    }

    // The vector form of relex::add_odd.
    static RELEX_INLINE f add_odd(f a, f b) {
        const f s = _mm256_add_ps(a, b);
        const f bb = _mm256_sub_ps(s, a);
        const f error = _mm256_add_ps(_mm256_sub_ps(a, _mm256_sub_ps(s, bb)), _mm256_sub_ps(b, bb));
        const __m256i bits = _mm256_castps_si256(s);
        const __m256i inexact =
            _mm256_castps_si256(_mm256_cmp_ps(error, _mm256_setzero_ps(), _CMP_NEQ_OQ));
        const __m256i odd =
            _mm256_sub_epi32(_mm256_setzero_si256(), _mm256_and_si256(bits, _mm256_set1_epi32(1)));
        const __m256i opposite = _mm256_xor_si256(bits, _mm256_castps_si256(error));
        const __m256i step =
            _mm256_or_si256(_mm256_srai_epi32(opposite, 31), _mm256_set1_epi32(1)); // ±1
        const __m256i moved = _mm256_and_si256(_mm256_andnot_si256(odd, inexact), step);
        const f sum = _mm256_castsi256_ps(_mm256_add_epi32(bits, moved));
        return _mm256_blendv_ps(sum, a, _mm256_cmp_ps(b, _mm256_setzero_ps(), _CMP_EQ_OQ));
    }

    static RELEX_INLINE void add_wide(double* acc, f x, const double* base, double w) {
        const __m256d ww = _mm256_set1_pd(w);
        const __m256d low = _mm256_cvtps_pd(_mm256_castps256_ps128(x));
        const __m256d high = _mm256_cvtps_pd(_mm256_extractf128_ps(x, 1));
        const __m256d dl = _mm256_sub_pd(low, _mm256_loadu_pd(base));
        const __m256d dh = _mm256_sub_pd(high, _mm256_loadu_pd(base + 4));
        _mm256_storeu_pd(acc, _mm256_fmadd_pd(dl, ww, _mm256_loadu_pd(acc)));
        _mm256_storeu_pd(acc + 4, _mm256_fmadd_pd(dh, ww, _mm256_loadu_pd(acc + 4)));
    }

    static RELEX_INLINE void sum_tile(const f* a, float* sums) {
        for (int i = 0; i < M * M; ++i) {
            sums[i] = sum(a[i]);
        }
    }

    // Into L2, and into L1.
    static RELEX_INLINE void prefetch(const void* p) {
        _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1);
    }
    static RELEX_INLINE void prefetch_near(const void* p) {
        _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0);
    }
};
