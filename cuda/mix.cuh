// Layer norm and token shift: a row [C] spread over the threads of a block.
#pragma once
#include "common.cuh"
#include "layer_norm.cuh"

#ifndef THREADS
#define THREADS 256
#endif
#define FOURS (1024 / THREADS)            // groups of four channels of a thread
#define MOST_CHANNELS (THREADS * FOURS * 4)

struct Row {
    float4 v[FOURS];
    __device__ __forceinline__ static int channel(int j) { return (threadIdx.x + j * THREADS) * 4; }
    __device__ __forceinline__ void read(const float* from, int C) {
#pragma unroll
        for (int j = 0; j < FOURS; j++) v[j] = channel(j) < C ? load4(from + channel(j)) : zeros4();
    }
    // `sums` [2, LANES] is shared memory for this alone.
    __device__ __forceinline__ void normalise(const Row& weight, const Row& bias, int C, float* sums) {
        float sum = 0, squares = 0;
#pragma unroll
        for (int j = 0; j < FOURS; j++) {
            sum += sum_of(v[j]);
            squares += sum_of(v[j] * v[j]);
        }
        sum = warp_sum(sum);
        squares = warp_sum(squares);
        __syncthreads();
        if (threadIdx.x % LANES == 0) {
            sums[threadIdx.x / LANES] = sum;
            sums[LANES + threadIdx.x / LANES] = squares;
        }
        __syncthreads();
        sum = 0;
        squares = 0;
#pragma unroll
        for (int i = 0; i < THREADS / LANES; i++) {
            sum += sums[i];
            squares += sums[LANES + i];
        }
        const LayerNorm norm(sum, squares, C);
#pragma unroll
        for (int j = 0; j < FOURS; j++) v[j] = norm.of(v[j], weight.v[j], bias.v[j]);
    }
    // The same, with vectors [C] that are read once they are needed.
    __device__ __forceinline__ void normalise(const float* weight, const float* bias, int C, float* sums) {
        Row w, b;
        w.read(weight, C);
        b.read(bias, C);
        normalise(w, b, C, sums);
    }
};

