// One token each of 2 to 16 sequences: products on tensor cores that read each weight once, at the speed of memory.
//
// A tile is 8 rows of a matrix, times a chunk of 32 columns: 16 bytes of a row for each lane, which it uses as the operand b of
// two products, where tokens are the rows of a. The order of columns within a chunk does not matter, as long as a and b agree
// on it: a lane takes 8 consecutive ones of each.
#pragma once
#include "common.cuh"

#define MOST_TOKENS 16
#define THREADS 512
#define WARPS (THREADS / LANES)
#define TILE 8         // rows
#define CHUNK 32       // columns
#define STAGES 8       // tiles that a warp has in flight: 64 KB per multiprocessor
#define INPUT_PAD 32   // columns between the inputs of two tokens in shared memory, so that a warp reads different banks

// A lane's 8 columns of tokens lane / 4 and lane / 4 + 8 of x [T, ..]; the second are zeros for up to 8 tokens. What is read
// in place of tokens that do not exist gives sums that nobody uses.
struct Inputs {
    uint4 first, second;
    __device__ __forceinline__ Inputs(const u16* x, size_t stride, int T, int column) : second(make_uint4(0, 0, 0, 0)) {
        const int token = threadIdx.x % LANES / 4;
        x += column + threadIdx.x % 4 * 8;
        first = *(const uint4*)(x + min(token, T - 1) * stride);
        if (T > 8) second = *(const uint4*)(x + min(token + 8, T - 1) * stride);
    }
    // Adds a chunk of a tile, of which the lane has the weights w of row lane / 4.
    __device__ __forceinline__ void multiply(float4& sum, uint4 w) const {
        multiply_add(sum, first.x, second.x, first.y, second.y, w.x, w.y);
        multiply_add(sum, first.z, second.z, first.w, second.w, w.z, w.w);
    }
};

// finish(token, row, sum) of the sums of a tile that a lane has: rows 2q and 2q + 1 of it, q = lane % 4.
template <class Finish> __device__ __forceinline__ void each_sum(float4 sum, int T, const Finish& finish) {
    const int token = threadIdx.x % LANES / 4, row = threadIdx.x % 4 * 2;
    if (token < T) {
        finish(token, row, sum.x);
        finish(token, row + 1, sum.y);
    }
    if (token + 8 < T) {
        finish(token + 8, row, sum.z);
        finish(token + 8, row + 1, sum.w);
    }
}
