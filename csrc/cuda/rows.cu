// The rows' table, from kernel arguments to device memory.
#include "rows.cuh"

namespace relex::cuda {

namespace {

constexpr int kPerLaunch = 256; // rows; their arguments stay below the 4 KiB that any device takes

struct Slice {
    const unsigned char* data[kPerLaunch];
    DType dtype[kPerLaunch];
    int first, count;
};

__global__ void write_slice(const Slice slice, Row* table) {
    const int i = static_cast<int>(threadIdx.x);
    if (i < slice.count) {
        table[slice.first + i] = {slice.data[i], slice.dtype[i]};
    }
}

} // namespace

Table write_table(const Rows& rows, Row* table, cudaStream_t stream) {
    for (int first = 0; first < rows.count; first += kPerLaunch) {
        Slice slice{};
        slice.first = first;
        slice.count = rows.count - first < kPerLaunch ? rows.count - first : kPerLaunch;
        for (int i = 0; i < slice.count; ++i) {
            slice.data[i] = rows.data[first + i];
            slice.dtype[i] = rows.dtype[first + i];
        }
        launch(write_slice, 1, 1, kPerLaunch, 0, stream, slice, table);
    }
    return {table, rows.count, {rows.base, rows.base_dtype}};
}

} // namespace relex::cuda
