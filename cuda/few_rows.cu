// One token each of 2 to 16 sequences: the products with rows of big matrices. See few.cuh.
//
// The warps of a block share the columns of its rows, and copy their tiles into shared memory ahead of the arithmetic. The
// first ones are requested before the previous kernel has ended.
#include "few.cuh"
#include "projected.cuh"

// Shared memory of a block: chunks in flight, a stage after the other, and scales of integers; sums of a turn by each warp,
// twice; the inputs.
extern __shared__ __align__(16) float memory[];

#define SUMS (WARPS * MOST_TOKENS * TILE)  // floats
#define SCALE_BYTES (KIND == FP16 ? 0 : 4)
#define FIXED_BYTES (STAGES * THREADS * (16 + SCALE_BYTES) + 2 * SUMS * 4)

// W [.., K]: row-major; of integers with a bfloat16 scale for 64 columns, scales [.., K / 64].
struct Matrix {
    const u8* weights;
    const u16* scales;
    int K;
};

// x [T, K] times the rows begin .. end - 1 of a matrix: finish(token, row, sum), once for each.
//
// A chunk of integers has more columns, and there would be too few for all warps: so these are divided into groups, each with
// a tile of its own.
template <int kind, class Finish>
__device__ __forceinline__ void multiply_rows(const Matrix& m, int begin, int end, const u16* x, int T, const Finish& finish) {
    const int GROUPS = kind == FP16 ? 1 : kind == INT8 ? 2 : 4, OF_A_GROUP = WARPS / GROUPS, OF_A_TILE = MOST_TOKENS * TILE;
    const int COLUMNS = Chunk<kind>::COLUMNS, K = m.K;
    const int t = threadIdx.x, warp = t / LANES, lane = t % LANES, group = warp / OF_A_GROUP, first = warp % OF_A_GROUP;
    const int mine = (K / COLUMNS - first + OF_A_GROUP - 1) / OF_A_GROUP;  // chunks
    const int turns = (end - begin + GROUPS * TILE - 1) / (GROUPS * TILE);
    uint4* ring = (uint4*)memory + t;
    u32* scales = (u32*)(memory + STAGES * THREADS * 4) + t;
    float* sums = memory + STAGES * THREADS * (16 + SCALE_BYTES) / 4;
    u16* inputs = (u16*)(sums + 2 * SUMS);
    const int stride = K + INPUT_PAD;
    int next_turn = 0, next_chunk = 0, stage = 0;
    auto request = [&](int to) {
        const int row = begin + (next_turn * GROUPS + group) * TILE + lane / 4;
        if (row < end && next_chunk < mine) {
            const size_t chunk = first + next_chunk * OF_A_GROUP;
            copy_in_background(ring + to * THREADS, m.weights + ((size_t)row * (K / COLUMNS) + chunk) * 64 + lane % 4 * 16);
            if (kind != FP16) {  // two scales: 4 bytes are the least that can be copied
                const size_t scale = (size_t)row * (K / GROUP) + chunk * COLUMNS / GROUP;
                copy_little_in_background<4>(scales + to * THREADS, m.scales + scale / 2 * 2);
            }
        }
        end_of_copies();
        if (++next_chunk >= mine) {
            next_chunk = 0;
            next_turn++;
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
    for (int turn = 0; turn < turns; turn++) {
        float4 sum = zeros4();
        for (int i = 0; i < mine; i++) {
            wait_for_copies<STAGES - 1>();
            const int chunk = first + i * OF_A_GROUP;
            const bool second = kind == INT8 ? chunk % 2 : lane % 4 / 2;  // of two scales
            const u32 scale = kind == FP16 ? 0 : scales[stage * THREADS] >> (second ? 16 : 0) & 0xffff;
            Chunk<kind>::multiply(sum, ring[stage * THREADS], scale, inputs + chunk * COLUMNS, stride, T);
            request(stage);
            stage = stage + 1 == STAGES ? 0 : stage + 1;
        }
        float* here = sums + turn % 2 * SUMS;
        each_sum(sum, T, [&](int token, int row, float v) { here[warp * OF_A_TILE + token * TILE + row] = v; });
        __syncthreads();
        const int tile = t / OF_A_TILE, token = t % OF_A_TILE / TILE;
        const int row = begin + (turn * GROUPS + tile) * TILE + t % TILE;
        if (tile >= GROUPS || token >= T || row >= end) continue;
        float total = 0;
#pragma unroll
        for (int i = 0; i < OF_A_GROUP; i++) total += here[(tile * OF_A_GROUP + i) * OF_A_TILE + t % OF_A_TILE];
        finish(token, row, kind == FP16 ? total : total / UP);
    }
}

// A block's share of R rows.
template <class Finish>
__device__ __forceinline__ void multiply_share(const Matrix& m, int R, const u16* x, int T, const Finish& finish) {
    multiply_rows<KIND>(m, share(R, blockIdx.x, gridDim.x), share(R, blockIdx.x + 1, gridDim.x), x, T, finish);
}

// r, k, v and the first halves of the low-rank maps, each of its own input.
extern "C" __global__ void __launch_bounds__(THREADS)
few_project(const u16* mixed,  // [6, T, C] float16, as for r, k, v, w, a and g
            const u8* main,    // [3 C, C] receptance, key, value
            const u16* scales, // [3 C, C / 64]
            const u8* low,     // [the sum of ranks, C] float16: w1, a1, v1, g1
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
        multiply_rows<KIND>({main, scales, C}, mine.begin, mine.end, x, T, [&](int token, int row, float sum) {
            rkv[((size_t)matrix * T + token) * C + row - matrix * C] = sum;
        });
    else
        multiply_rows<FP16>({low, nullptr, C}, mine.begin, mine.end, x, T, [&](int token, int row, float sum) {
            if (matrix == W1) sum = tanhf(sum);
            if (matrix == G1) sum = sigmoid(sum);
            hidden[(size_t)token * ranks + row] = (u16)to_halves(sum, 0);
        });
}

// x += output gated
extern "C" __global__ void __launch_bounds__(THREADS)
few_output(const u16* gated,    // [T, C] float16
           const u8* weights,   // [C, C]
           const u16* scales,   // [C, C / 64]
           float* x,            // [T, C]
           int T, int C) {
    multiply_share({weights, scales, C}, C, gated, T, [&](int token, int row, float sum) { x[(size_t)token * C + row] += sum; });
}

// h = relu(key mixed)^2
extern "C" __global__ void __launch_bounds__(THREADS)
few_hidden(const u16* mixed,    // [T, C] float16
           const u8* weights,   // [F, C]
           const u16* scales,   // [F, C / 64]
           u16* h,              // [T, F] float16
           int T, int C, int F) {
    const float LARGEST = 65504.f;  // of float16
    multiply_share({weights, scales, C}, F, mixed, T, [&](int token, int row, float sum) {
        const float up = fmaxf(sum, 0.f);
        h[(size_t)token * F + row] = (u16)to_halves(fminf(up * up, LARGEST), 0);
    });
}

extern "C" __global__ void __launch_bounds__(THREADS)
few_head(const u16* mixed,    // [T, C] float16
         const u8* weights,   // [V, C]
         const u16* scales,   // [V, C / 64]
         float* logits,       // [T, V]
         int T, int C, int V) {
    multiply_share({weights, scales, C}, V, mixed, T, [&](int token, int row, float sum) { logits[(size_t)token * V + row] = sum; });
}
