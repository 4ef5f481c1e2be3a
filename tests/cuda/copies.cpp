#include "copies.hpp"

#include <cstdint>
#include <cstring>

#include "block.hpp"

namespace relex::emulation {

void copy_now(void* to, const void* from, int bytes) {
    unsigned char piece[16] = {};
    if (bytes > 0) {
        std::memcpy(piece, from, static_cast<std::size_t>(bytes));
    }
    std::memcpy(to, piece, sizeof piece);
}

void Copies::finish(std::size_t but) {
    if (ends_.size() <= but) {
        return;
    }
    const auto groups = static_cast<std::ptrdiff_t>(ends_.size() - but);
    const std::size_t count = ends_[static_cast<std::size_t>(groups) - 1];
    for (std::size_t i = 0; i < count; ++i) {
        copy_now(copies_[i].to, copies_[i].from, copies_[i].bytes);
    }
    copies_.erase(copies_.begin(), copies_.begin() + static_cast<std::ptrdiff_t>(count));
    ends_.erase(ends_.begin(), ends_.begin() + groups);
    for (std::size_t& end : ends_) {
        end -= count;
    }
}

void Copies::clear() {
    copies_.clear();
    ends_.clear();
}

} // namespace relex::emulation

namespace relex::cuda {

void copy_async(void* shared, const void* global, int bytes, emulation::Site at) {
    using emulation::the_block;
    if (bytes < 0 || bytes > 16) {
        emulation::fail("copy_async: " + std::to_string(bytes) + " bytes", at);
    }
    if (reinterpret_cast<std::uintptr_t>(shared) % 16 != 0 ||
        (bytes > 0 && reinterpret_cast<std::uintptr_t>(global) % 16 != 0)) {
        emulation::fail("copy_async: both addresses must lie on 16 bytes", at);
    }
    if (!the_block().shared().holds(shared, 16)) {
        emulation::fail("copy_async: writes " + the_block().shared().place(shared), at);
    }
    if (the_block().settings().early_copies) {
        emulation::copy_now(shared, global, bytes);
    } else {
        the_block().copies().add(shared, global, bytes);
    }
}

void commit_copies() {
    emulation::the_block().copies().commit();
}

void finish_copies(int but) {
    emulation::the_block().copies().finish(static_cast<std::size_t>(but));
}

} // namespace relex::cuda
