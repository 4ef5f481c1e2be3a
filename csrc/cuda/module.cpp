// relex_ext._cuda: Python's view of the CUDA kernels. Compiled a second time, with RELEX_EMULATION,
// as relex_ext._cuda_emulated, whose device is the processor.
#include <climits>

#include <pybind11/stl.h>

#include "../check.hpp"
#include "availability.hpp"
#include "kernels.hpp"

namespace relex {

namespace {

using View = RowsView<cuda::Rows, cuda::kMaxRows>;

// A device address: it cannot be looked behind from here, but a host array passed by mistake, or a
// null pointer, mostly is not what is expected either.
template <class T>
T* require_address(const char* name, std::uint64_t address, std::size_t alignment = sizeof(T)) {
    if (address == 0 || address % alignment != 0) {
        invalid(name, "an address on " + std::to_string(alignment) + " bytes",
                std::to_string(address));
    }
    return reinterpret_cast<T*>(address);
}

const View& require_rows(const View& view, std::size_t columns) {
    for (int t = 0; columns > 0 && t < view.rows().count; ++t) {
        require_address<const unsigned char>("rows",
                                             reinterpret_cast<std::uint64_t>(view.rows().data[t]));
    }
    return view;
}

cuda::Workspace require_workspace(std::uint64_t address, std::uint64_t size, cuda::Needs needs) {
    if (size < needs.least) {
        invalid("workspace_size", "at least " + std::to_string(needs.least) + " bytes",
                std::to_string(size));
    }
    return {size == 0 ? nullptr : require_address<unsigned char>("workspace", address, 16), size};
}

cudaStream_t stream_of(std::uint64_t stream) {
    return reinterpret_cast<cudaStream_t>(stream);
}

int require_row_count(int rows) {
    return require_between("rows", rows, 1, cuda::kMaxRows);
}
int require_vectors(int k) {
    return require_between("k", k, 1, cuda::kMaxVectors);
}
int require_targets(int targets) {
    return require_between("targets", targets, 0, INT_MAX);
}

using Pair = std::pair<std::size_t, std::size_t>;

Pair pair(cuda::Needs needs) {
    return {needs.least, needs.most};
}

Pair gram_needs(int rows, std::size_t columns) {
    return pair(cuda::gram_needs(require_row_count(rows), columns));
}

Pair power_step_needs(int rows, std::size_t columns, int k) {
    return pair(cuda::power_step_needs(require_row_count(rows), columns, require_vectors(k)));
}

Pair combine_needs(int rows, int targets) {
    return pair(cuda::combine_needs(require_row_count(rows), require_targets(targets)));
}

// The GIL is released because a launch may wait: for room in the queue, or for the driver to load
// the kernels.

void gram(const Array<std::uint64_t>& addresses, const Array<std::uint8_t>& dtypes,
          std::uint64_t base, int base_dtype, std::size_t columns, std::uint64_t out,
          std::uint64_t workspace, std::uint64_t workspace_size, std::uint64_t stream) {
    const View view(addresses, dtypes, base, base_dtype);
    const cuda::Rows& rows = require_rows(view, columns).rows();
    auto* const g = require_address<double>("gram", out);
    const auto space =
        require_workspace(workspace, workspace_size, cuda::gram_needs(rows.count, columns));
    if (columns > 0) {
        const py::gil_scoped_release release;
        cuda::gram(rows, columns, g, space, stream_of(stream));
    }
}

void power_step(const Array<std::uint64_t>& addresses, const Array<std::uint8_t>& dtypes,
                std::uint64_t base, int base_dtype, std::size_t columns, std::uint64_t u, int k,
                std::uint64_t y, std::uint64_t energy, std::uint64_t workspace,
                std::uint64_t workspace_size, std::uint64_t stream) {
    const View view(addresses, dtypes, base, base_dtype);
    const cuda::Rows& rows = require_rows(view, columns).rows();
    require_vectors(k);
    const auto* const vectors = require_address<const float>("u", u);
    auto* const sums = require_address<double>("y", y);
    auto* const squares = energy == 0 ? nullptr : require_address<double>("energy", energy);
    const auto space = require_workspace(workspace, workspace_size,
                                         cuda::power_step_needs(rows.count, columns, k));
    if (columns > 0) {
        const py::gil_scoped_release release;
        cuda::power_step(rows, columns, vectors, k, sums, squares, space, stream_of(stream));
    }
}

void combine(const Array<std::uint64_t>& addresses, const Array<std::uint8_t>& dtypes,
             std::uint64_t base, int base_dtype, std::size_t columns, std::uint64_t weights,
             int targets, const Array<std::uint64_t>& out, int out_dtype, std::uint64_t workspace,
             std::uint64_t workspace_size, std::uint64_t stream) {
    const View view(addresses, dtypes, base, base_dtype);
    const cuda::Rows& rows = require_rows(view, columns).rows();
    require_targets(targets);
    require_shape("out", out, {targets});
    const DType to_dtype = require_dtype("out_dtype", out_dtype);
    const bool any = targets > 0 && columns > 0;
    std::vector<unsigned char*> to;
    for (py::ssize_t i = 0; any && i < targets; ++i) {
        to.push_back(require_address<unsigned char>("out", out.at(i)));
    }
    const auto* const w = any ? require_address<const double>("weights", weights) : nullptr;
    const auto space =
        require_workspace(workspace, workspace_size, cuda::combine_needs(rows.count, targets));
    if (any) {
        const py::gil_scoped_release release;
        cuda::combine(rows, columns, w, targets, to.data(), to_dtype, space, stream_of(stream));
    }
}

} // namespace

static void bind_cuda(py::module_& m) {
    using py::arg;
    m.attr("PART") = cuda::kPart;
    m.attr("MAX_ROWS") = cuda::kMaxRows;
    m.attr("MAX_VECTORS") = cuda::kMaxVectors;
    m.attr("ARCHITECTURES") = RELEX_ARCHITECTURES;
    m.def("unavailable", &cuda::unavailable, arg("device"));
    m.def("gram_needs", &gram_needs, arg("rows"), arg("columns"));
    m.def("gram", &gram, arg("rows").noconvert(), arg("dtypes").noconvert(), arg("base"),
          arg("base_dtype"), arg("columns"), arg("gram"), arg("workspace"), arg("workspace_size"),
          arg("stream"));
    m.def("power_step_needs", &power_step_needs, arg("rows"), arg("columns"), arg("k"));
    m.def("power_step", &power_step, arg("rows").noconvert(), arg("dtypes").noconvert(),
          arg("base"), arg("base_dtype"), arg("columns"), arg("u"), arg("k"), arg("y"),
          arg("energy"), arg("workspace"), arg("workspace_size"), arg("stream"));
    m.def("combine_needs", &combine_needs, arg("rows"), arg("targets"));
    m.def("combine", &combine, arg("rows").noconvert(), arg("dtypes").noconvert(), arg("base"),
          arg("base_dtype"), arg("columns"), arg("weights"), arg("targets"), arg("out").noconvert(),
          arg("out_dtype"), arg("workspace"), arg("workspace_size"), arg("stream"));
}

#ifdef RELEX_EMULATION
void bind_selftest(py::module_ m); // tests/cuda/selftest.cpp
#endif

} // namespace relex

#ifdef RELEX_EMULATION
PYBIND11_MODULE(_cuda_emulated, m) {
    m.doc() = "The CUDA kernels of relex_ext, compiled for the processor, for tests.";
    m.attr("EMULATED") = true;
    relex::bind_cuda(m);
    relex::bind_selftest(m.def_submodule("selftest"));
}
#else
PYBIND11_MODULE(_cuda, m) {
    m.doc() = "The CUDA kernels of relex_ext.";
    m.attr("EMULATED") = false;
    relex::bind_cuda(m);
}
#endif
