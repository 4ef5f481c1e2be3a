// relex_ext._core_replay: one input of the fuzz target at a time, for the tests.
#include <string_view>

#include <pybind11/pybind11.h>

#include "target.hpp"

PYBIND11_MODULE(_core_replay, m) {
    m.doc() = "The fuzz target of relex_ext._core, without a fuzzer.";
    m.def("replay", [](const pybind11::bytes& data) {
        const auto view = static_cast<std::string_view>(data);
        LLVMFuzzerTestOneInput(reinterpret_cast<const std::uint8_t*>(view.data()), view.size());
    });
}
