// What else the emulated module offers to tests, beside tests/cuda/selftest.cpp.
#pragma once

namespace relex::cuda {

// Checks tiles.hpp for every T up to that one; returns how much was checked. tests/cuda/tiles.cpp
long check_tiles(int most_rows);

} // namespace relex::cuda
