// The safety net under the fp32 Gram: which segments it cannot be trusted with, and what they get.
#include <cmath>

#include "kernels.hpp"

namespace relex::cpu {

namespace {

double delta(const Rows& rows, int t, std::size_t column) {
    const double x = load_scalar(rows.data[t], rows.dtype[t], column);
    return rows.base == nullptr ? x : x - load_scalar(rows.base, rows.base_dtype, column);
}

bool row_moves(const Rows& rows, int t, Range range) {
    for (std::size_t c = range.begin; c < range.end; ++c) {
        if (delta(rows, t, c) != 0.0) {
            return true;
        }
    }
    return false;
}

} // namespace

// Squares below 2^-126 lose bits and below 2^-149 vanish; those above 2^128 are infinite. A row
// whose squares sum to less than 2^-90 may hold such ones; a frozen row, whose sum is 0, does not.
bool gram_is_safe(const Rows& rows, Range range, const double* gram) {
    const auto count = static_cast<std::size_t>(rows.count);
    for (int t = 0; t < rows.count; ++t) {
        const double square = gram[static_cast<std::size_t>(t) * (count + 1)];
        if (!std::isfinite(square) || (square < 0x1p-90 && row_moves(rows, t, range))) {
            return false;
        }
    }
    return true;
}

void gram_fp64(const Rows& rows, Range range, double* gram, const Stop& stop) {
    const auto count = static_cast<std::size_t>(rows.count);
    constexpr std::size_t kColumns = 64;
    for (std::size_t c = range.begin; c < range.end; c += kColumns) {
        if (stop.load(std::memory_order_relaxed)) {
            return;
        }
        const std::size_t n = range.end - c < kColumns ? range.end - c : kColumns;
        for (int i = 0; i < rows.count; ++i) {
            double a[kColumns];
            for (std::size_t k = 0; k < n; ++k) {
                a[k] = delta(rows, i, c + k);
            }
            for (int j = 0; j <= i; ++j) {
                double sum = 0.0;
                for (std::size_t k = 0; k < n; ++k) {
                    sum += a[k] * delta(rows, j, c + k);
                }
                gram[static_cast<std::size_t>(i) * count + static_cast<std::size_t>(j)] += sum;
            }
        }
    }
}

} // namespace relex::cpu
