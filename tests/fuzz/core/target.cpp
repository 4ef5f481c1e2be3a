// libFuzzer's entry point, and the one by which the corpus is replayed.
#include "target.hpp"

#include "files.hpp"
#include "kernels.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    static fuzz::Places places;
    fuzz::Input input(data, size);
    places.clear();
    switch (input.below(4)) {
    case 0:
        fuzz::check_gram(input, places);
        break;
    case 1:
        fuzz::check_power_step(input, places);
        break;
    case 2:
        fuzz::check_combine(input, places);
        break;
    default:
        fuzz::check_file(input);
    }
    fuzz::expect(places.intact(), "kernel: expected the bytes around it untouched");
    return 0;
}
