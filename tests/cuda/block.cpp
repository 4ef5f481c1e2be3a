#include "block.hpp"

#include <algorithm>
#include <csignal>
#include <cstring>
#include <mutex>
#include <numeric>
#include <sstream>

#include "faults.hpp"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace relex::emulation {

namespace {

constexpr std::uint32_t kAllLanes = 0xffffffffu;

std::string text(Site at) {
    const std::string file = at.file;
    const std::string name = file.substr(file.rfind('/') + 1);
    return at.line == 0 ? name : name + ":" + std::to_string(at.line);
}

bool same(Site a, Site b) {
    return a.line == b.line && std::string_view(a.file) == b.file;
}

std::vector<unsigned> shuffled(unsigned count, Order order, std::minstd_rand& random) {
    std::vector<unsigned> indices(count);
    std::iota(indices.begin(), indices.end(), 0u);
    if (order == Order::descending) {
        std::reverse(indices.begin(), indices.end());
    } else if (order == Order::random) {
        std::shuffle(indices.begin(), indices.end(), random);
    }
    return indices;
}

} // namespace

Block& the_block() {
    static Block block;
    return block;
}

void fail(const std::string& what, Site at) {
    throw cuda::Error("emulation: " + the_block().whereabouts() + ", " + text(at) + ": " + what);
}

std::string Block::whereabouts() const {
    std::ostringstream out;
    out << "block (" << blockIdx.x << ", " << blockIdx.y << "), thread " << threadIdx.x;
    return out.str();
}

// ---- who runs ----------------------------------------------------------------------------------

void Block::make_ready(unsigned warp, std::uint32_t lanes) {
    warps_[warp].ready |= lanes;
    ready_warps_ |= 1u << warp;
}

// One of the bits of a mask, as the order has it.
unsigned Block::pick(std::uint32_t mask) {
    if (settings_.order == Order::descending) {
        return 31u - static_cast<unsigned>(__builtin_clz(mask));
    }
    if (settings_.order == Order::random) {
        for (unsigned skipped = static_cast<unsigned>(random_()) % 32; skipped > 0; --skipped) {
            mask = (mask & (mask - 1)) != 0 ? mask & (mask - 1) : mask;
        }
    }
    return static_cast<unsigned>(__builtin_ctz(mask));
}

// The thread to run next, or −1 when none can.
int Block::next() {
    if (ready_warps_ == 0) {
        return -1;
    }
    // A warp that may go on does: the others then lag as far behind as its barriers permit.
    if (warps_[warp_].ready == 0 || settings_.order == Order::random) {
        warp_ = pick(ready_warps_);
    }
    Warp& warp = warps_[warp_];
    const unsigned lane = pick(warp.ready);
    warp.ready &= ~(1u << lane);
    if (warp.ready == 0) {
        ready_warps_ &= ~(1u << warp_);
    }
    return static_cast<int>(warp_ * kLanes + lane);
}

void Block::become(unsigned thread) {
    current_ = thread;
    threadIdx.x = thread;
}

// Lets others run until this thread is ready and has its turn again.
void Block::suspend() {
    const unsigned me = current_;
    const int other = next();
    if (other == static_cast<int>(me)) {
        return;
    }
    if (other < 0) {
        Fiber::switch_over(threads_[me].fiber, scheduler_);
    } else {
        become(static_cast<unsigned>(other));
        Fiber::switch_over(threads_[me].fiber, threads_[current_].fiber);
    }
}

// Like suspend, for good.
void Block::leave() {
    const unsigned me = current_;
    const int other = failure_ ? -1 : next();
    if (other < 0) {
        Fiber::switch_over(threads_[me].fiber, scheduler_);
    }
    become(static_cast<unsigned>(other));
    Fiber::switch_over(threads_[me].fiber, threads_[current_].fiber);
}

// ---- meetings ----------------------------------------------------------------------------------

// Stricter than GPUs since Volta, which excuse threads that have returned: CUDA's guide promises
// that only to those who read it closely.
void Block::barrier(Site at) {
    if (exited_ > 0) {
        fail("__syncthreads, but " + std::to_string(exited_) + " threads have returned", at);
    }
    if (waiting_ > 0 && !same(barrier_, at)) {
        fail("__syncthreads, but others wait at that of " + text(barrier_), at);
    }
    barrier_ = at;
    if (++waiting_ == count_) {
        waiting_ = 0;
        for (unsigned w = 0; w < warps_.size(); ++w) {
            make_ready(w, count_ - w * kLanes < kLanes ? (1u << count_ % kLanes) - 1 : kAllLanes);
        }
    }
    suspend();
}

void Block::meet(const char* name, void* mine, Exchange exchange, Site at) {
    Warp& warp = warps_[current_ / kLanes];
    const unsigned lane = current_ % kLanes;
    if (warp.exited != 0) {
        fail(std::string(name) + ", but lanes of the warp have returned", at);
    }
    if (count_ - current_ / kLanes * kLanes < kLanes) {
        fail(std::string(name) + ", but the warp has less than 32 lanes", at);
    }
    if (warp.arrived == 0) {
        warp.name = name;
        warp.exchange = exchange;
        warp.site = at;
    } else if (warp.exchange != exchange || !same(warp.site, at)) {
        fail(std::string(name) + ", but other lanes of the warp wait at " + warp.name + " of " +
                 text(warp.site),
             at);
    }
    warp.lanes[lane] = mine;
    warp.arrived |= 1u << lane;
    if (warp.arrived == kAllLanes) {
        exchange(warp.lanes);
        warp.arrived = 0;
        make_ready(current_ / kLanes, kAllLanes);
    }
    suspend();
}

// Threads wait, and none can go on.
void Block::report_divergence() const {
    std::ostringstream out;
    out << "emulation: block (" << blockIdx.x << ", " << blockIdx.y << "): ";
    out << "nothing can go on: " << exited_ << " threads have returned";
    if (waiting_ > 0) {
        out << ", " << waiting_ << " wait at __syncthreads of " << text(barrier_);
    }
    for (unsigned w = 0; w < warps_.size(); ++w) {
        if (warps_[w].arrived != 0) {
            out << ", lanes 0x" << std::hex << warps_[w].arrived << std::dec << " of warp " << w
                << " wait at " << warps_[w].name << " of " << text(warps_[w].site);
        }
    }
    throw cuda::Error(out.str());
}

// ---- grids, blocks, threads --------------------------------------------------------------------

void Block::begin_thread() {
    Block& block = the_block();
    try {
        block.run_thread();
    } catch (...) {
        block.failure_ = std::current_exception();
    }
    block.leave();
}

void Block::run_thread() {
    (*body_)();
    if (threads_[current_].copies.pending()) {
        fail("returned with copies that it never waited for", {"the kernel's end", 0});
    }
    if (waiting_ > 0) {
        fail("returned while " + std::to_string(waiting_) + " threads wait at __syncthreads",
             {"the kernel's end", 0});
    }
    ++exited_;
    warps_[current_ / kLanes].exited |= 1u << current_ % kLanes;
}

void Block::run_block(std::size_t shared_bytes) {
    shared_.begin_block(shared_bytes);
    waiting_ = exited_ = ready_warps_ = warp_ = 0;
    failure_ = nullptr;
    std::fill(warps_.begin(), warps_.end(), Warp{});
    for (unsigned t = 0; t < count_; ++t) {
        threads_[t].copies.clear();
        threads_[t].fiber.prepare(stacks_[t], Stacks::kSize, begin_thread);
        make_ready(t / kLanes, 1u << t % kLanes);
    }
    warp_ = pick(ready_warps_);
    become(static_cast<unsigned>(next()));
    in_thread_ = true;
    Fiber::switch_over(scheduler_, threads_[current_].fiber);
    in_thread_ = false;
    // Here when every thread has returned, or none can go on, or one has failed. The stacks of
    // those that have not returned are abandoned: kernels hold nothing that must be destroyed.
    if (failure_) {
        std::rethrow_exception(std::exchange(failure_, nullptr));
    }
    if (exited_ < count_) {
        report_divergence();
    }
    const std::string damage = shared_.damage();
    if (!damage.empty()) {
        throw cuda::Error("emulation: block (" + std::to_string(blockIdx.x) + ", " +
                          std::to_string(blockIdx.y) + "): " + damage);
    }
}

void Block::run_grid(dim3 grid, unsigned threads, std::size_t shared_bytes,
                     const std::function<void()>& body) {
    if (grid.x == 0 || grid.x > 0x7fffffffu || grid.y == 0 || grid.y > 65535 || threads == 0 ||
        threads > kMaxThreads || shared_bytes > cuda::shared_memory_limit()) {
        throw cuda::Error("kernel launch: invalid configuration: grid " + std::to_string(grid.x) +
                          " × " + std::to_string(grid.y) + ", " + std::to_string(threads) +
                          " threads, " + std::to_string(shared_bytes) + " bytes of shared memory");
    }
    settings_ = Settings::read();
    random_.seed(settings_.seed);
    body_ = &body;
    count_ = threads;
    gridDim = grid;
    blockDim = {threads, 1, 1};
    threadIdx = {0, 0, 0};
    stacks_.provide(threads);
    threads_.resize(threads);
    warps_.resize((threads + kLanes - 1) / kLanes);
    const Faults faults(fault);
    for (const unsigned y : shuffled(grid.y, settings_.order, random_)) {
        for (const unsigned x : shuffled(grid.x, settings_.order, random_)) {
            blockIdx = {x, y, 0};
            run_block(shared_bytes);
        }
    }
}

// Called on the signal's stack, in the place of the instruction that failed.
void Block::fault(int signal, const void* address) {
    Block& block = the_block();
    if (!block.in_thread_) {
        return;
    }
    std::ostringstream what;
    if (block.shared_.fences(address)) {
        what << "touched what lies " << block.shared_.place(address);
    } else if (block.stacks_.contains(address)) {
        what << "needs more than " << Stacks::kSize << " bytes of stack";
    } else if (signal == SIGILL || signal == SIGTRAP) {
        what << "a misaligned access, or an index beyond an array";
    } else {
        what << strsignal(signal) << " at address " << address;
    }
    block.failure_ = std::make_exception_ptr(
        cuda::Error("emulation: " + block.whereabouts() + ": " + what.str()));
    Fiber abandoned;
    Fiber::switch_over(abandoned, block.scheduler_);
}

// ---- what kernels see --------------------------------------------------------------------------

void run(dim3 grid, unsigned threads, std::size_t shared_bytes, const std::function<void()>& body) {
    static std::mutex turn;
    const std::lock_guard lock(turn);
    the_block().run_grid(grid, threads, shared_bytes, body);
}

void barrier(Site at) {
    the_block().barrier(at);
}

void meet(const char* name, void* mine, Exchange exchange, Site at) {
    the_block().meet(name, mine, exchange, at);
}

} // namespace relex::emulation

namespace relex::cuda {

unsigned char* dynamic_shared() {
    return emulation::the_block().shared().data();
}

} // namespace relex::cuda
