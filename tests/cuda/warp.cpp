// What the lanes of a warp do together.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "block.hpp"

namespace relex::cuda {

namespace {

using emulation::Site;

constexpr int kLanes = 32;

template <class Lane> Lane& lane(void* const* lanes, int index) {
    return *static_cast<Lane*>(lanes[index]);
}

struct Shuffle {
    unsigned value;
    int mask;
    unsigned result;
};

void shuffle(void* const* lanes) {
    for (int l = 0; l < kLanes; ++l) {
        auto& mine = lane<Shuffle>(lanes, l);
        mine.result = lane<Shuffle>(lanes, (l ^ mine.mask) % kLanes).value;
    }
}

struct Vote {
    bool value, result;
};

void vote(void* const* lanes) {
    bool any = false;
    for (int l = 0; l < kLanes; ++l) {
        any = any || lane<Vote>(lanes, l).value;
    }
    for (int l = 0; l < kLanes; ++l) {
        lane<Vote>(lanes, l).result = any;
    }
}

struct Load {
    const unsigned char* row;
    unsigned* r;
};

// Matrix m's row i comes from lane 8 m + i; lane l receives the elements 2 (l % 4) and 2 (l % 4) +
// 1 of row l / 4 of each matrix.
void load(void* const* lanes) {
    for (int l = 0; l < kLanes; ++l) {
        for (int m = 0; m < 4; ++m) {
            const unsigned char* row = lane<Load>(lanes, 8 * m + l / 4).row;
            std::memcpy(&lane<Load>(lanes, l).r[m], row + 4 * (l % 4), 4);
        }
    }
}

struct Multiply {
    float* d;
    const unsigned* a;
    unsigned b[2];
};

float low(unsigned pair) {
    return bits_to_float(pair << 16);
}
float high(unsigned pair) {
    return bits_to_float(pair & 0xffff0000u);
}

struct Product {
    float a[16][16], b[16][8], d[16][8];

    // The fragments of mma.m16n8k16 with 16-bit elements, as the PTX ISA documents them. With
    // g = lane / 4 and t = lane % 4: a's register i holds row g + 8 (i % 2), columns 2t + 8 (i / 2)
    // and the next; b's register i rows 2t + 8i and the next, column g; d's element i is at row
    // g + 8 (i / 2), column 2t + i % 2.
    void gather(void* const* lanes) {
        for (int l = 0; l < kLanes; ++l) {
            const auto& from = lane<Multiply>(lanes, l);
            const int g = l / 4, t = 2 * (l % 4);
            for (int i = 0; i < 4; ++i) {
                a[g + 8 * (i % 2)][t + 8 * (i / 2)] = low(from.a[i]);
                a[g + 8 * (i % 2)][t + 8 * (i / 2) + 1] = high(from.a[i]);
                d[g + 8 * (i / 2)][t + i % 2] = from.d[i];
            }
            for (int i = 0; i < 2; ++i) {
                b[t + 8 * i][g] = low(from.b[i]);
                b[t + 8 * i + 1][g] = high(from.b[i]);
            }
        }
    }

    void scatter(void* const* lanes) const {
        for (int l = 0; l < kLanes; ++l) {
            for (int i = 0; i < 4; ++i) {
                lane<Multiply>(lanes, l).d[i] = d[l / 4 + 8 * (i / 2)][2 * (l % 4) + i % 2];
            }
        }
    }

    // The products of bf16 numbers are exact in fp32; their sum is rounded after each, in order.
    void add_rounded() {
        for (int i = 0; i < 16; ++i) {
            for (int k = 0; k < 16; ++k) {
                for (int j = 0; j < 8; ++j) {
                    d[i][j] += a[i][k] * b[k][j];
                }
            }
        }
    }

    // What PTX leaves open, the way the hardware was measured to do it (Fasi, Higham, Mikaitis and
    // Pranesh 2021): eight products and the accumulator are aligned to the largest of them, cut off
    // one bit below fp32's, added, and the sum is cut off again. (Newer GPUs keep more bits.)
    void add_truncated() {
        for (int i = 0; i < 16; ++i) {
            for (int j = 0; j < 8; ++j) {
                for (int k = 0; k < 16; k += 8) {
                    d[i][j] = truncated_sum(i, j, k);
                }
            }
        }
    }

    float truncated_sum(int i, int j, int first) const {
        double terms[9];
        int largest = -400; // below any product
        for (int n = 0; n < 9; ++n) {
            terms[n] = n == 8 ? d[i][j] : static_cast<double>(a[i][first + n]) * b[first + n][j];
            if (!std::isfinite(terms[n])) {
                float sum = d[i][j];
                for (int m = first; m < first + 8; ++m) {
                    sum += a[i][m] * b[m][j];
                }
                return sum;
            }
            if (terms[n] != 0.0) {
                largest = std::max(largest, std::ilogb(terms[n]));
            }
        }
        const double unit = std::ldexp(1.0, largest - 24), units = std::ldexp(1.0, 24 - largest);
        double sum = 0.0; // exact: a multiple of the unit, less than 2^29 of them
        for (const double term : terms) {
            sum += std::trunc(term * units) * unit;
        }
        const auto nearest = static_cast<float>(sum);
        const bool away = std::fabs(static_cast<double>(nearest)) > std::fabs(sum);
        return away ? std::nextafterf(nearest, 0.0f) : nearest;
    }
};

template <void (Product::*kAdd)()> void multiply(void* const* lanes) {
    Product product;
    product.gather(lanes);
    (product.*kAdd)();
    product.scatter(lanes);
}

} // namespace

unsigned shuffle_xor_bits(unsigned value, int mask, Site at) {
    Shuffle mine{value, mask, 0};
    emulation::meet("shuffle_xor", &mine, shuffle, at);
    return mine.result;
}

bool any_in_warp(bool value, Site at) {
    Vote mine{value, false};
    emulation::meet("any_in_warp", &mine, vote, at);
    return mine.result;
}

void load_matrices(unsigned (&r)[4], const void* row, Site at) {
    if (reinterpret_cast<std::uintptr_t>(row) % 16 != 0) {
        emulation::fail("load_matrices: a row's address must lie on 16 bytes", at);
    }
    if (!emulation::the_block().shared().holds(row, 16)) {
        emulation::fail("load_matrices: reads " + emulation::the_block().shared().place(row), at);
    }
    Load mine{static_cast<const unsigned char*>(row), r};
    emulation::meet("load_matrices", &mine, load, at);
}

void multiply_bf16(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1, Site at) {
    Multiply mine{d, a, {b0, b1}};
    const bool truncated = emulation::the_block().settings().truncated;
    emulation::meet("multiply_bf16", &mine,
                    truncated ? multiply<&Product::add_truncated> : multiply<&Product::add_rounded>,
                    at);
}

} // namespace relex::cuda
