// The kernels for any processor. Compiled with that instruction set and no other file is.
#include "kernels.hpp"

namespace relex::cpu {
namespace scalar {
#include "simd_scalar.hpp"

#include "kernels_impl.hpp"
} // namespace scalar

const Kernels kScalar = {
    "scalar",
    scalar::gram,
    scalar::power_step,
    scalar::combine,
    scalar::gram_scratch,
    scalar::power_scratch,
    scalar::combine_scratch,
};

} // namespace relex::cpu
