// AVX-512 (F, BW, DQ, VL) vectors of 16 floats. Include inside the namespace of one ISA.

struct Simd {
    using f = __m512;
    static constexpr int W = 16;
    struct Pair {
        f even, odd; // of 2 W neighbouring columns
    };
    static constexpr int M = 5; // 5 × 5 accumulators + 5 + 1 operands of the 32 registers

    static RELEX_INLINE f zero() { return _mm512_setzero_ps(); }
    static RELEX_INLINE f set1(float x) { return _mm512_set1_ps(x); }
    static RELEX_INLINE f load(const float* p) { return _mm512_loadu_ps(p); }
    static RELEX_INLINE void store(float* p, f x) { _mm512_storeu_ps(p, x); }
    static RELEX_INLINE f add(f a, f b) { return _mm512_add_ps(a, b); }
    static RELEX_INLINE f sub(f a, f b) { return _mm512_sub_ps(a, b); }
    static RELEX_INLINE f fma(f a, f b, f c) { return _mm512_fmadd_ps(a, b, c); }
    static RELEX_INLINE float sum(f x) { return _mm512_reduce_add_ps(x); }

    static RELEX_INLINE __m512i load_bits(const unsigned char* p) { return _mm512_loadu_si512(p); }

    static RELEX_INLINE Pair load_f32(const unsigned char* p) {
        const __m512i even =
            _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
        const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
        const f a = _mm512_castsi512_ps(load_bits(p));
        const f b = _mm512_castsi512_ps(load_bits(p + 64));
        return {_mm512_permutex2var_ps(a, even, b), _mm512_permutex2var_ps(a, odd, b)};
    }
    static RELEX_INLINE Pair load_f16(const unsigned char* p) {
        const __m512i x = load_bits(p);
        return {_mm512_cvtph_ps(_mm512_cvtepi32_epi16(x)),
                _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(x, 16)))};
    }
    static RELEX_INLINE Pair load_bf16(const unsigned char* p) {
        const __m512i x = load_bits(p);
        return {_mm512_castsi512_ps(_mm512_slli_epi32(x, 16)),
                _mm512_castsi512_ps(_mm512_and_si512(x, _mm512_set1_epi32(-65536)))};
    }

    static RELEX_INLINE void store_f16(unsigned char* p, Pair x) {
        constexpr int mode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        const __m512i even = _mm512_cvtepu16_epi32(_mm512_cvtps_ph(x.even, mode));
        const __m512i odd = _mm512_cvtepu16_epi32(_mm512_cvtps_ph(x.odd, mode));
        _mm512_storeu_si512(p, _mm512_or_si512(even, _mm512_slli_epi32(odd, 16)));
    }
    static RELEX_INLINE void store_bf16(unsigned char* p, Pair x) {
        const __m512i high = _mm512_set1_epi32(-65536);
        const __m512i odd = _mm512_and_si512(round_bf16(x.odd), high);
        _mm512_storeu_si512(p, _mm512_or_si512(_mm512_srli_epi32(round_bf16(x.even), 16), odd));
    }
    // Rounded to the upper half of each lane; the lower half is left over.
    static RELEX_INLINE __m512i round_bf16(f x) {
        const __m512i bits = _mm512_castps_si512(x);
        const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
        const __m512i rounded =
            _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
        const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
        return _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x400000));
    }

    // The vector form of relex::add_odd.
    static RELEX_INLINE f add_odd(f a, f b) {
        const f s = _mm512_add_ps(a, b);
        const f bb = _mm512_sub_ps(s, a);
        const f error = _mm512_add_ps(_mm512_sub_ps(a, _mm512_sub_ps(s, bb)), _mm512_sub_ps(b, bb));
        const __m512i bits = _mm512_castps_si512(s);
        const __mmask16 inexact = _mm512_cmp_ps_mask(error, _mm512_setzero_ps(), _CMP_NEQ_OQ);
        const __mmask16 even = _mm512_testn_epi32_mask(bits, _mm512_set1_epi32(1));
        const __m512i opposite = _mm512_xor_si512(bits, _mm512_castps_si512(error));
        const __m512i step =
            _mm512_or_si512(_mm512_srai_epi32(opposite, 31), _mm512_set1_epi32(1)); // ±1
        const f odd = _mm512_castsi512_ps(
            _mm512_mask_add_epi32(bits, _kand_mask16(inexact, even), bits, step));
        return _mm512_mask_mov_ps(odd, _mm512_cmp_ps_mask(b, _mm512_setzero_ps(), _CMP_EQ_OQ), a);
    }

    // acc[0..W) += w · (x − base[0..W)) in fp64.
    static RELEX_INLINE void add_wide(double* acc, f x, const double* base, double w) {
        const __m512d ww = _mm512_set1_pd(w);
        const __m512d low = _mm512_cvtps_pd(_mm512_castps512_ps256(x));
        const __m512d high = _mm512_cvtps_pd(_mm512_extractf32x8_ps(x, 1));
        const __m512d dl = _mm512_sub_pd(low, _mm512_loadu_pd(base));
        const __m512d dh = _mm512_sub_pd(high, _mm512_loadu_pd(base + 8));
        _mm512_storeu_pd(acc, _mm512_fmadd_pd(dl, ww, _mm512_loadu_pd(acc)));
        _mm512_storeu_pd(acc + 8, _mm512_fmadd_pd(dh, ww, _mm512_loadu_pd(acc + 8)));
    }

    // Sixteen horizontal sums at once, as a butterfly: lane i of the result is the sum of a[i].
    static RELEX_INLINE f sum16(const f* a) {
        f b[8], c[4], d[2];
        for (int i = 0; i < 8; ++i) {
            b[i] = add(_mm512_mask_blend_ps(0xff00, a[i], a[i + 8]),
                       _mm512_shuffle_f32x4(a[i], a[i + 8], 0x4e));
        }
        const __m512i quarters =
            _mm512_setr_epi32(4, 5, 6, 7, 16, 17, 18, 19, 12, 13, 14, 15, 24, 25, 26, 27);
        for (int i = 0; i < 4; ++i) {
            c[i] = add(_mm512_mask_blend_ps(0xf0f0, b[i], b[i + 4]),
                       _mm512_permutex2var_ps(b[i], quarters, b[i + 4]));
        }
        for (int i = 0; i < 2; ++i) {
            d[i] = add(_mm512_mask_blend_ps(0xcccc, c[i], c[i + 2]),
                       _mm512_castpd_ps(_mm512_shuffle_pd(_mm512_castps_pd(c[i]),
                                                          _mm512_castps_pd(c[i + 2]), 0x55)));
        }
        const f swapped = _mm512_permute_ps(_mm512_mask_blend_ps(0x5555, d[0], d[1]), 0xb1);
        return add(_mm512_mask_blend_ps(0xaaaa, d[0], d[1]), swapped);
    }

    // sums[i] = sum of a[i], i < M * M; sums has room for 32.
    static RELEX_INLINE void sum_tile(const f* a, float* sums) {
        f rest[16];
        for (int i = 0; i < 16; ++i) {
            rest[i] = 16 + i < M * M ? a[16 + i] : zero();
        }
        store(sums, sum16(a));
        store(sums + 16, sum16(rest));
    }

    // Into L2, and into L1.
    static RELEX_INLINE void prefetch(const void* p) {
        _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1);
    }
    static RELEX_INLINE void prefetch_near(const void* p) {
        _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0);
    }
};
