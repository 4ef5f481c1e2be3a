#include "fiber.hpp"

#include <cstdint>
#include <new>

#include <sys/mman.h>

// relex_switch_stacks(void** from, void* to): pushes the registers that a call must preserve,
// stores the stack pointer in *from, takes `to` for it, and pops that stack's registers.
#if defined(__x86_64__)
asm(R"(
    .text
    .hidden relex_switch_stacks
    .globl relex_switch_stacks
    .type relex_switch_stacks, @function
relex_switch_stacks:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size relex_switch_stacks, . - relex_switch_stacks
)");
#elif defined(__aarch64__)
asm(R"(
    .text
    .hidden relex_switch_stacks
    .globl relex_switch_stacks
    .type relex_switch_stacks, %function
relex_switch_stacks:
    sub sp, sp, #160
    stp x19, x20, [sp, #0]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp, #0]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
    .size relex_switch_stacks, . - relex_switch_stacks
)");
#endif

namespace relex::emulation {

#if defined(__x86_64__) || defined(__aarch64__)

extern "C" void relex_switch_stacks(void** from, void* to);

void Fiber::prepare(unsigned char* stack, std::size_t size, void (*entry)()) {
    // What a first switch pops: zeros for the registers, and where to go. x86-64 wants the stack
    // pointer 8 bytes off 16 where a function begins, as a call leaves it.
#if defined(__x86_64__)
    constexpr std::size_t kWords = 8, kEntry = 6;
#else
    constexpr std::size_t kWords = 20, kEntry = 11;
#endif
    auto* words = reinterpret_cast<std::uintptr_t*>(stack + size) - kWords;
    for (std::size_t i = 0; i < kWords; ++i) {
        words[i] = 0;
    }
    words[kEntry] = reinterpret_cast<std::uintptr_t>(entry);
    stack_pointer_ = words;
}

void Fiber::switch_over(Fiber& from, Fiber& to) {
    relex_switch_stacks(&from.stack_pointer_, to.stack_pointer_);
}

#else

void Fiber::prepare(unsigned char* stack, std::size_t size, void (*entry)()) {
    getcontext(&context_);
    context_.uc_stack.ss_sp = stack;
    context_.uc_stack.ss_size = size;
    context_.uc_link = nullptr;
    makecontext(&context_, entry, 0);
}

void Fiber::switch_over(Fiber& from, Fiber& to) {
    swapcontext(&from.context_, &to.context_);
}

#endif

namespace {

constexpr std::size_t kGuard = std::size_t{64} << 10; // a page, whatever its size
constexpr std::size_t kStride = kGuard + Stacks::kSize;
// Stacks that begin at the same place of a page would fight for the same lines of the cache.
constexpr std::size_t kColours = 16, kColour = 256;

} // namespace

Stacks::~Stacks() {
    if (memory_ != nullptr) {
        munmap(memory_, count_ * kStride);
    }
}

void Stacks::provide(std::size_t count) {
    if (count <= count_) {
        return;
    }
    void* found = mmap(nullptr, count * kStride, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (found == MAP_FAILED) {
        throw std::bad_alloc();
    }
    if (memory_ != nullptr) {
        munmap(memory_, count_ * kStride);
    }
    memory_ = static_cast<unsigned char*>(found);
    count_ = count;
    for (std::size_t i = 0; i < count; ++i) {
        mprotect(memory_ + i * kStride, kGuard, PROT_NONE);
    }
}

unsigned char* Stacks::operator[](std::size_t index) const {
    return memory_ + index * kStride + kGuard - index % kColours * kColour;
}

bool Stacks::contains(const void* address) const {
    const auto* place = static_cast<const unsigned char*>(address);
    return place >= memory_ && place < memory_ + count_ * kStride;
}

} // namespace relex::emulation
