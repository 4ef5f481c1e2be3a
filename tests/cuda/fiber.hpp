// A flow of control with a stack of its own, which runs when it is switched to.
//
// swapcontext() does the same with a system call per switch; a kernel switches millions of times.
#pragma once

#include <cstddef>

#if !defined(__x86_64__) && !defined(__aarch64__)
#include <ucontext.h>
#endif

namespace relex::emulation {

class Fiber {
  public:
    // Ready to call entry(), which never returns, on that stack.
    void prepare(unsigned char* stack, std::size_t size, void (*entry)());

    // Suspends `from`, which is running, and continues `to`.
    static void switch_over(Fiber& from, Fiber& to);

  private:
#if defined(__x86_64__) || defined(__aarch64__)
    void* stack_pointer_ = nullptr; // of a suspended fiber; its registers lie there
#else
    ucontext_t context_;
#endif
};

// Stacks for as many fibers as are asked for, each with a page below it that must not be touched.
// They are kept: a kernel's blocks, and the kernels of a process, use the same ones.
class Stacks {
  public:
    static constexpr std::size_t kSize = std::size_t{256} << 10;

    ~Stacks();
    Stacks() = default;
    Stacks(const Stacks&) = delete;
    Stacks& operator=(const Stacks&) = delete;

    void provide(std::size_t count);
    unsigned char* operator[](std::size_t index) const;

    // Whether the address lies among them: if touching it failed, a stack was too small.
    bool contains(const void* address) const;

  private:
    unsigned char* memory_ = nullptr;
    std::size_t count_ = 0;
};

} // namespace relex::emulation
