// One call of a kernel on any tensor, and what has to hold of its result. Bounds are those of the
// arithmetic (docs/design.md): u = 2⁻²⁴ per rounding in fp32, counted in the worst order.
#pragma once

#include "input.hpp"
#include "places.hpp"
#include "tensors.hpp"

namespace fuzz {

void check_gram(Input& input, Places& places);
void check_power_step(Input& input, Places& places);
void check_combine(Input& input, Places& places);

} // namespace fuzz
