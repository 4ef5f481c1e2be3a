#include "files.hpp"

#include <algorithm>
#include <cerrno>
#include <string>
#include <system_error>
#include <vector>

#include <sys/mman.h>
#include <unistd.h>

#include "cpu/dispatch.hpp"
#include "io.hpp"

namespace fuzz {

namespace {

constexpr std::size_t kMost = 24000; // bytes
const std::size_t kPage = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));

unsigned char content(std::size_t offset) {
    return static_cast<unsigned char>(1 + (offset ^ offset >> 8) % 255);
}

// A file in memory, open for as long as the process lives.
class Shard {
  public:
    Shard() : descriptor_(memfd_create("shard", MFD_CLOEXEC)), bytes_(kMost) {
        if (descriptor_ < 0) {
            throw std::system_error(errno, std::generic_category(), "memfd_create");
        }
        for (std::size_t i = 0; i < kMost; ++i) {
            bytes_[i] = content(i);
        }
    }

    void write(std::size_t size) {
        cut(0);
        expect(pwrite(descriptor_, bytes_.data(), size, 0) == static_cast<ssize_t>(size),
               "file: expected to write it");
    }

    void cut(std::size_t size) {
        expect(ftruncate(descriptor_, static_cast<off_t>(size)) == 0, "file: expected to cut it");
    }

    std::string path() const { return "/proc/self/fd/" + std::to_string(descriptor_); }

  private:
    int descriptor_;
    std::vector<unsigned char> bytes_;
};

struct Cut {
    std::size_t offset, bytes;
};

std::vector<Cut> any_cuts(Input& input, std::size_t most) {
    std::vector<Cut> cuts(1 + input.below(6));
    for (Cut& cut : cuts) {
        cut.offset = input.below(most + 1);
        cut.bytes = input.below(most + 1 - cut.offset);
    }
    return cuts;
}

// The first of the cuts that needs more than `size` bytes, or −1.
std::ptrdiff_t first_beyond(const std::vector<Cut>& cuts, std::size_t size) {
    const auto beyond = [&](const Cut& c) { return c.bytes > 0 && c.offset + c.bytes > size; };
    const auto found = std::find_if(cuts.begin(), cuts.end(), beyond);
    return found == cuts.end() ? -1 : found - cuts.begin();
}

void check_read(Input& input, const relex::File& file, std::size_t size) {
    const std::vector<Cut> cuts = any_cuts(input, kMost + 5000);
    std::vector<std::vector<unsigned char>> to;
    std::vector<relex::Strip> strips;
    for (const Cut& cut : cuts) {
        to.emplace_back(cut.bytes);
        strips.push_back({file.descriptor(), cut.offset,
                          reinterpret_cast<std::uintptr_t>(to.back().data()), cut.bytes});
    }
    const relex::StopFlag stop{false};
    const relex::StripError found = relex::read(strips.data(), strips.size(), stop);
    expect(found.index == first_beyond(cuts, size) && found.code == 0,
           "read: expected the first strip past the end");
    for (std::size_t i = 0; i < cuts.size(); ++i) {
        if (static_cast<std::ptrdiff_t>(i) == found.index) {
            break;
        }
        for (std::size_t b = 0; b < cuts[i].bytes; ++b) {
            expect(to[i][b] == content(cuts[i].offset + b), "read: expected the file's bytes");
        }
    }
}

// Columns of rows that all lie in the mapping, through a kernel.
void compute(Input& input, const relex::File& file, std::size_t size) {
    const auto& supported = relex::cpu::supported();
    const auto& kernels = *supported[input.below(supported.size())];
    const auto* memory = reinterpret_cast<const unsigned char*>(file.address());
    std::vector<const unsigned char*> data;
    std::vector<relex::DType> dtypes;
    const std::size_t columns = input.below(size / 4 + 1);
    for (std::size_t t = 0; t <= input.below(4); ++t) {
        data.push_back(memory + input.below(size - 4 * columns + 1));
        dtypes.push_back(static_cast<relex::DType>(input.below(3)));
    }
    const relex::cpu::Rows rows{data.data(), dtypes.data(), static_cast<int>(data.size()),
                                memory + input.below(size - 4 * columns + 1), relex::DType::f32};
    std::vector<double> sums(data.size() * data.size());
    expect(relex::cpu::gram(kernels, rows, columns, sums.data(), 1, nullptr),
           "gram: expected to finish");
}

void check_mapped(Input& input, Shard& shard, const relex::File& file, std::size_t size) {
    const std::uint64_t before = relex::Guard::damages();
    const std::vector<Cut> cuts = any_cuts(input, size);
    std::vector<relex::Strip> strips;
    for (const Cut& cut : cuts) {
        strips.push_back({-1, 0, file.address() + cut.offset, cut.bytes});
    }
    relex::announce(strips.data(), strips.size());
    const std::size_t early = input.rarely(3) ? input.below(size + 1) : size;
    shard.cut(early);
    const std::size_t pages = (early + kPage - 1) / kPage * kPage;
    const relex::StopFlag stop{false};
    const relex::StripError found = relex::populate(strips.data(), strips.size(), stop);
    expect(found.index == first_beyond(cuts, pages) && found.code == 0,
           "populate: expected the first strip past the end");
    expect(!file.damaged(), "populate: expected to touch nothing that is lost");
    const std::size_t late = input.rarely(2) ? input.below(early + 1) : early;
    shard.cut(late);
    if (input.rarely(2)) {
        compute(input, file, size);
    }
    const std::size_t kept = (late + kPage - 1) / kPage * kPage;
    const auto* memory = reinterpret_cast<const volatile unsigned char*>(file.address());
    for (const Cut& cut : cuts) {
        for (std::size_t at = cut.offset; at < cut.offset + cut.bytes; at += 1 + kPage / 7) {
            const unsigned char byte = memory[at];
            expect(byte == (at < late && !file.damaged() ? content(at) : 0),
                   "mapping: expected the file's bytes, or zeros");
            expect(at < kept || file.damaged(), "mapping: expected it to be marked");
        }
    }
    expect(relex::Guard::damages() == before + (file.damaged() ? 1 : 0),
           "mapping: expected to be counted");
    expect(!file.damaged() || kept < size, "mapping: expected a whole file to stay whole");
    relex::release_strips(strips.data(), strips.size());
}

} // namespace

void check_file(Input& input) {
    static Shard shard;
    const std::size_t size = input.below(kMost + 1);
    shard.write(size);
    const bool map = input.rarely(2);
    const relex::File file(shard.path(), map);
    expect(file.size() == size, "file: expected its size");
    if (map && size > 0) {
        check_mapped(input, shard, file, size);
    } else if (!map) {
        check_read(input, file, size);
    }
}

} // namespace fuzz
