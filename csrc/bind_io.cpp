// Python's view of the files: strips as vectors of addresses, offsets and lengths.
#include "bind.hpp"
#include "check.hpp"
#include "io.hpp"

namespace relex {

namespace {

struct StopToken {
    StopFlag flag{false};
};

using Vector = Array<std::uint64_t>;

std::vector<Strip> mapped_strips(const Vector& addresses, const Vector& lengths) {
    require_shape("lengths", lengths, {addresses.size()});
    std::vector<Strip> strips;
    for (py::ssize_t i = 0; i < addresses.size(); ++i) {
        strips.push_back({-1, 0, addresses.at(i), lengths.at(i)});
    }
    return strips;
}

// (index, errno) of the strip that failed, index -1 when none did.
std::pair<std::ptrdiff_t, int> outcome(StripError error) {
    return {error.index, error.code};
}

} // namespace

void bind_io(py::module_& m) {
    using py::arg;
    py::class_<StopToken>(m, "StopToken")
        .def(py::init<>())
        .def("set", [](StopToken& token) { token.flag.store(true); })
        .def("is_set", [](const StopToken& token) { return token.flag.load(); });

    py::class_<File>(m, "File")
        .def(py::init<const std::string&, bool>(), arg("path"), arg("map"))
        .def_property_readonly("size", &File::size)
        .def_property_readonly("address", &File::address)
        .def_property_readonly("descriptor", &File::descriptor);

    m.def(
        "announce",
        [](const Vector& addresses, const Vector& lengths) {
            const auto strips = mapped_strips(addresses, lengths);
            const py::gil_scoped_release release;
            announce(strips.data(), strips.size());
        },
        arg("addresses").noconvert(), arg("lengths").noconvert());
    m.def(
        "populate",
        [](const Vector& addresses, const Vector& lengths, const StopToken& stop) {
            const auto strips = mapped_strips(addresses, lengths);
            const py::gil_scoped_release release;
            return outcome(populate(strips.data(), strips.size(), stop.flag));
        },
        arg("addresses").noconvert(), arg("lengths").noconvert(), arg("stop"));
    m.def(
        "release",
        [](const Vector& addresses, const Vector& lengths) {
            const auto strips = mapped_strips(addresses, lengths);
            const py::gil_scoped_release release;
            release_strips(strips.data(), strips.size());
        },
        arg("addresses").noconvert(), arg("lengths").noconvert());
    m.def("start_writeback", &start_writeback, arg("descriptor"), arg("offset"), arg("bytes"),
          py::call_guard<py::gil_scoped_release>());
    m.def(
        "read",
        [](const Array<std::int32_t>& descriptors, const Vector& offsets, const Vector& addresses,
           const Vector& lengths, const StopToken& stop) {
            auto strips = mapped_strips(addresses, lengths);
            require_shape("descriptors", descriptors, {addresses.size()});
            require_shape("offsets", offsets, {addresses.size()});
            for (std::size_t i = 0; i < strips.size(); ++i) {
                strips[i].descriptor = descriptors.at(static_cast<py::ssize_t>(i));
                strips[i].offset = offsets.at(static_cast<py::ssize_t>(i));
            }
            const py::gil_scoped_release release;
            return outcome(read(strips.data(), strips.size(), stop.flag));
        },
        arg("descriptors").noconvert(), arg("offsets").noconvert(), arg("addresses").noconvert(),
        arg("lengths").noconvert(), arg("stop"));
}

} // namespace relex
