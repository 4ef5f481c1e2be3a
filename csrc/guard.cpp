#include "guard.hpp"

#include <cerrno>
#include <csignal>

#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace relex {

// A guarded mapping, as the signal handler sees it: written without locks, which a handler cannot
// take and a forked child might find taken. Whoever changes the range makes the version odd first.
struct Guard::Slot {
    std::atomic<std::uint32_t> version{0};
    std::atomic<std::uintptr_t> start{0}, end{0}; // 0: free
    std::atomic<bool> damaged{false};

    bool claim() {
        std::uint32_t now = version.load(std::memory_order_acquire);
        return now % 2 == 0 && start.load(std::memory_order_acquire) == 0 &&
               version.compare_exchange_strong(now, now + 1, std::memory_order_acq_rel);
    }

    // Only after claim(), or by the owner of the range after reopen().
    void publish(std::uintptr_t from, std::uintptr_t to) {
        start.store(from, std::memory_order_release);
        end.store(to, std::memory_order_release);
        version.fetch_add(1, std::memory_order_release);
    }

    void reopen() { version.fetch_add(1, std::memory_order_acq_rel); }
};

namespace {

using Slot = Guard::Slot;

static_assert(std::atomic<std::uintptr_t>::is_always_lock_free, "a signal handler reads them");
static_assert(std::atomic<std::uint64_t>::is_always_lock_free, "a signal handler counts in it");

struct Chunk {
    Slot slots[256];
    std::atomic<Chunk*> next{nullptr};
};

Chunk first;
std::atomic<std::uint64_t> damaged_mappings{0};

// What SIGBUS did before the guard. Never freed: a handler may be reading it, and it changes only
// when somebody else installs a handler.
std::atomic<const struct sigaction*> previous{nullptr};

struct Range {
    Slot* slot;
    std::uintptr_t start, end;
};

// A range that changes meanwhile is not the one that faulted: that one is in use.
Range find(std::uintptr_t address) {
    for (Chunk* chunk = &first; chunk != nullptr; chunk = chunk->next.load()) {
        for (Slot& slot : chunk->slots) {
            const std::uint32_t version = slot.version.load(std::memory_order_acquire);
            const std::uintptr_t start = slot.start.load(std::memory_order_acquire);
            const std::uintptr_t end = slot.end.load(std::memory_order_acquire);
            if (version % 2 == 0 && start <= address && address < end &&
                slot.version.load(std::memory_order_relaxed) == version) {
                return {&slot, start, end};
            }
        }
    }
    return {nullptr, 0, 0};
}

Slot* claim_slot() {
    for (Chunk* chunk = &first;;) {
        for (Slot& slot : chunk->slots) {
            if (slot.claim()) {
                return &slot;
            }
        }
        Chunk* next = chunk->next.load();
        if (next == nullptr) {
            auto* fresh = new Chunk;
            if (chunk->next.compare_exchange_strong(next, fresh)) {
                next = fresh;
            } else {
                delete fresh;
            }
        }
        chunk = next;
    }
}

// Zeros in the place of a whole mapping: of one page each, a large file would need more mappings
// than the kernel allows. By number: a sanitizer's mmap is not for signal handlers.
bool replace(const Range& range) {
    if (!range.slot->damaged.exchange(true)) {
        damaged_mappings.fetch_add(1);
    }
    const long at = syscall(SYS_mmap, range.start, range.end - range.start, PROT_READ,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
    return at != -1;
}

void on_sigbus(int number, siginfo_t* info, void*);

bool is_ours(const struct sigaction& action) {
    return (action.sa_flags & SA_SIGINFO) != 0 && action.sa_sigaction == on_sigbus;
}

// Puts back what was there before. A fault then comes again, to that: once only, for a handler that
// returns without a cure, as faulthandler's does when disabled, would get it for ever.
void hand_over(int number, bool fault) {
    struct sigaction now{};
    (void)sigaction(number, nullptr, &now);
    if (is_ours(now)) { // else another thread was faster
        const struct sigaction* before = previous.exchange(nullptr);
        struct sigaction next{};
        next.sa_handler = SIG_DFL;
        if (before != nullptr) {
            next = *before;
        }
        if (fault) {
            next.sa_flags |= static_cast<int>(SA_RESETHAND);
        }
        (void)sigaction(number, &next, nullptr);
    }
    if (!fault) {
        (void)raise(number); // arrives when this handler returns
    }
}

void on_sigbus(int number, siginfo_t* info, void*) {
    const int code = errno;
    const bool fault = info->si_code > 0; // else sent by a process
    const Range range =
        fault ? find(reinterpret_cast<std::uintptr_t>(info->si_addr)) : Range{nullptr, 0, 0};
    if (range.slot == nullptr || !replace(range)) {
        hand_over(number, fault);
    }
    errno = code;
}

// At every new mapping: whoever came later may have taken our place.
void install() {
    struct sigaction now{};
    (void)sigaction(SIGBUS, nullptr, &now);
    if (is_ours(now)) {
        return;
    }
    previous.store(new struct sigaction(now));
    struct sigaction ours{};
    ours.sa_sigaction = on_sigbus;
    ours.sa_flags = SA_SIGINFO | SA_ONSTACK;
    (void)sigaction(SIGBUS, &ours, nullptr);
}

} // namespace

Guard::Guard(void* start, std::size_t bytes) : slot_(claim_slot()) {
    const auto page = static_cast<std::uintptr_t>(sysconf(_SC_PAGESIZE));
    const auto from = reinterpret_cast<std::uintptr_t>(start);
    slot_->damaged.store(false);
    slot_->publish(from, from + (bytes + page - 1) / page * page);
    install();
}

Guard::~Guard() {
    slot_->reopen();
    slot_->publish(0, 0);
}

bool Guard::damaged() const {
    return slot_->damaged.load();
}

std::uint64_t Guard::damages() {
    return damaged_mappings.load();
}

} // namespace relex
