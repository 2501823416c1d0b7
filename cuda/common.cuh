// Small things that every operation uses.
//
// Shapes, as everywhere in the project: C channels, H = C / N heads of N = 64, F hidden units, V tokens of the vocabulary,
// T tokens of this pass. A pointer has its shape beside it.
#pragma once
#include "intrinsics.cuh"

#define FP16 0
#define INT8 1
#define INT4 2
#define SMALL 3  // low-rank maps of files of whole numbers: weights in int8, inputs in float32, as the CPU has them

#ifndef KIND
#define KIND FP16  // of the big matrices: a program is compiled for the type of one model file
#endif

#define LOW (KIND == FP16 ? FP16 : SMALL)  // of the low-rank maps

#define N 64            // channels of a head, and weights that share a scale
#define LANES 32        // threads of a warp
#define ALL_LANES 0xffffffffu
#define INFINITE __uint_as_float(0x7f800000u)
#define LN_EPSILON 1e-5f
#define GROUP_NORM_EPSILON 64e-5f
#define DECAY_SCALE -0.606530659712633f  // -exp(-0.5): the decay is exp(that * sigmoid)

__device__ __forceinline__ float bf16(u32 v) { return __uint_as_float(v << 16); }
// Byte j of four, as a float: put into the lowest bits of 2^23, since conversions are slow.
__device__ __forceinline__ float signed_byte(u32 four, int j) {
    return __uint_as_float(__byte_perm(four ^ 0x80808080, 0x4b000000, 0x7440 + j)) - (8388608 + 128);
}
__device__ __forceinline__ float sigmoid(float x) { return 1.f / (1.f + expf(-x)); }

// The sum over `lanes` neighbours, a power of two.
template <int lanes> __device__ __forceinline__ float sum_of_neighbours(float v) {
#pragma unroll
    for (int i = lanes / 2; i; i /= 2) v += __shfl_xor_sync(ALL_LANES, v, i);
    return v;
}
__device__ __forceinline__ float warp_sum(float v) { return sum_of_neighbours<LANES>(v); }

// The sum over the block; `sums` [32] is shared memory for this alone.
__device__ __forceinline__ float block_sum(float v, float* sums) {
    v = warp_sum(v);
    __syncthreads();
    if (threadIdx.x % LANES == 0) sums[threadIdx.x / LANES] = v;
    __syncthreads();
    float total = 0;
    for (int i = 0; i < (int)blockDim.x / LANES; i++) total += sums[i];
    return total;
}

// Where share `i` of `shares` equal ones begins among n things.
__device__ __forceinline__ int share(int n, int i, int shares) { return (int)((long long)n * i / shares); }

// sum += 8 weights, in float16 or int8, times 8 inputs
__device__ __forceinline__ void add_dot8(float& sum, uint4 w, const float* x) {
    float2 a = halves(w.x), b = halves(w.y), c = halves(w.z), d = halves(w.w);
    sum += a.x * x[0], sum += a.y * x[1], sum += b.x * x[2], sum += b.y * x[3];
    sum += c.x * x[4], sum += c.y * x[5], sum += d.x * x[6], sum += d.y * x[7];
}
__device__ __forceinline__ void add_dot8(float& sum, uint2 w, const float* x) {
#pragma unroll
    for (int i = 0; i < 4; i++) sum += signed_byte(w.x, i) * x[i], sum += signed_byte(w.y, i) * x[4 + i];
}
