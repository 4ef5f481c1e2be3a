#include "faults.hpp"

#include <cstddef>

namespace relex::emulation {

namespace {

// Launches take turns, so there is one at most. Other threads' faults are their own.
thread_local Faults::Handler current = nullptr;
const struct sigaction* before = nullptr;

} // namespace

Faults::Faults(Handler handler) : stack_(std::size_t{64} << 10) {
    stack_t own{};
    own.ss_sp = stack_.data();
    own.ss_size = stack_.size();
    sigaltstack(&own, &previous_stack_);
    current = handler;
    before = previous_;
    struct sigaction action{};
    action.sa_sigaction = received;
    // NODEFER: the handler does not return, so nothing would unblock the signal.
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    for (int i = 0; i < kCount; ++i) {
        sigaction(kSignals[i], &action, &previous_[i]);
    }
}

Faults::~Faults() {
    for (int i = 0; i < kCount; ++i) {
        sigaction(kSignals[i], &previous_[i], nullptr);
    }
    current = nullptr;
    before = nullptr;
    sigaltstack(&previous_stack_, nullptr);
}

void Faults::received(int signal, siginfo_t* info, void*) {
    if (current != nullptr) {
        current(signal, info->si_addr);
    }
    // Not a kernel's: the instruction runs again and meets the action that was there before.
    struct sigaction fallback{};
    fallback.sa_handler = SIG_DFL;
    for (int i = 0; before != nullptr && i < kCount; ++i) {
        if (kSignals[i] == signal) {
            fallback = before[i];
        }
    }
    sigaction(signal, &fallback, nullptr);
}

} // namespace relex::emulation
