// A fuzzer's bytes, read as the choices that make a case. Past their end all choices are the first.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>

namespace fuzz {

// What has to hold. libFuzzer reports the exception that nobody catches, Python raises it.
inline void expect(bool holds, const char* what) {
    if (!holds) {
        throw std::logic_error(what);
    }
}

class Input {
  public:
    Input(const std::uint8_t* data, std::size_t size) : data_(data), left_(size) {}

    unsigned byte() {
        if (left_ == 0) {
            return 0;
        }
        --left_;
        return *data_++;
    }

    std::size_t below(std::size_t limit) {
        const std::size_t number = limit > 256 ? byte() << 8 | byte() : byte();
        return number % limit;
    }

    template <class T, std::size_t N> T pick(const T (&from)[N]) { return from[below(N)]; }

    // One of so many times.
    bool rarely(unsigned times) { return byte() % times == times - 1; }

  private:
    const std::uint8_t* data_;
    std::size_t left_;
};

// Numbers that follow from a seed (xorshift64*).
class Random {
  public:
    explicit Random(std::uint64_t seed) : state_(seed * 2 + 1) {}

    std::uint64_t next() {
        state_ ^= state_ >> 12;
        state_ ^= state_ << 25;
        state_ ^= state_ >> 27;
        return state_ * 0x2545f4914f6cdd1du;
    }

    // In [-1, 1).
    double unit() { return static_cast<double>(static_cast<std::int64_t>(next())) * 0x1p-63; }

  private:
    std::uint64_t state_;
};

} // namespace fuzz
