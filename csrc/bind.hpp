#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

namespace relex {

void bind_kernels(pybind11::module_& m);
void bind_io(pybind11::module_& m);

} // namespace relex
