// gram and power_step against the same sums in double.
#include <algorithm>
#include <cmath>

#include "cpu/dispatch.hpp"
#include "kernels.hpp"

namespace fuzz {

namespace {

using Values = std::vector<double>;

constexpr double kUnit = 0x1p-24;
constexpr double kTiny = 0x1p-126; // a product that is smaller may vanish
constexpr double kBlock = 160;     // roundings on the way of a product to its sum, at most

const relex::cpu::Kernels& any_kernels(Input& input) {
    const auto& supported = relex::cpu::supported();
    return *supported[input.below(supported.size())];
}

struct Truth {
    explicit Truth(const Tensor& tensor) {
        for (std::size_t t = 0; t < tensor.data.size(); ++t) {
            deltas.push_back(tensor.deltas(t));
            finite.push_back(true);
            for (const double delta : deltas[t]) {
                finite[t] = finite[t] && std::isfinite(delta);
                largest = std::max(largest, std::abs(delta));
            }
        }
    }

    std::vector<Values> deltas;
    std::vector<bool> finite;
    double largest = 0.0;
};

double dot(const Values& a, const Values& b) {
    double sum = 0.0;
    for (std::size_t c = 0; c < a.size(); ++c) {
        sum += a[c] * b[c];
    }
    return sum;
}

bool all_finite(const Truth& truth) {
    return std::all_of(truth.finite.begin(), truth.finite.end(),
                       [](bool finite) { return finite; });
}

// Rows of few distinct strips: as many as are worth comparing.
constexpr std::size_t kCompared = 44;

void compare_gram(const Truth& truth, const Values& g, std::size_t rows) {
    for (std::size_t i = 0; i < rows; ++i) {
        expect(std::isfinite(g[i * rows + i]) == truth.finite[i],
               "gram: expected a diagonal that tells NaN and Inf");
    }
    if (!all_finite(truth)) {
        return;
    }
    Values squares;
    for (const Values& row : truth.deltas) {
        squares.push_back(dot(row, row));
    }
    for (std::size_t i = 0; i < std::min(rows, kCompared); ++i) {
        for (std::size_t j = 0; j <= i; ++j) {
            const double expected = dot(truth.deltas[i], truth.deltas[j]);
            const auto columns = static_cast<double>(truth.deltas[i].size());
            const double slack =
                kBlock * kUnit * std::sqrt(squares[i]) * std::sqrt(squares[j]) + columns * kTiny;
            expect(std::abs(g[i * rows + j] - expected) <= slack, "gram: expected the sum's bound");
        }
    }
}

} // namespace

void check_gram(Input& input, Places& places) {
    const auto& kernels = any_kernels(input);
    const int threads = 1 + static_cast<int>(input.below(3));
    const Tensor tensor = any_tensor(input, places, input.rarely(64) ? 700 : 130);
    const std::size_t rows = tensor.data.size();
    constexpr double kUntouched = -7.25;
    const auto run = [&](int count) {
        Values g(rows * rows, kUntouched);
        for (std::size_t i = 0; i < rows; ++i) {
            std::fill_n(g.data() + i * rows, i + 1, 0.0);
        }
        expect(relex::cpu::gram(kernels, tensor.rows(), tensor.columns, g.data(), count, nullptr),
               "gram: expected to finish");
        return g;
    };
    const Values g = run(threads);
    for (std::size_t i = 0; i < rows; ++i) {
        for (std::size_t j = i + 1; j < rows; ++j) {
            expect(g[i * rows + j] == kUntouched, "gram: expected the upper triangle untouched");
        }
    }
    compare_gram(Truth(tensor), g, rows);
    if (tensor.columns > relex::cpu::kSegment) {
        const Values again = run(4 - threads);
        expect(std::memcmp(g.data(), again.data(), g.size() * sizeof(double)) == 0,
               "gram: expected the same bytes from other threads");
    }
}

void check_power_step(Input& input, Places& places) {
    const auto& kernels = any_kernels(input);
    const int threads = 1 + static_cast<int>(input.below(3));
    const Tensor tensor = any_tensor(input, places, relex::cpu::kMaxRows);
    const std::size_t rows = tensor.data.size();
    const std::size_t k =
        1 + (input.rarely(16) ? input.below(relex::cpu::kMaxVectors) : input.below(9));
    Random random(input.byte());
    std::vector<float> u(rows * k);
    for (float& x : u) {
        x = static_cast<float>(random.unit());
    }
    Values y(rows * k), energy(rows);
    const bool with_energy = !input.rarely(3);
    expect(relex::cpu::power_step(kernels, tensor.rows(), tensor.columns, u.data(),
                                  static_cast<int>(k), y.data(),
                                  with_energy ? energy.data() : nullptr, threads, nullptr),
           "power_step: expected to finish");
    const Truth truth(tensor);
    if (!all_finite(truth) || truth.largest > 0x1p40 || rows > kCompared) {
        return; // the caller looks at the energies, and takes gram where they left the range
    }
    const auto count = static_cast<double>(rows);
    const auto columns = static_cast<double>(tensor.columns);
    const double lost = columns * count * kTiny * (1.0 + truth.largest);
    for (std::size_t q = 0; q < std::min<std::size_t>(k, 5); ++q) {
        Values z(tensor.columns), terms(tensor.columns);
        for (std::size_t t = 0; t < rows; ++t) {
            for (std::size_t c = 0; c < tensor.columns; ++c) {
                const double term = static_cast<double>(u[t * k + q]) * truth.deltas[t][c];
                z[c] += term;
                terms[c] += std::abs(term);
            }
        }
        for (std::size_t t = 0; t < rows; ++t) {
            double bound = 0.0;
            for (std::size_t c = 0; c < tensor.columns; ++c) {
                bound += std::abs(truth.deltas[t][c]) * terms[c];
            }
            expect(std::abs(y[t * k + q] - dot(truth.deltas[t], z)) <=
                       (kBlock + 2.0 * count) * kUnit * bound + lost,
                   "power_step: expected the sum's bound");
        }
    }
    for (std::size_t t = 0; t < rows; ++t) {
        const double expected = with_energy ? dot(truth.deltas[t], truth.deltas[t]) : 0.0;
        expect(std::abs(energy[t] - expected) <= kBlock * kUnit * expected + columns * kTiny,
               "power_step: expected the energy");
    }
}

} // namespace fuzz
