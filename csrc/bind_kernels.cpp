// Python's view of the kernels: addresses in, arrays updated in place.
#include "bind.hpp"
#include "check.hpp"
#include "cpu/dispatch.hpp"

namespace relex {

namespace {

using View = RowsView<cpu::Rows, cpu::kMaxRows>;

// Runs Python's signal handlers. True: one raised (Ctrl-C), and the error is set.
bool interrupted() {
    const py::gil_scoped_acquire gil;
    return PyErr_CheckSignals() != 0;
}

template <class Call> void without_gil(Call call) {
    bool finished = false;
    {
        // Safe: `call` touches only memory that the caller's frame keeps alive, and no Python API.
        const py::gil_scoped_release release;
        finished = call();
    }
    if (!finished) {
        throw py::error_already_set();
    }
}

void gram(const Array<std::uint64_t>& addresses, const Array<std::uint8_t>& dtypes,
          std::uint64_t base, int base_dtype, std::uint64_t columns, Array<double> out, int threads,
          const std::string& isa) {
    const View view(addresses, dtypes, base, base_dtype);
    require_shape("gram", out, {view.count(), view.count()});
    require_between("threads", threads, 1, 1024);
    const cpu::Kernels& kernels = cpu::select(isa);
    double* g = out.mutable_data();
    without_gil([&] { return cpu::gram(kernels, view.rows(), columns, g, threads, interrupted); });
}

void power_step(const Array<std::uint64_t>& addresses, const Array<std::uint8_t>& dtypes,
                std::uint64_t base, int base_dtype, std::uint64_t columns, const Array<float>& u,
                Array<double> y, std::optional<Array<double>> energy, int threads,
                const std::string& isa) {
    const View view(addresses, dtypes, base, base_dtype);
    if (u.ndim() != 2) {
        invalid("u", "shape (T, k)", std::to_string(u.ndim()) + " axes");
    }
    const auto k = require_between("k", static_cast<int>(u.shape(1)), 1, cpu::kMaxVectors);
    require_shape("u", u, {view.count(), k});
    require_shape("y", y, {view.count(), k});
    if (energy) {
        require_shape("energy", *energy, {view.count()});
    }
    require_between("threads", threads, 1, 1024);
    const cpu::Kernels& kernels = cpu::select(isa);
    const float* vectors = u.data();
    double* sums = y.mutable_data();
    double* squares = energy ? energy->mutable_data() : nullptr;
    without_gil([&] {
        return cpu::power_step(kernels, view.rows(), columns, vectors, k, sums, squares, threads,
                               interrupted);
    });
}

void combine(const Array<std::uint64_t>& addresses, const Array<std::uint8_t>& dtypes,
             std::uint64_t base, int base_dtype, std::uint64_t columns,
             const Array<double>& weights, const Array<std::uint64_t>& out, int out_dtype,
             int threads, const std::string& isa) {
    const View view(addresses, dtypes, base, base_dtype);
    if (weights.ndim() != 2) {
        invalid("weights", "shape (targets, T)", std::to_string(weights.ndim()) + " axes");
    }
    const auto targets = static_cast<int>(weights.shape(0));
    require_shape("weights", weights, {targets, view.count()});
    require_shape("out", out, {targets});
    require_between("threads", threads, 1, 1024);
    const DType to_dtype = require_dtype("out_dtype", out_dtype);
    const cpu::Kernels& kernels = cpu::select(isa);
    std::vector<unsigned char*> to;
    for (py::ssize_t i = 0; i < out.shape(0); ++i) {
        to.push_back(reinterpret_cast<unsigned char*>(out.at(i)));
    }
    const double* w = weights.data();
    without_gil([&] {
        return cpu::combine(kernels, view.rows(), columns, w, targets, to.data(), to_dtype, threads,
                            interrupted);
    });
}

std::vector<std::string> isas() {
    std::vector<std::string> names;
    for (const cpu::Kernels* kernels : cpu::supported()) {
        names.emplace_back(kernels->name);
    }
    return names;
}

} // namespace

void bind_kernels(py::module_& m) {
    using py::arg;
    m.attr("SEGMENT") = cpu::kSegment;
    m.attr("MAX_ROWS") = cpu::kMaxRows;
    m.attr("MAX_VECTORS") = cpu::kMaxVectors;
    m.def("isas", &isas);
    m.def("gram", &gram, arg("rows").noconvert(), arg("dtypes").noconvert(), arg("base"),
          arg("base_dtype"), arg("columns"), arg("gram").noconvert(), arg("threads"), arg("isa"));
    m.def("power_step", &power_step, arg("rows").noconvert(), arg("dtypes").noconvert(),
          arg("base"), arg("base_dtype"), arg("columns"), arg("u").noconvert(),
          arg("y").noconvert(), arg("energy").noconvert(), arg("threads"), arg("isa"));
    m.def("combine", &combine, arg("rows").noconvert(), arg("dtypes").noconvert(), arg("base"),
          arg("base_dtype"), arg("columns"), arg("weights").noconvert(), arg("out").noconvert(),
          arg("out_dtype"), arg("threads"), arg("isa"));
}

} // namespace relex
