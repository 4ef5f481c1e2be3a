// Python objects → checked views. Every binding validates with these before it releases the GIL.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include "dtype.hpp"

namespace relex {

namespace py = pybind11;

// c_style without forcecast: a wrong dtype or layout is an error, never a silent copy.
template <class T> using Array = py::array_t<T, py::array::c_style>;

[[noreturn]] inline void invalid(const std::string& what, const std::string& expected,
                                 const std::string& found) {
    throw py::value_error(what + ": expected " + expected + ", found " + found);
}

template <class T>
void require_shape(const char* name, const Array<T>& array, const std::vector<py::ssize_t>& shape) {
    const auto text = [](const py::ssize_t* sizes, std::size_t n) {
        std::string s = "(";
        for (std::size_t i = 0; i < n; ++i) {
            s += (i > 0 ? ", " : "") + std::to_string(sizes[i]);
        }
        return s + ")";
    };
    const auto rank = static_cast<std::size_t>(array.ndim());
    bool same = rank == shape.size();
    for (std::size_t i = 0; same && i < rank; ++i) {
        same = array.shape()[i] == shape[i];
    }
    if (!same) {
        invalid(name, "shape " + text(shape.data(), shape.size()), text(array.shape(), rank));
    }
}

inline int require_between(const char* name, int value, int least, int most) {
    if (value < least || value > most) {
        invalid(name, std::to_string(least) + " to " + std::to_string(most), std::to_string(value));
    }
    return value;
}

inline DType require_dtype(const char* name, int code) {
    return static_cast<DType>(require_between(name, code, 0, kDTypeCount - 1));
}

// The rows of one tensor as Python passes them: addresses and dtype codes. `Rows` is a backend's
// struct of them, kMost how many it takes.
template <class Rows, int kMost> class RowsView {
  public:
    RowsView(const Array<std::uint64_t>& addresses, const Array<std::uint8_t>& dtypes,
             std::uint64_t base, int base_dtype) {
        if (addresses.ndim() != 1) {
            invalid("rows", "a vector of addresses", std::to_string(addresses.ndim()) + " axes");
        }
        const py::ssize_t count = addresses.shape(0);
        require_shape("dtypes", dtypes, {count});
        require_between("rows", static_cast<int>(count), 1, kMost);
        for (py::ssize_t i = 0; i < count; ++i) {
            data_.push_back(reinterpret_cast<const unsigned char*>(addresses.at(i)));
            dtypes_.push_back(require_dtype("dtypes", dtypes.at(i)));
        }
        rows_ = {data_.data(), dtypes_.data(), static_cast<int>(count),
                 reinterpret_cast<const unsigned char*>(base),
                 require_dtype("base_dtype", base_dtype)};
    }
    RowsView(const RowsView&) = delete;
    RowsView& operator=(const RowsView&) = delete;

    const Rows& rows() const { return rows_; }
    py::ssize_t count() const { return rows_.count; }

  private:
    std::vector<const unsigned char*> data_;
    std::vector<DType> dtypes_;
    Rows rows_{};
};

} // namespace relex
