// Rows of a matrix times an input that lies in registers (columns.cuh): the product that decoding spends its time in. Each
// weight is read once, 16 bytes a thread, a few rows ahead of the arithmetic.
#pragma once
#include "columns.cuh"

#define AHEAD 8  // rows that a thread has on their way, and as many again: 128 KB a multiprocessor with 16 warps

// W [R, K]: row-major, with a bfloat16 scale for 64 columns if it is of whole numbers, scales [R, K / 64].
template <int kind> struct Matrix {
    const u8* weights;
    const u16* scales;
    int K;
    __device__ __forceinline__ size_t row_bytes() const { return K / Piece<kind>::COLUMNS * 16; }
};

// A thread's pieces of AHEAD rows: row, row + groups, ..
template <int kind> struct Batch {
    uint4 w[AHEAD];
    u32 s[AHEAD];
    __device__ __forceinline__ void read(const Matrix<kind>& m, const Place<kind>& at, int row, int end) {
        const u8* weights = m.weights + row * m.row_bytes() + at.piece * 16;
        const u16* scales = m.scales + (size_t)row * (m.K / N) + at.piece / Piece<kind>::OF_A_GROUP;
#pragma unroll
        for (int j = 0; j < AHEAD; j++) {
            const bool wanted = at.group < at.groups && row < end;
            w[j] = read_once<uint4>(weights, wanted);
            if (kind != FP16) s[j] = wanted ? *scales : 0;
            row += at.groups, weights += at.groups * m.row_bytes(), scales += at.groups * (m.K / N);
        }
    }
};

// The sums over a warp of v [n]; every lane gets that of v[lane / (LANES / n)].
template <int n> __device__ __forceinline__ float transposed_sum(const float* v) {
    if constexpr (n == 1) return v[0];
    else {
        const int distance = LANES / 2 * n / AHEAD;
        const bool upper = threadIdx.x & distance;
        float half[n / 2];
#pragma unroll
        for (int i = 0; i < n / 2; i++)
            half[i] = (upper ? v[i + n / 2] : v[i]) + __shfl_xor_sync(ALL_LANES, upper ? v[i] : v[i + n / 2], distance);
        return transposed_sum<n / 2>(half);
    }
}

// Rows begin .. end - 1, each as a sum for every warp that has a part of it: sums [end - begin, parts] in shared memory.
// `batch` holds the first of them already. To be followed by __syncthreads.
template <int kind>
__device__ __forceinline__ void multiply(const Matrix<kind>& m, const Place<kind>& at, const Input<kind>& x,
                                         Batch<kind>& batch, int begin, int end, float* sums) {
    if (at.group >= at.groups) return;
    const int step = AHEAD * at.groups;
    auto add_up = [&](const Batch<kind>& rows, int row) {
        float v[AHEAD];
#pragma unroll
        for (int j = 0; j < AHEAD; j++) v[j] = x.dot(rows.w[j], rows.s[j]);
        const float sum = sum_of_neighbours<LANES / AHEAD>(transposed_sum<AHEAD>(v));
        const int mine = row + threadIdx.x % LANES / (LANES / AHEAD) * at.groups;
        if (threadIdx.x % (LANES / AHEAD) == 0 && mine < end) sums[(mine - begin) * at.parts + at.part] = sum;
    };
    for (int row = begin + at.group; row < end; row += 2 * step) {
        Batch<kind> next;
        next.read(m, at, row + step, end);
        add_up(batch, row);
        if (row + step >= end) break;
        batch.read(m, at, row + 2 * step, end);
        add_up(next, row + step);
    }
}

// Row `row` of those sums.
template <int kind> __device__ __forceinline__ float row_sum(const float* sums, const Place<kind>& at, int row) {
    float total = 0;
    for (int i = 0; i < at.parts; i++) total += sums[row * at.parts + i];
    return total;
}

// Shared memory of a block: the input, then the sums of its rows.
extern __shared__ __align__(16) float memory[];
__device__ __forceinline__ float* row_sums(int K) { return memory + K; }
