#include "tensors.hpp"

#include <algorithm>

namespace fuzz {

namespace {

enum class Kind { trained, frozen, moderate, tiny, huge, bits };
constexpr Kind kKinds[] = {Kind::trained, Kind::trained, Kind::frozen, Kind::moderate,
                           Kind::tiny,    Kind::huge,    Kind::bits};

// Around groups of columns (8 to 32), and around blocks (256 to 2048) and segments.
constexpr std::size_t kFew[] = {0,  1,  2,  7,  8,  9,  15,  16,  17,  31,
                                32, 33, 63, 64, 65, 99, 127, 128, 129, 160};
constexpr std::size_t kMany[] = {255,  256,  257,  511,  513,   1023,  1024,  1025, 2047,
                                 2048, 2049, 4097, 8191, 16383, 16384, 16385, 32769};

// rows × columns: so many inputs a second matter more than large ones.
constexpr std::size_t kCells = 2000, kManyCells = 40000;

void store(unsigned char* to, DType dtype, std::size_t index, float value) {
    switch (dtype) {
    case DType::f32:
        relex::store_raw(to + 4 * index, value);
        return;
    case DType::f16:
        relex::store_raw(to + 2 * index, relex::float_to_f16(value));
        return;
    case DType::bf16:
        relex::store_raw(to + 2 * index, relex::float_to_bf16(value));
        return;
    }
}

float value_of(Kind kind, float start, Random& random) {
    switch (kind) {
    case Kind::trained:
        return start + static_cast<float>(random.unit() * 0x1p-12);
    case Kind::frozen:
        return start;
    case Kind::moderate:
        return static_cast<float>(random.unit() * 4.0);
    case Kind::tiny:
        return static_cast<float>(random.unit() * 0x1p-120);
    case Kind::huge:
        return static_cast<float>(random.unit() * 0x1.fp127);
    case Kind::bits:
        break;
    }
    return relex::bits_to_float(static_cast<std::uint32_t>(random.next() >> 16));
}

unsigned char* fill(Input& input, Places& places, DType dtype, Kind kind, const Tensor& over) {
    Random random(input.byte());
    const std::size_t shift = input.rarely(4) ? 1 + input.below(64) : 0;
    unsigned char* to = places.take(over.columns * item_size(dtype), shift);
    for (std::size_t c = 0; c < over.columns; ++c) {
        const float start =
            over.base == nullptr ? 0.0f : relex::load_scalar(over.base, over.base_dtype, c);
        store(to, dtype, c, value_of(kind, start, random));
    }
    return to;
}

} // namespace

std::vector<double> Tensor::base_values() const {
    std::vector<double> values(columns);
    for (std::size_t c = 0; base != nullptr && c < columns; ++c) {
        values[c] = load_scalar(base, base_dtype, c);
    }
    return values;
}

std::vector<double> Tensor::deltas(std::size_t row) const {
    std::vector<double> values = base_values();
    for (std::size_t c = 0; c < columns; ++c) {
        values[c] = load_scalar(data[row], dtypes[row], c) - values[c];
    }
    return values;
}

DType any_dtype(Input& input) {
    return static_cast<DType>(input.below(relex::kDTypeCount));
}

Tensor any_tensor(Input& input, Places& places, std::size_t most) {
    Tensor tensor;
    const bool many = input.rarely(40);
    tensor.columns = input.pick(kFew);
    if (many) {
        tensor.columns = input.rarely(3) ? input.below(3000) : input.pick(kMany);
    }
    std::size_t rows = 1 + input.below(40);
    rows = std::min(rows, 1 + (many ? kManyCells : kCells) / (tensor.columns + 1));
    if (input.rarely(200)) {
        rows = most;
        tensor.columns %= 40;
    }
    tensor.base_dtype = any_dtype(input);
    if (!input.rarely(5)) {
        const Kind kind = input.rarely(3) ? input.pick(kKinds) : Kind::moderate;
        tensor.base = fill(input, places, tensor.base_dtype, kind, tensor);
    }
    const bool mixed = input.rarely(3);
    const DType dtype = any_dtype(input);
    const bool uneven = input.rarely(3);
    const Kind kind = input.pick(kKinds);
    for (std::size_t t = 0; t < rows; ++t) {
        if (t < kPlaces / 2) {
            tensor.dtypes.push_back(mixed ? any_dtype(input) : dtype);
            tensor.data.push_back(
                fill(input, places, tensor.dtypes[t], uneven ? input.pick(kKinds) : kind, tensor));
        } else {
            tensor.dtypes.push_back(tensor.dtypes[t % (kPlaces / 2)]);
            tensor.data.push_back(tensor.data[t % (kPlaces / 2)]);
        }
    }
    return tensor;
}

} // namespace fuzz
