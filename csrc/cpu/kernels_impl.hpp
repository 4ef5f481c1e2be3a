// The three kernels, written once over the Simd of the instruction set that includes this file.
// Include after it, inside the same namespace. No std:: templates here: see RELEX_INLINE.

#include "impl_columns.hpp"

#include "impl_gram.hpp"

#include "impl_power_step.hpp"

#include "impl_combine.hpp"
