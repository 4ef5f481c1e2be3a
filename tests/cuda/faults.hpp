// Faults of a kernel are errors of a test, not the end of its process.
#pragma once

#include <csignal>
#include <vector>

namespace relex::emulation {

// While it lives, a fault on the thread that made it calls the handler, on a stack of its own. The
// handler switches to another fiber and never returns, or returns and leaves the fault to whoever
// handled it before.
class Faults {
  public:
    using Handler = void (*)(int signal, const void* address);

    explicit Faults(Handler handler);
    ~Faults();
    Faults(const Faults&) = delete;
    Faults& operator=(const Faults&) = delete;

  private:
    // SIGILL and SIGTRAP: how the compiler ends a program that accessed something misaligned or
    // beyond an array's bounds (-fsanitize=… -fsanitize-undefined-trap-on-error).
    static constexpr int kSignals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP};
    static constexpr int kCount = sizeof kSignals / sizeof *kSignals;

    static void received(int signal, siginfo_t* info, void* context);

    struct sigaction previous_[kCount];
    std::vector<unsigned char> stack_;
    stack_t previous_stack_;
};

} // namespace relex::emulation
