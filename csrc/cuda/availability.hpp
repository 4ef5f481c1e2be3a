// Whether the kernels can run here.
#pragma once

#include <optional>
#include <string>

namespace relex::cuda {

// Why they cannot run on that device, in one sentence, or nothing. Starts no work and creates no
// context on any device.
std::optional<std::string> unavailable(int device);

} // namespace relex::cuda
