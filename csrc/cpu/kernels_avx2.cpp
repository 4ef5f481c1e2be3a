// The kernels for AVX2, FMA and F16C. Compiled with that instruction set and no other file is.
#include "kernels.hpp"

#include <immintrin.h>
namespace relex::cpu {
namespace avx2 {
#include "simd_avx2.hpp"

#include "kernels_impl.hpp"
} // namespace avx2

const Kernels kAvx2 = {
    "avx2",
    avx2::gram,
    avx2::power_step,
    avx2::combine,
    avx2::gram_scratch,
    avx2::power_scratch,
    avx2::combine_scratch,
};

} // namespace relex::cpu
