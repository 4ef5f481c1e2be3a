// Y += Δ (Δᵀ U), one pass: a block of threads takes one part of the columns, chunk by chunk.
//
// A chunk's strips are staged in shared memory once and used twice: z = Δᵀ U, then Y += Δ z. Eight
// warps share the rows; in both products a warp forms the deltas of its own rows only, so nothing
// but z crosses warps. While a chunk is computed the next ones are on their way.
#include "rows.cuh"

namespace relex::cuda {

namespace {

constexpr int kWarps = 8;
constexpr int kThreads = 32 * kWarps;
constexpr int kTogether = 8; // rows whose sums over a warp's lanes are taken at once
constexpr int kVectors = 4;  // columns of U of one launch, at most
constexpr int kStages = 3;
constexpr std::size_t kMostParts = 1024; // of one launch: several times the multiprocessors

struct Shape {
    std::size_t columns;
    int item; // bytes of the widest dtype among the rows and the base
    bool all_bf16;
};

// V: columns of a chunk that one lane holds. Rows of N bytes an element.
template <int V> struct Chunk {
    static constexpr int kColumns = 32 * V;
    static constexpr int kShift = V == 4 ? 4 : V == 2 ? 3 : 2; // log2 of a bf16 row's 16 bytes

    // Shared memory: the staged rows, the base last; then z, whole and by warp; then y and energy.
    static std::size_t stage_bytes(int rows, int item) {
        return static_cast<std::size_t>(rows + 1) * kColumns * static_cast<std::size_t>(item);
    }
    static std::size_t sums_bytes(int rows, int k) {
        return sizeof(float) * (static_cast<std::size_t>(k) * kColumns * (1 + kWarps) +
                                static_cast<std::size_t>(rows) * static_cast<std::size_t>(k + 1));
    }
};

// V consecutive elements, staged in shared memory.
template <int V> __device__ __forceinline__ void staged_values(const unsigned char* slot, int lane,
                                                               DType dtype, float (&x)[V]) {
    if (dtype == DType::f32) {
        const auto* from = reinterpret_cast<const float*>(slot) + lane * V;
        if constexpr (V == 4) {
            const float4 v = *reinterpret_cast<const float4*>(from);
            x[0] = v.x, x[1] = v.y, x[2] = v.z, x[3] = v.w;
        } else if constexpr (V == 2) {
            const float2 v = *reinterpret_cast<const float2*>(from);
            x[0] = v.x, x[1] = v.y;
        } else {
            x[0] = *from;
        }
        return;
    }
    const auto* from = reinterpret_cast<const unsigned short*>(slot) + lane * V;
    if constexpr (V == 1) {
        x[0] = expand(*from, dtype);
    } else {
        const auto* words = reinterpret_cast<const unsigned*>(from);
        unsigned word[V / 2];
        if constexpr (V == 4) {
            const uint2 v = *reinterpret_cast<const uint2*>(words);
            word[0] = v.x, word[1] = v.y;
        } else {
            word[0] = *words;
        }
#pragma unroll
        for (int i = 0; i < V / 2; ++i) {
            x[2 * i] = low_half(word[i], dtype);
            x[2 * i + 1] = high_half(word[i], dtype);
        }
    }
}

// The same from global memory, where T is too large to stage; zeros from `end` on.
template <int V> __device__ __forceinline__ void global_values(Row row, std::size_t column,
                                                               std::size_t end, float (&x)[V]) {
#pragma unroll
    for (int i = 0; i < V; ++i) {
        const std::size_t c = column + static_cast<std::size_t>(i);
        x[i] = c < end ? value_at(row, c) : 0.0f;
    }
}

// One step of sum_lanes: N values in each lane become N / 2, each the sum over two lanes.
template <int N> __device__ __forceinline__ void halve(float* v, int lane, int distance) {
    const bool upper = (lane & distance) != 0;
#pragma unroll
    for (int i = 0; i < N / 2; ++i) {
        const float keep = upper ? v[i + N / 2] : v[i];
        const float give = upper ? v[i] : v[i + N / 2];
        v[i] = keep + shuffle_xor(give, distance);
    }
}

// The sums over the 32 lanes of N values each (a power of two from 8 to 32). Value n's ends up, in
// v[0], in the lanes whose upper bits spell n: N − 1 exchanges and a few more, not 5 N.
template <int N> __device__ __forceinline__ int sum_lanes(float (&v)[N], int lane) {
    halve<N>(v, lane, 16);
    halve<N / 2>(v, lane, 8);
    halve<N / 4>(v, lane, 4);
    if constexpr (N >= 16) {
        halve<N / 8>(v, lane, 2);
    } else {
        v[0] += shuffle_xor(v[0], 2);
    }
    if constexpr (N >= 32) {
        halve<N / 16>(v, lane, 1);
    } else {
        v[0] += shuffle_xor(v[0], 1);
    }
    return lane / (32 / N);
}

// How rows are read: staged, all of them bf16; staged, each of its own dtype; where they lie.
enum class Read { bf16, staged, global };

template <int V, int K, Read R> __global__ void __launch_bounds__(kThreads, 2)
    power_kernel(const Table table, Shape shape, std::size_t first_part,
                 const float* __restrict__ u, int u_stride, bool wants_energy,
                 float* __restrict__ partial) {
    constexpr bool Staged = R != Read::global;
    constexpr int kColumns = Chunk<V>::kColumns, kShift = Chunk<V>::kShift;
    const int rows = table.count;
    const int tid = static_cast<int>(threadIdx.x), warp = tid / 32, lane = tid % 32;
    const std::size_t begin = (first_part + blockIdx.x) * kPart;
    const std::size_t end = shape.columns < begin + kPart ? shape.columns : begin + kPart;
    const int chunks = static_cast<int>((end - begin + kColumns - 1) / kColumns);

    const int item = R == Read::bf16 ? 2 : shape.item;
    const int slot = kColumns * item; // bytes of a staged row
    const std::size_t stage_size = Staged ? static_cast<std::size_t>(rows + 1) * slot : 0;
    unsigned char* const stages = dynamic_shared();
    auto* const z = reinterpret_cast<float*>(stages + kStages * stage_size); // (K, columns)
    float* const z_of_warp = z + K * kColumns;                               // (warps, K, columns)
    float* const y = z_of_warp + kWarps * K * kColumns;                      // (rows, K)
    float* const energy = y + rows * K;                                      // (rows)

    for (int i = tid; i < rows * (K + 1); i += kThreads) {
        y[i] = 0.0f;
    }

    const auto stage_chunk = [&](int chunk) {
        if (Staged && chunk < chunks) {
            unsigned char* const to =
                stages + static_cast<std::size_t>(chunk % kStages) * stage_size;
            const std::size_t first = begin + static_cast<std::size_t>(chunk) * kColumns;
            // Sixteen bytes a thread; a slot has room for the widest dtype.
            const int shift = kShift + (item == 4 ? 1 : 0);
            for (int i = tid; i < (rows + 1) << shift; i += kThreads) {
                const int t = i >> shift, v = i - (t << shift);
                const Row row = t < rows ? table.row[t] : table.base;
                const std::size_t size = R == Read::bf16 ? 2 : item_size(row.dtype);
                if (row.data != nullptr && 16 * v < kColumns * static_cast<int>(size)) {
                    stage(to + i * 16, row.data, first * size + 16 * static_cast<std::size_t>(v),
                          end * size);
                }
            }
        }
        commit_copies();
    };
    const auto values = [&](int chunk, int t, float(&x)[V]) {
        if constexpr (Staged) {
            const unsigned char* from =
                stages + static_cast<std::size_t>(chunk % kStages) * stage_size;
            const DType dtype = R == Read::bf16 ? DType::bf16
                                : t < rows      ? table.row[t].dtype
                                                : table.base.dtype;
            staged_values<V>(from + static_cast<std::size_t>(t) * slot, lane, dtype, x);
        } else {
            global_values<V>(t < rows ? table.row[t] : table.base,
                             begin + static_cast<std::size_t>(chunk * kColumns + lane * V), end, x);
        }
    };

    for (int chunk = 0; chunk < kStages - 1; ++chunk) {
        stage_chunk(chunk);
    }
    for (int chunk = 0; chunk < chunks; ++chunk) {
        wait_copies<kStages - 2>();
        __syncthreads(); // this chunk is here, and nobody still reads the one staged over next
        stage_chunk(chunk + kStages - 1);

        float base[V] = {};
        if (table.base.data != nullptr) {
            values(chunk, rows, base);
        }

        float sums[K][V] = {};
#pragma unroll 4
        for (int t = warp; t < rows; t += kWarps) {
            float x[V];
            values(chunk, t, x);
#pragma unroll
            for (int q = 0; q < K; ++q) {
                const float weight = __ldg(u + t * u_stride + q);
#pragma unroll
                for (int i = 0; i < V; ++i) {
                    sums[q][i] = fmaf(x[i] - base[i], weight, sums[q][i]);
                }
            }
        }
#pragma unroll
        for (int q = 0; q < K; ++q) {
#pragma unroll
            for (int i = 0; i < V; ++i) { // lanes side by side: no bank conflicts
                z_of_warp[(warp * K + q) * kColumns + i * 32 + lane] = sums[q][i];
            }
        }
        __syncthreads();
        for (int i = tid; i < K * kColumns; i += kThreads) {
            float sum = 0.0f;
#pragma unroll
            for (int w = 0; w < kWarps; ++w) {
                sum += z_of_warp[w * K * kColumns + i];
            }
            z[i] = sum;
        }
        __syncthreads();
#pragma unroll
        for (int q = 0; q < K; ++q) {
#pragma unroll
            for (int i = 0; i < V; ++i) {
                sums[q][i] = z[q * kColumns + i * 32 + lane];
            }
        }
        for (int first = warp; first < rows; first += kWarps * kTogether) {
            float products[kTogether * K], squares[kTogether];
#pragma unroll
            for (int r = 0; r < kTogether; ++r) {
                const int t = first + r * kWarps;
                float x[V];
                if (t < rows) {
                    values(chunk, t, x);
                } else {
#pragma unroll
                    for (int i = 0; i < V; ++i) {
                        x[i] = base[i];
                    }
                }
                squares[r] = 0.0f;
#pragma unroll
                for (int q = 0; q < K; ++q) {
                    products[r * K + q] = 0.0f;
                }
#pragma unroll
                for (int i = 0; i < V; ++i) {
                    const float d = x[i] - base[i];
#pragma unroll
                    for (int q = 0; q < K; ++q) {
                        products[r * K + q] = fmaf(d, sums[q][i], products[r * K + q]);
                    }
                    if (wants_energy) {
                        squares[r] = fmaf(d, d, squares[r]);
                    }
                }
            }
            // One lane for each sum adds it to the warp's own rows of y.
            const int n = sum_lanes(products, lane);
            const int t = first + n / K * kWarps;
            if (t < rows && lane % (32 / (kTogether * K)) == 0) {
                y[t * K + n % K] += products[0];
            }
            if (wants_energy) {
                const int r = sum_lanes(squares, lane);
                const int row = first + r * kWarps;
                if (row < rows && lane % (32 / kTogether) == 0) {
                    energy[row] += squares[0];
                }
            }
        }
    }
    wait_copies<0>();
    __syncthreads();
    float* const to = partial + static_cast<std::size_t>(blockIdx.x) * rows * (K + 1);
    for (int i = tid; i < rows * (K + 1); i += kThreads) {
        to[i] = y[i];
    }
}

// Adds the parts to y (T × stride, K columns of it) and energy, in fp64 and in their order.
template <int K> __global__ void add_parts(const float* __restrict__ partial, int parts, int rows,
                                           double* y, int y_stride, double* energy) {
    const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
    const int size = rows * (K + 1);
    if (i >= (energy == nullptr ? rows * K : size)) {
        return;
    }
    double* const to = i < rows * K ? y + static_cast<std::size_t>(i / K) * y_stride + i % K
                                    : energy + (i - rows * K);
    double sum = *to;
#pragma unroll 8
    for (int part = 0; part < parts; ++part) {
        sum += static_cast<double>(partial[static_cast<std::size_t>(part) * size + i]);
    }
    *to = sum;
}

using Kernel = void (*)(Table, Shape, std::size_t, const float*, int, bool, float*);

struct Choice {
    Kernel kernel;
    std::size_t shared;
};

template <int V, int K> Choice staged_choice(int rows, const Shape& shape) {
    return {shape.all_bf16 ? power_kernel<V, K, Read::bf16> : power_kernel<V, K, Read::staged>,
            kStages * Chunk<V>::stage_bytes(rows, shape.item) + Chunk<V>::sums_bytes(rows, K)};
}

// The widest chunk of which two blocks fit a multiprocessor; else of which one does. Its width, and
// with it the last bits, depend on how much shared memory this device has.
template <int K> Choice choose(int rows, const Shape& shape) {
    const std::size_t limit = shared_memory_limit();
    const Choice choices[] = {staged_choice<4, K>(rows, shape), staged_choice<2, K>(rows, shape),
                              staged_choice<1, K>(rows, shape)};
    for (const std::size_t most : {limit / 2, limit}) {
        for (const Choice& choice : choices) {
            if (choice.shared <= most) {
                return choice;
            }
        }
    }
    return {power_kernel<4, K, Read::global>, Chunk<4>::sums_bytes(rows, K)};
}

struct Work {
    Table table;
    Shape shape;
    const float* u;
    int k;
    double* y;
    double* energy;
    float* partial;
    std::size_t parts_at_once;
    cudaStream_t stream;
};

// Columns q to q + K of U; the first launch takes the energy along.
template <int K> void step_some(const Work& w, int q) {
    const Choice choice = choose<K>(w.table.count, w.shape);
    double* const energy = q == 0 ? w.energy : nullptr;
    const std::size_t parts = parts_of(w.shape.columns);
    for (std::size_t first = 0; first < parts; first += w.parts_at_once) {
        const std::size_t left = parts - first;
        const std::size_t count = left < w.parts_at_once ? left : w.parts_at_once;
        launch(choice.kernel, static_cast<unsigned>(count), 1, kThreads, choice.shared, w.stream,
               w.table, w.shape, first, w.u + q, w.k, energy != nullptr, w.partial);
        const auto blocks = static_cast<unsigned>(ceil_div(w.table.count * (K + 1), 128));
        launch(add_parts<K>, blocks, 1, 128, 0, w.stream, static_cast<const float*>(w.partial),
               static_cast<int>(count), w.table.count, w.y + q, w.k, energy);
    }
}

Shape shape_of(const Rows& rows, std::size_t columns) {
    Shape shape{columns, 2, true};
    const auto add = [&](DType dtype) {
        shape.item = dtype == DType::f32 ? 4 : shape.item;
        shape.all_bf16 = shape.all_bf16 && dtype == DType::bf16;
    };
    for (int t = 0; t < rows.count; ++t) {
        add(rows.dtype[t]);
    }
    if (rows.base != nullptr) {
        add(rows.base_dtype);
    }
    return shape;
}

std::size_t part_floats(int rows) { // of the widest launch
    return static_cast<std::size_t>(rows) * (kVectors + 1);
}

} // namespace

Needs power_step_needs(int rows, std::size_t columns, int) {
    const std::size_t table = Cutter::padded<Row>(static_cast<std::size_t>(rows));
    const std::size_t parts = parts_of(columns) < kMostParts ? parts_of(columns) : kMostParts;
    return {table + Cutter::padded<float>(part_floats(rows)),
            table + Cutter::padded<float>(part_floats(rows) * (parts > 0 ? parts : 1))};
}

void power_step(const Rows& rows, std::size_t columns, const float* u, int k, double* y,
                double* energy, Workspace workspace, cudaStream_t stream) {
    if (columns == 0) {
        return;
    }
    Cutter cutter(workspace);
    const Table table =
        write_table(rows, cutter.take<Row>(static_cast<std::size_t>(rows.count)), stream);
    const std::size_t room = cutter.left() / (part_floats(rows.count) * sizeof(float));
    const std::size_t parts = room < parts_of(columns) ? room : parts_of(columns);
    const Work work{table,
                    shape_of(rows, columns),
                    u,
                    k,
                    y,
                    energy,
                    cutter.take<float>(part_floats(rows.count) * (parts > 0 ? parts : 1)),
                    parts,
                    stream};
    for (int q = 0; q < k;) {
        switch (k - q) {
        case 1:
            step_some<1>(work, q);
            q += 1;
            break;
        case 2:
        case 3:
            step_some<2>(work, q);
            q += 2;
            break;
        default:
            step_some<kVectors>(work, q);
            q += kVectors;
        }
    }
}

} // namespace relex::cuda
