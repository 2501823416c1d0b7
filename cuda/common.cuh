// What every operation uses.
//
// Shapes, as everywhere in the project: C channels, H = C / HEAD heads of N = HEAD = 64 channels, F hidden units, V tokens of
// the vocabulary, T tokens of this pass. A pointer has its shape beside it.
//
// `__restrict__` promises that nothing else points to the same memory. Kernels of many tokens have it on all pointers: no two
// of a kernel's buffers overlap, and it begins when the previous one has ended. Kernels that may begin earlier, those with
// `wait_for_previous` (intrinsics.cuh), have it nowhere. What is const and restricted is read through the read-only path,
// and such reads may be moved across the wait, both ways: ahead of it, those of what the previous kernel still writes would
// be wrong; behind it, those of weights come too late, and with restricted vectors the compiler does move all of them.
#pragma once
#include "floats.cuh"

#define FP16 0
#define INT8 1
#define INT4 2
#define SMALL 3  // low-rank maps in files of integers: weights in int8, inputs in float32, as on the CPU

#ifndef KIND
#define KIND FP16  // of the big matrices: a program is compiled for the type of one model file
#endif

#define LOW (KIND == FP16 ? FP16 : SMALL)  // kind of the low-rank maps

#define HEAD 64   // channels of a head
#define GROUP 64  // weights that share a scale, and inputs
#define GROUP_NORM_EPSILON 64e-5f
#define DECAY_SCALE -0.606530659712633f  // -exp(-0.5): the decay is exp(that * sigmoid)

__device__ __forceinline__ float bf16(u32 v) { return __uint_as_float(v << 16); }
// Byte j of four, as a float: inserted into the lowest bits of 2^23, since conversions are slow.
__device__ __forceinline__ float signed_byte(u32 four, int j) {
    return __uint_as_float(__byte_perm(four ^ 0x80808080, 0x4b000000, 0x7440 + j)) - (8388608 + 128);
}

// Where share `i` of `shares` equal ones begins among n things.
__device__ __forceinline__ int share(int n, int i, int shares) { return (int)((long long)n * i / shares); }

// sum += 8 weights, in float16 or int8, times 8 inputs
__device__ __forceinline__ void add_dot8(float& sum, uint4 w, const float* x) {
    const u32 words[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const float2 two = halves(words[i]);
        sum += two.x * x[2 * i];
        sum += two.y * x[2 * i + 1];
    }
}
__device__ __forceinline__ void add_dot8(float& sum, uint2 w, const float* x) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        sum += signed_byte(w.x, i) * x[i];
        sum += signed_byte(w.y, i) * x[4 + i];
    }
}
