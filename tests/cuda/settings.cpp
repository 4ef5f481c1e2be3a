#include "settings.hpp"

#include <cstdlib>
#include <string>

#include "availability.hpp"
#include "emulation.hpp"

namespace relex::emulation {

namespace {

std::string variable(const char* name, const char* otherwise) {
    const char* value = std::getenv(name);
    return value == nullptr ? otherwise : value;
}

[[noreturn]] void unknown(const char* name, const std::string& expected, const std::string& found) {
    throw cuda::Error(std::string(name) + ": expected " + expected + ", found " + found);
}

// Whether the variable has the second of its two values.
bool second(const char* name, const char* first, const char* other) {
    const std::string value = variable(name, first);
    if (value != first && value != other) {
        unknown(name, std::string(first) + " or " + other, value);
    }
    return value == other;
}

long number(const char* name, const char* otherwise, long most) {
    const std::string value = variable(name, otherwise);
    char* end = nullptr;
    const long found = std::strtol(value.c_str(), &end, 10);
    if (value.empty() || *end != '\0' || found < 0 || found > most) {
        unknown(name, "a number up to " + std::to_string(most), value);
    }
    return found;
}

} // namespace

Settings Settings::read() {
    Settings found;
    const char* name = "RELEX_EMULATED_ORDER";
    const std::string order = variable(name, "ascending");
    if (order == "descending") {
        found.order = Order::descending;
    } else if (order.rfind("random", 0) == 0) {
        found.order = Order::random;
        if (order.size() > 6) {
            char* end = nullptr;
            found.seed = static_cast<std::uint32_t>(std::strtoul(order.c_str() + 7, &end, 10));
            if (order[6] != ':' || order.size() == 7 || *end != '\0') {
                unknown(name, "random:SEED", order);
            }
        }
    } else if (order != "ascending") {
        unknown(name, "ascending, descending, random or random:SEED", order);
    }
    found.early_copies = second("RELEX_EMULATED_COPIES", "late", "early");
    found.truncated = second("RELEX_EMULATED_SUMS", "nearest", "truncated");
    return found;
}

} // namespace relex::emulation

namespace relex::cuda {

// No GPU that the kernels are compiled for gives a block more than 227 KiB, nor less than 99 KiB.
std::size_t shared_memory_limit() {
    return static_cast<std::size_t>(
        emulation::number("RELEX_EMULATED_SHARED", "232448", 227 * 1024));
}

std::optional<std::string> unavailable(int) {
    return std::nullopt;
}

int multiprocessors() {
    return static_cast<int>(emulation::number("RELEX_EMULATED_MULTIPROCESSORS", "4", 1024));
}

} // namespace relex::cuda
