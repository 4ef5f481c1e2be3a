// relex_ext._core: a table of contents.
#include <system_error>

#include "bind.hpp"

PYBIND11_MODULE(_core, m) {
    m.doc() = "The compiled core of relex_ext: CPU kernels and file strips.";
    // std::system_error, thrown by the file functions, is Python's OSError with its errno.
    pybind11::register_exception_translator([](std::exception_ptr error) {
        try {
            if (error) {
                std::rethrow_exception(error);
            }
        } catch (const std::system_error& e) {
            const pybind11::object arguments =
                pybind11::make_tuple(e.code().value(), e.code().message());
            PyErr_SetObject(PyExc_OSError, arguments.ptr());
        }
    });
    relex::bind_kernels(m);
    relex::bind_io(m);
}
