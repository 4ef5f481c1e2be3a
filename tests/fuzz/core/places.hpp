// Memory whose neighbours nobody may touch: every place ends at a page that cannot be accessed.
#pragma once

#include <cstddef>
#include <vector>

namespace fuzz {

constexpr std::size_t kPlaces = 72;
constexpr std::size_t kLargest = std::size_t{256} << 10; // bytes of a place
constexpr unsigned char kCanary = 0xa5;

class Places {
  public:
    Places();

    // Gives all places back.
    void clear() { taken_.clear(); }
    bool full() const { return taken_.size() == kPlaces; }

    // So many bytes, `shift` before the page that faults, amid canaries.
    unsigned char* take(std::size_t bytes, std::size_t shift);

    // Whether all canaries near the places taken are alive.
    bool intact() const;

  private:
    struct Taken {
        unsigned char *begin, *end;
    };

    unsigned char* memory_;
    std::vector<Taken> taken_;
};

} // namespace fuzz
