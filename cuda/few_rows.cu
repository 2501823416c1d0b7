// One token each of 2 to 16 sequences: the products with rows of big matrices. See few.cuh.
//
// The warps of a block share the columns of its rows, and copy their tiles into shared memory ahead of the arithmetic. The
// first ones are requested before the previous kernel has ended.
#include "few.cuh"
#include "projected.cuh"

// Shared memory of a block: tiles in flight, a stage after the other; sums of a tile by each warp, twice; the inputs.
extern __shared__ __align__(16) float memory[];

#define SUMS (WARPS * MOST_TOKENS * TILE)  // floats
#define FIXED_BYTES (STAGES * THREADS * 16 + 2 * SUMS * 4)

// x [T, K] times the rows begin .. end - 1 of a matrix W [.., K]: finish(token, row, sum), once for each.
template <class Finish>
__device__ __forceinline__ void multiply_rows(const u16* weights, int K, int begin, int end, const u16* x, int T,
                                              const Finish& finish) {
    const int t = threadIdx.x, warp = t / LANES, lane = t % LANES;
    const int mine = (K / CHUNK - warp + WARPS - 1) / WARPS, tiles = (end - begin + TILE - 1) / TILE;  // mine: chunks
    uint4* ring = (uint4*)memory + t;
    float* sums = memory + STAGES * THREADS * 4;
    u16* inputs = (u16*)(sums + 2 * SUMS);
    const int stride = K + INPUT_PAD;
    int next_tile = 0, next_chunk = 0, stage = 0;
    auto request = [&](int to) {
        const int row = begin + next_tile * TILE + lane / 4;
        if (row < end && next_chunk < mine)
            copy_in_background(ring + to * THREADS, weights + (size_t)row * K + (warp + next_chunk * WARPS) * CHUNK + lane % 4 * 8);
        end_of_copies();
        if (++next_chunk >= mine) {
            next_chunk = 0;
            next_tile++;
        }
    };
    for (int i = 0; i < STAGES; i++) request(i);
    wait_for_previous();
    let_next_begin();
    for (int i = t; i < T * K / 8; i += THREADS) {
        const int token = i / (K / 8), column = i % (K / 8) * 8;
        *(uint4*)(inputs + token * stride + column) = *(const uint4*)(x + (size_t)token * K + column);
    }
    __syncthreads();
    for (int tile = 0; tile < tiles; tile++) {
        float4 sum = zeros4();
        for (int i = 0; i < mine; i++) {
            wait_for_copies<STAGES - 1>();
            const Inputs in(inputs, stride, T, (warp + i * WARPS) * CHUNK);
            in.multiply(sum, ring[stage * THREADS]);
            request(stage);
            stage = stage + 1 == STAGES ? 0 : stage + 1;
        }
        float* here = sums + tile % 2 * SUMS;
        each_sum(sum, T, [&](int token, int row, float v) { here[(warp * MOST_TOKENS + token) * TILE + row] = v; });
        __syncthreads();
        const int token = t / TILE, row = begin + tile * TILE + t % TILE;
        if (token >= T || row >= end) continue;
        float total = 0;
#pragma unroll
        for (int i = 0; i < WARPS; i++) total += here[i * MOST_TOKENS * TILE + t];
        finish(token, row, total);
    }
}

// A block's share of R rows.
template <class Finish>
__device__ __forceinline__ void multiply_share(const u16* weights, int K, int R, const u16* x, int T, const Finish& finish) {
    multiply_rows(weights, K, share(R, blockIdx.x, gridDim.x), share(R, blockIdx.x + 1, gridDim.x), x, T, finish);
}

// r, k, v and the first halves of the low-rank maps, each of its own input.
extern "C" __global__ void __launch_bounds__(THREADS)
few_project(const u16* mixed,  // [6, T, C] float16, as for r, k, v, w, a and g
            const u16* main,   // [3 C, C] receptance, key, value
            const u16* low,    // [the sum of ranks, C] w1, a1, v1, g1
            float* rkv,        // [3, T, C]
            u16* hidden,       // [T, the sum of ranks] float16, the inputs of the second halves
            int T, int C,
            int end_r, int end_k, int end_v, int end_w1, int end_a1, int end_v1,  // blocks; g1 has the last ones
            int rank_w, int rank_a, int rank_v, int rank_g) {
    const int ends[MATRICES] = {end_r, end_k, end_v, end_w1, end_a1, end_v1, (int)gridDim.x};
    const Projected mine(C, ends, rank_w, rank_a, rank_v, rank_g);
    const int matrix = mine.matrix, ranks = rank_w + rank_a + rank_v + rank_g;
    const int input = matrix == V1 ? VALUE : matrix == G1 ? 5 : matrix;
    const u16* x = mixed + (size_t)input * T * C;
    if (matrix < W1)
        multiply_rows(main, C, mine.begin, mine.end, x, T, [&](int token, int row, float sum) {
            rkv[((size_t)matrix * T + token) * C + row - matrix * C] = sum;
        });
    else
        multiply_rows(low, C, mine.begin, mine.end, x, T, [&](int token, int row, float sum) {
            if (matrix == W1) sum = tanhf(sum);
            if (matrix == G1) sum = sigmoid(sum);
            hidden[(size_t)token * ranks + row] = (u16)to_halves(sum, 0);
        });
}

// x += output gated
extern "C" __global__ void __launch_bounds__(THREADS)
few_output(const u16* gated,    // [T, C] float16
           const u16* weights,  // [C, C]
           float* x,            // [T, C]
           int T, int C) {
    multiply_share(weights, C, C, gated, T, [&](int token, int row, float sum) { x[(size_t)token * C + row] += sum; });
}

// h = relu(key mixed)^2
extern "C" __global__ void __launch_bounds__(THREADS)
few_hidden(const u16* mixed,    // [T, C] float16
           const u16* weights,  // [F, C]
           u16* h,              // [T, F] float16
           int T, int C, int F) {
    const float LARGEST = 65504.f;  // of float16
    multiply_share(weights, C, F, mixed, T, [&](int token, int row, float sum) {
        const float up = fmaxf(sum, 0.f);
        h[(size_t)token * F + row] = (u16)to_halves(fminf(up * up, LARGEST), 0);
    });
}

extern "C" __global__ void __launch_bounds__(THREADS)
few_head(const u16* mixed,    // [T, C] float16
         const u16* weights,  // [V, C]
         float* logits,       // [T, V]
         int T, int C, int V) {
    multiply_share(weights, C, V, mixed, T, [&](int token, int row, float sum) { logits[(size_t)token * V + row] = sum; });
}
