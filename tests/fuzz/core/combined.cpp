// combine against base + Σ w Δ in double, rounded once.
#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/dispatch.hpp"
#include "kernels.hpp"

namespace fuzz {

namespace {

// The nearest number of a dtype, ties to even: by its spacing there, not by its bits.
double rounded(double x, DType dtype) {
    const int bits = dtype == DType::f32 ? 24 : dtype == DType::f16 ? 11 : 8;
    const int least = dtype == DType::f16 ? -13 : -125; // frexp's exponent of the smallest normal
    const int most = dtype == DType::f16 ? 16 : 128;
    int exponent = 0;
    std::frexp(x, &exponent);
    const double spacing = std::ldexp(1.0, std::max(exponent, least) - bits);
    const double nearest = std::nearbyint(x / spacing) * spacing;
    const double limit = std::ldexp(1.0, most);
    return std::abs(nearest) < limit ? nearest
                                     : std::copysign(std::numeric_limits<double>::infinity(), x);
}

// Weights like a forecast's, none, or what a caller may get wrong.
std::vector<double> any_weights(Input& input, std::size_t count) {
    constexpr double kScales[] = {1.0, 1.0, 3.0, 0.0, 0x1p-140, 0x1p100, 0x1p300};
    constexpr double kOdd[] = {std::numeric_limits<double>::quiet_NaN(),
                               std::numeric_limits<double>::infinity(),
                               -std::numeric_limits<double>::infinity(), -0.0};
    const double scale = input.pick(kScales);
    Random random(input.byte());
    std::vector<double> weights(count);
    for (double& w : weights) {
        w = scale * random.unit();
    }
    if (input.rarely(8)) {
        weights[input.below(count)] = input.pick(kOdd);
    }
    return weights;
}

void compare(const Tensor& tensor, const double* weights, DType dtype, const unsigned char* out) {
    const std::size_t rows = tensor.data.size();
    const std::vector<double> base = tensor.base_values();
    std::vector<double> sum(tensor.columns), terms(tensor.columns);
    double largest = 0.0, heaviest = 0.0;
    for (std::size_t t = 0; t < rows; ++t) {
        const std::vector<double> deltas = tensor.deltas(t);
        heaviest = std::max(heaviest, std::abs(weights[t]));
        for (std::size_t c = 0; c < tensor.columns; ++c) {
            sum[c] += weights[t] * deltas[c];
            terms[c] += std::abs(weights[t] * deltas[c]);
            largest = std::max(largest, std::abs(deltas[c]));
        }
    }
    const bool wide = dtype == DType::f32;
    if (largest > 0x1p126 || (heaviest > 0x1p126 && !wide)) {
        return; // sums in fp32 are for what fp32 can hold
    }
    const auto count = static_cast<double>(rows);
    const double unit = wide ? 0x1p-52 : 0x1p-24;
    const double lost = wide ? 0.0 : count * 0x1p-148 * (1.0 + largest);
    for (std::size_t c = 0; c < tensor.columns; ++c) {
        const double exact = base[c] + sum[c];
        if (!(terms[c] + std::abs(base[c]) < 0x1p120)) {
            continue;
        }
        const double slack = (count + 6.0) * unit * terms[c] + lost +
                             (count + 2.0) * 0x1p-52 * (terms[c] + std::abs(base[c]));
        const double found = load_scalar(out, dtype, c);
        const bool untouched = terms[c] == 0.0;
        const double low = rounded(untouched ? base[c] : exact - slack, dtype);
        const double high = rounded(untouched ? base[c] : exact + slack, dtype);
        expect(low <= found && found <= high, "combine: expected the exact sum's rounding");
    }
}

} // namespace

void check_combine(Input& input, Places& places) {
    const auto& supported = relex::cpu::supported();
    const auto& kernels = *supported[input.below(supported.size())];
    const int threads = 1 + static_cast<int>(input.below(3));
    const Tensor tensor = any_tensor(input, places, relex::cpu::kMaxRows);
    const std::size_t rows = tensor.data.size();
    const std::size_t targets = 1 + input.below(input.rarely(16) ? 20 : 6);
    const DType dtype = any_dtype(input);
    std::vector<double> weights;
    std::vector<unsigned char*> out;
    for (std::size_t q = 0; q < targets; ++q) {
        const std::vector<double> more = any_weights(input, rows);
        weights.insert(weights.end(), more.begin(), more.end());
        out.push_back(places.take(tensor.columns * item_size(dtype), input.below(70)));
    }
    expect(relex::cpu::combine(kernels, tensor.rows(), tensor.columns, weights.data(),
                               static_cast<int>(targets), out.data(), dtype, threads, nullptr),
           "combine: expected to finish");
    for (std::size_t q = 0; q < targets; ++q) {
        compare(tensor, weights.data() + q * rows, dtype, out[q]);
    }
}

} // namespace fuzz
