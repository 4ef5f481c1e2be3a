// The block that runs: its threads, which of them can go on, and what they wait for.
#pragma once

#include <cstdint>
#include <exception>
#include <random>
#include <string>
#include <vector>

#include "copies.hpp"
#include "emulation.hpp"
#include "fiber.hpp"
#include "settings.hpp"
#include "shared_memory.hpp"

namespace relex::emulation {

constexpr unsigned kLanes = 32;
constexpr unsigned kMaxThreads = 1024;

// Ends the kernel with an error that names the block, the thread and the place.
[[noreturn]] void fail(const std::string& what, Site at);

class Block {
  public:
    void run_grid(dim3 grid, unsigned threads, std::size_t shared_bytes,
                  const std::function<void()>& body);

    void barrier(Site at);
    void meet(const char* name, void* mine, Exchange exchange, Site at);

    const Settings& settings() const { return settings_; }
    const SharedMemory& shared() const { return shared_; }
    Copies& copies() { return threads_[current_].copies; }

    // "block (3, 0), thread 17"
    std::string whereabouts() const;

  private:
    struct Thread {
        Fiber fiber;
        Copies copies;
    };

    // The lanes of a warp that can run, that wait for the others, that have returned: a bit each.
    struct Warp {
        std::uint32_t ready = 0, arrived = 0, exited = 0;
        const char* name = nullptr; // of what they wait at, and the rest that must be the same
        Exchange exchange = nullptr;
        Site site{};
        void* lanes[kLanes] = {};
    };

    static void begin_thread();
    static void fault(int signal, const void* address);

    void run_block(std::size_t shared_bytes);
    void run_thread();
    void make_ready(unsigned warp, std::uint32_t lanes);
    unsigned pick(std::uint32_t mask);
    int next();
    void become(unsigned thread);
    void suspend();
    void leave();
    [[noreturn]] void report_divergence() const;

    Settings settings_;
    std::minstd_rand random_;
    const std::function<void()>* body_ = nullptr;
    std::exception_ptr failure_;
    Fiber scheduler_;
    Stacks stacks_;
    SharedMemory shared_;
    std::vector<Thread> threads_;
    std::vector<Warp> warps_;
    std::uint32_t ready_warps_ = 0;
    unsigned count_ = 0, current_ = 0, warp_ = 0; // threads; the running thread; its warp
    unsigned waiting_ = 0, exited_ = 0;           // threads at the barrier; that have returned
    Site barrier_{};                              // where those wait
    bool in_thread_ = false;
};

// Launches take turns, whatever Python threads they come from.
Block& the_block();

} // namespace relex::emulation
