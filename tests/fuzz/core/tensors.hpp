// Tensors of every kind a checkpoint may hold, in places of their own, and their values.
#pragma once

#include <vector>

#include "cpu/kernels.hpp"
#include "input.hpp"
#include "places.hpp"

namespace fuzz {

using relex::DType;

// Rows over a base. Those beyond kPlaces lie where earlier ones do.
struct Tensor {
    std::vector<const unsigned char*> data;
    std::vector<DType> dtypes;
    const unsigned char* base = nullptr;
    DType base_dtype = DType::f32;
    std::size_t columns = 0;

    relex::cpu::Rows rows() const {
        return {data.data(), dtypes.data(), static_cast<int>(data.size()), base, base_dtype};
    }
    std::vector<double> base_values() const;
    std::vector<double> deltas(std::size_t row) const; // row − base, in double
};

DType any_dtype(Input& input);

// most: rows.
Tensor any_tensor(Input& input, Places& places, std::size_t most);

} // namespace fuzz
