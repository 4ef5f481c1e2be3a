// What the environment says about a launch; emulation.hpp lists the variables.
#pragma once

#include <cstddef>
#include <cstdint>

namespace relex::emulation {

enum class Order { ascending, descending, random };

struct Settings {
    Order order = Order::ascending;
    std::uint32_t seed = 1;
    bool early_copies = false;
    bool truncated = false;

    // Throws cuda::Error on words it does not know: a misspelt order would test nothing.
    static Settings read();
};

} // namespace relex::emulation
