// One thread's asynchronous copies.
#pragma once

#include <cstddef>
#include <vector>

namespace relex::emulation {

class Copies {
  public:
    void add(void* to, const void* from, int bytes) { copies_.push_back({to, from, bytes}); }
    void commit() { ends_.push_back(copies_.size()); }

    // Carries out all committed groups but the newest `but`.
    void finish(std::size_t but);

    // Whether any copy has not been waited for.
    bool pending() const { return !copies_.empty(); }
    void clear();

  private:
    struct Copy {
        void* to;
        const void* from;
        int bytes;
    };
    std::vector<Copy> copies_;      // in the order of their issue
    std::vector<std::size_t> ends_; // where each committed group ends among them
};

// 16 bytes, of which the first `bytes` come from `from` and the rest are zeros.
void copy_now(void* to, const void* from, int bytes);

} // namespace relex::emulation
