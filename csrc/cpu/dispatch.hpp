// Which kernels this processor runs, and running them over a whole tensor in threads.
#pragma once

#include <string>
#include <vector>

#include "kernels.hpp"

namespace relex::cpu {

// The sets of kernels this processor can run, the preferred one first.
const std::vector<const Kernels*>& supported();

// The set of that name, or the preferred one for "auto". Throws std::invalid_argument, listing what
// can be had.
const Kernels& select(const std::string& name);

// Called about ten times a second on the calling thread while others work; true asks them to stop.
using Poll = bool (*)();

// Each runs over columns [0, columns) in up to `threads` threads and returns false when stopped.
// Segments are added in their order: the result is the same for any number of threads.
bool gram(const Kernels&, const Rows&, std::size_t columns, double* gram, int threads, Poll);
bool power_step(const Kernels&, const Rows&, std::size_t columns, const float* u, int k, double* y,
                double* energy, int threads, Poll);
bool combine(const Kernels&, const Rows&, std::size_t columns, const double* weights, int targets,
             unsigned char* const* out, DType out_dtype, int threads, Poll);

} // namespace relex::cpu
