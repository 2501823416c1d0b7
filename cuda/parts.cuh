// A sum whose parts are in several blocks: the last of them to finish adds up all parts, in order, so that the sum is always
// the same.
#pragma once
#include "common.cuh"

// Whether this block is the last of n to arrive here: then it sees what the others have written before. `arrived` counts
// them, `is_last` is shared memory for this alone.
__device__ __forceinline__ bool is_last_of(int n, int* arrived, bool* is_last) {
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence();  // for all threads of the block, by the barriers before and after
        *is_last = atomicAdd(arrived, 1) == n - 1;
        __threadfence();
    }
    __syncthreads();
    return *is_last;
}

// `total` plus the first of each of n parts, which are `stride` apart, added up in this order.
template <class Floats> __device__ __forceinline__ Floats sum_of_parts(const Floats* parts, int stride, int n, Floats total) {
    const int AT_ONCE = sizeof(Floats) == 4 ? 16 : 8;
    for (int first = 0; first < n; first += AT_ONCE) {
        Floats v[AT_ONCE];
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++)
            if (first + i < n) v[i] = __ldcg(parts + (size_t)(first + i) * stride);
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++)
            if (first + i < n) total = total + v[i];
    }
    return total;
}
