// Python's view of the files: strips as vectors of addresses, offsets and lengths.
#include <cerrno>
#include <memory>
#include <system_error>

#include "bind.hpp"
#include "check.hpp"
#include "io.hpp"
#include "writing.hpp"

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

// A str, bytes or os.PathLike as the kernel wants it, whatever bytes are in it.
std::string path_of(const py::object& path) {
    PyObject* bytes = nullptr;
    if (PyUnicode_FSConverter(path.ptr(), &bytes) == 0) {
        throw py::error_already_set();
    }
    return py::reinterpret_steal<py::bytes>(bytes);
}

// OSError about these paths, as os raises it.
[[noreturn]] void raise(const std::system_error& error, const py::object& path,
                        const py::object& other = {}) {
    errno = error.code().value();
    PyErr_SetFromErrnoWithFilenameObjects(PyExc_OSError, path.ptr(), other.ptr());
    throw py::error_already_set();
}

std::unique_ptr<File> open_file(const py::object& path, bool map) {
    const std::string name = path_of(path);
    try {
        const py::gil_scoped_release release;
        return std::make_unique<File>(name, map);
    } catch (const std::system_error& error) {
        raise(error, path);
    }
}

void exchange_paths(const py::object& a, const py::object& b) {
    const std::string from = path_of(a);
    const std::string to = path_of(b);
    try {
        const py::gil_scoped_release release;
        exchange(from, to);
    } catch (const std::system_error& error) {
        raise(error, a, b);
    }
}

void reserve_space(int descriptor, std::uint64_t size) {
    const auto reserved = [&] {
        const py::gil_scoped_release release;
        return reserve(descriptor, size);
    };
    while (!reserved()) {
        if (PyErr_CheckSignals() != 0) {
            throw py::error_already_set();
        }
    }
}

} // namespace

void bind_io(py::module_& m) {
    using py::arg;
    py::class_<StopToken>(m, "StopToken")
        .def(py::init<>())
        .def("set", [](StopToken& token) { token.flag.store(true); })
        .def("is_set", [](const StopToken& token) { return token.flag.load(); });

    py::class_<File>(m, "File")
        .def(py::init(&open_file), arg("path"), arg("map"))
        .def_property_readonly("size", &File::size)
        .def_property_readonly("address", &File::address)
        .def_property_readonly("descriptor", &File::descriptor)
        .def_property_readonly("damaged", &File::damaged);
    m.def("damages", &Guard::damages);

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

    m.def("reserve", &reserve_space, arg("descriptor"), arg("size"));
    m.def("start_writeback", &start_writeback, arg("descriptor"), arg("offset"), arg("bytes"),
          py::call_guard<py::gil_scoped_release>());
    m.def("finish_writeback", &finish_writeback, arg("descriptor"), arg("offset"), arg("bytes"),
          py::call_guard<py::gil_scoped_release>());
    m.def("exchange", &exchange_paths, arg("a"), arg("b"));
}

} // namespace relex
