// The kernels for AVX-512 F, BW, DQ and VL. Compiled with that instruction set and no other file
// is.
#include "kernels.hpp"

#include <immintrin.h>
namespace relex::cpu {
namespace avx512 {
#include "simd_avx512.hpp"

#include "kernels_impl.hpp"
} // namespace avx512

const Kernels kAvx512 = {
    "avx512",
    avx512::gram,
    avx512::power_step,
    avx512::combine,
    avx512::gram_scratch,
    avx512::power_scratch,
    avx512::combine_scratch,
};

} // namespace relex::cpu
