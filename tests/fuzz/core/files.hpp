// One file, mapped or not, that may be cut short at any moment, and what its strips are reported
// as.
#pragma once

#include "input.hpp"

namespace fuzz {

void check_file(Input& input);

} // namespace fuzz
