// Rows of a matrix times an input that lies in registers (columns.cuh): the product that decoding spends its time in. Each
// weight is read once, 16 bytes a thread, a few rows ahead of the arithmetic.
#pragma once
#include "columns.cuh"

#define AHEAD 4  // rows that a thread has on their way: with 16 warps 32 KB a multiprocessor, more than latency takes

// W [R, K]: row-major, with a bfloat16 scale for 64 columns if it is of whole numbers, scales [R, K / 64].
template <int kind> struct Matrix {
    const u8* weights;
    const u16* scales;
    int K;
    __device__ __forceinline__ size_t row_bytes() const { return kind == FP16 ? K * 2 : kind == INT8 ? K : K / 2; }
};

// A thread's pieces of AHEAD rows: row, row + groups, ..
template <int kind> struct Batch {
    uint4 w[AHEAD];
    u32 s[AHEAD];
    __device__ __forceinline__ void read(const Matrix<kind>& m, const Place<kind>& at, int row, int end) {
#pragma unroll
        for (int j = 0; j < AHEAD; j++, row += at.groups) {
            bool wanted = at.active && row < end;
            w[j] = wanted ? read_once(m.weights + row * m.row_bytes() + at.piece * 16) : make_uint4(0, 0, 0, 0);
            if (kind != FP16)
                s[j] = wanted ? m.scales[(size_t)row * (m.K / N) + at.piece / Piece<kind>::OF_A_GROUP] : 0;
        }
    }
};

// The sums over a warp of v[AHEAD]; every lane gets that of row `lane / 8`, AHEAD being 4.
__device__ __forceinline__ float sums_of_rows(const float* v) {
    int lane = threadIdx.x % LANES;
    bool upper = lane & 16;
    float a = (upper ? v[2] : v[0]) + __shfl_xor_sync(ALL_LANES, upper ? v[0] : v[2], 16);
    float b = (upper ? v[3] : v[1]) + __shfl_xor_sync(ALL_LANES, upper ? v[1] : v[3], 16);
    upper = lane & 8;
    return sum_of_neighbours<8>((upper ? b : a) + __shfl_xor_sync(ALL_LANES, upper ? a : b, 8));
}

// Rows begin .. end - 1, each as a sum for every warp that has a part of it: sums [end - begin, parts] in shared memory.
// `batch` holds the first of them already. To be followed by __syncthreads.
template <int kind>
__device__ __forceinline__ void multiply(const Matrix<kind>& m, const Place<kind>& at, const Input<kind>& x,
                                         Batch<kind>& batch, int begin, int end, float* sums) {
    if (at.group >= at.groups) return;
    for (int row = begin + at.group; row < end; row += AHEAD * at.groups) {
        Batch<kind> next;
        next.read(m, at, row + AHEAD * at.groups, end);
        float v[AHEAD];
#pragma unroll
        for (int j = 0; j < AHEAD; j++) v[j] = at.active ? x.dot(batch.w[j], batch.s[j]) : 0.f;
        float sum = sums_of_rows(v);
        int mine = row + threadIdx.x % LANES / 8 * at.groups;
        if (threadIdx.x % 8 == 0 && mine < end) sums[(mine - begin) * at.parts + at.part] = sum;
        batch = next;
    }
}

// Row `row` of those sums.
template <int kind> __device__ __forceinline__ float row_sum(const float* sums, const Place<kind>& at, int row) {
    float total = 0;
    for (int i = 0; i < at.parts; i++) total += sums[row * at.parts + i];
    return total;
}

// Shared memory of a block: the rounded input, then the sums of its rows.
extern __shared__ __align__(16) float memory[];
__device__ __forceinline__ float* row_sums(int K) { return memory + Rounded::words(K); }
