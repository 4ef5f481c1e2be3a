// The kernels for AVX-512 with BF16: those of AVX-512, and a Gram whose products are vdpbf16ps.
// Compiled with that instruction set and no other file is.
#include "kernels.hpp"

#include <immintrin.h>

namespace relex::cpu {
namespace avx512bf16 {
#include "simd_avx512.hpp"

#include "kernels_impl.hpp"

// The difference of two bf16 numbers within a factor of two of each other is a bf16 number
// (Sterbenz), which nearly every delta of an RLVR run is; but among thousands of columns some
// weight close to zero always leaves that range. So the test is by column: where every delta of a
// pair of columns is exactly bf16 they are multiplied as bf16, and the few others go through a side
// panel of floats. Both have exact inputs; nothing is approximated.

constexpr std::size_t kPairBlock = 1024; // pairs of columns per block
constexpr std::size_t kPairStride = kPairBlock + 16;
constexpr std::size_t kSideColumns = 512;
static_assert(kSideColumns <= kGramBlock, "the side panel reuses the float panel");

struct Bf16Scratch {
    GramScratch wide;
    float* base;            // 2 · kPairBlock columns
    std::uint32_t* inexact; // per pair: the low mantissa bits that any delta has
    std::uint32_t* panel;   // tile_rows · M × kPairStride pairs of bf16

    Bf16Scratch(void* memory, int rows) : wide(memory, rows) {
        auto* p = static_cast<unsigned char*>(memory) + gram_scratch(rows);
        base = reinterpret_cast<float*>(p);
        inexact = reinterpret_cast<std::uint32_t*>(base + 2 * kPairBlock);
        panel = inexact + kPairBlock;
    }
};

static std::size_t bf16_scratch(int rows) {
    return gram_scratch(rows) +
           (static_cast<std::size_t>(tile_rows(rows) * Simd::M) + 3) * kPairStride * 4;
}

// R rows from t on, packed as bf16; what their low mantissa bits hold is remembered by pair.
template <int R> static RELEX_INLINE void pack_rows(const Rows& rows, int t, std::size_t c,
                                                    std::size_t columns, const Bf16Scratch& s) {
    const __m512i high = _mm512_set1_epi32(-65536);
    const unsigned char* p[R];
    for (int r = 0; r < R; ++r) {
        p[r] = rows.data[t + r] + 2 * c;
    }
    std::uint32_t* out = s.panel + static_cast<std::size_t>(t) * kPairStride;
    for_groups<DType::bf16>(columns, [&](std::size_t i, auto load) {
        const Pair b = load_pair(s.base + i);
        __m512i seen = _mm512_loadu_si512(s.inexact + i / 2);
        for (int r = 0; r < R; ++r) {
            Simd::prefetch_near(p[r] + 2 * i + kPrefetchBytes);
            const Pair d = sub(load(p[r]), b);
            const __m512i even = _mm512_castps_si512(d.even);
            const __m512i odd = _mm512_castps_si512(d.odd);
            seen = _mm512_ternarylogic_epi32(seen, even, odd, 0xfe); // or
            const __m512i packed =                                   // (odd & high) | (even >> 16)
                _mm512_ternarylogic_epi32(odd, high, _mm512_srli_epi32(even, 16), 0xea);
            _mm512_storeu_si512(out + static_cast<std::size_t>(r) * kPairStride + i / 2, packed);
        }
        _mm512_storeu_si512(s.inexact + i / 2, seen);
    });
}

static RELEX_INLINE void dot_pairs(const std::uint32_t* a, const std::uint32_t* b, std::size_t from,
                                   std::size_t to, __m512* acc, Prefetcher& ahead) {
    constexpr int M = Simd::M;
    const unsigned char* run = ahead.next();
    const std::size_t pace = run == nullptr ? 0 : Prefetcher::kRun / (kPairBlock / 2);
    run = run == nullptr ? ahead.idle() : run;
    for (std::size_t k = from; k < to; k += 16) {
        Simd::prefetch(run + (k - from) * pace);
        __m512bh y[M];
        for (int j = 0; j < M; ++j) {
            y[j] = (__m512bh)_mm512_loadu_si512(b + static_cast<std::size_t>(j) * kPairStride + k);
        }
        for (int i = 0; i < M; ++i) {
            const auto x =
                (__m512bh)_mm512_loadu_si512(a + static_cast<std::size_t>(i) * kPairStride + k);
            for (int j = 0; j < M; ++j) {
                acc[i * M + j] = _mm512_dpbf16_ps(acc[i * M + j], x, y[j]);
            }
        }
    }
}

static void multiply_side(const Rows& rows, const GramScratch& s, std::size_t& filled) {
    const std::size_t padded = (filled + Simd::W - 1) / Simd::W * Simd::W;
    for (int t = 0; t < rows.count; ++t) {
        float* row = s.panel + static_cast<std::size_t>(t) * kGramStride;
        for (std::size_t i = filled; i < padded; ++i) {
            row[i] = 0.0f;
        }
    }
    Prefetcher none(rows, 0, 0);
    accumulate_tiles(s.panel, padded, rows.count, s.tiles, none);
    filled = 0;
}

// Moves pair q of the block out of the bf16 panel into the float panel's next two columns.
static void move_pair(const Rows& rows, std::size_t c, std::size_t q, std::size_t columns,
                      const Bf16Scratch& s, std::size_t filled) {
    const float* base = s.base + q / Simd::W * kGroup + q % Simd::W;
    for (int t = 0; t < rows.count; ++t) {
        const auto row = static_cast<std::size_t>(t);
        const unsigned char* p = rows.data[t] + 2 * (c + 2 * q);
        float* side = s.wide.panel + row * kGramStride + filled;
        side[0] = load_scalar(p, DType::bf16, 0) - base[0];
        side[1] = 2 * q + 1 < columns ? load_scalar(p, DType::bf16, 1) - base[Simd::W] : 0.0f;
        s.panel[row * kPairStride + q] = 0;
    }
}

static void gram_bf16(const Rows& rows, Range range, double* gram_out, void* memory,
                      const Stop& stop) {
    bool all_bf16 = rows.base == nullptr || rows.base_dtype == DType::bf16;
    for (int t = 0; t < rows.count; ++t) {
        all_bf16 = all_bf16 && rows.dtype[t] == DType::bf16;
    }
    if (!all_bf16) {
        gram(rows, range, gram_out, memory, stop);
        return;
    }
    constexpr int M = Simd::M;
    const Bf16Scratch s(memory, rows.count);
    clear_gram_scratch(s.wide, rows.count);
    const int n_tiles = tile_rows(rows.count);
    const auto count = static_cast<std::size_t>(rows.count);
    std::memset(s.panel + count * kPairStride, 0,
                (static_cast<std::size_t>(n_tiles * M) - count) * kPairStride * 4);
    std::size_t filled = 0;
    for (std::size_t c = range.begin; c < range.end; c += 2 * kPairBlock) {
        if (stop.load(std::memory_order_relaxed)) {
            return;
        }
        const std::size_t columns = least(2 * kPairBlock, range.end - c);
        const std::size_t pairs = whole_groups(columns) / 2;
        expand_base(rows, c, columns, s.base);
        std::memset(s.inexact, 0, pairs * 4);
        for_rows(rows, [&](int t, auto together, auto) {
            pack_rows<decltype(together)::value>(rows, t, c, columns, s);
        });
        Prefetcher ahead(rows, c + columns, least(c + columns + 2 * kPairBlock, range.end));
        std::size_t moved = 0;
        for (std::size_t q = 0; q < pairs; ++q) {
            moved += (s.inexact[q] & 0xffffu) != 0;
        }
        if (moved > pairs / 4) { // moving would cost more than the float path for all of them
            for (std::size_t i = 0; i < columns; i += kGramBlock) {
                if (filled > 0) {
                    multiply_side(rows, s.wide, filled);
                }
                gram_block(rows, c + i, least(kGramBlock, columns - i), s.wide, ahead);
            }
            continue;
        }
        for (std::size_t q = 0; moved > 0 && q < pairs; ++q) {
            if ((s.inexact[q] & 0xffffu) != 0) {
                if (filled == kSideColumns) {
                    multiply_side(rows, s.wide, filled);
                }
                move_pair(rows, c, q, columns, s, filled);
                filled += 2;
            }
        }
        double* tiles = s.wide.tiles;
        const std::size_t half = least(pairs, kPairBlock / 2);
        ahead.spread(2 * tile_count(rows.count), s.panel);
        for (int i = 0; i < n_tiles; ++i) {
            const std::uint32_t* a = s.panel + static_cast<std::size_t>(i * M) * kPairStride;
            for (int j = 0; j <= i; ++j, tiles += M * M) {
                const std::uint32_t* b = s.panel + static_cast<std::size_t>(j * M) * kPairStride;
                __m512 acc[M * M];
                for (int q = 0; q < M * M; ++q) {
                    acc[q] = Simd::zero();
                }
                dot_pairs(a, b, 0, half, acc, ahead);
                dot_pairs(a, b, half, pairs, acc, ahead);
                add_tile(acc, tiles);
            }
        }
    }
    if (filled > 0) {
        multiply_side(rows, s.wide, filled);
    }
    scatter_tiles(s.wide.tiles, rows.count, gram_out);
}

} // namespace avx512bf16

const Kernels kAvx512Bf16 = {
    "avx512bf16",
    avx512bf16::gram_bf16,
    avx512bf16::power_step,
    avx512bf16::combine,
    avx512bf16::bf16_scratch,
    avx512bf16::power_scratch,
    avx512bf16::combine_scratch,
};

} // namespace relex::cpu
