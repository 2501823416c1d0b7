// The state of a head [N keys, N values] in the registers of a block: a thread has four neighbouring values of some keys.
#pragma once
#include "common.cuh"

// The sums over a warp's keys of v [4 values] of each thread, where a key has `values` values in the block: into the warp's
// row of parts [warps, values] in shared memory. All rows are there when this returns.
template <int values> __device__ __forceinline__ void add_keys(float4 v, float* parts) {
    const int FOURS = values / 4, warp = threadIdx.x / LANES, lane = threadIdx.x % LANES;
#pragma unroll
    for (int i = FOURS; i < LANES; i *= 2) {
        v.x += __shfl_xor_sync(ALL_LANES, v.x, i);
        v.y += __shfl_xor_sync(ALL_LANES, v.y, i);
        v.z += __shfl_xor_sync(ALL_LANES, v.z, i);
        v.w += __shfl_xor_sync(ALL_LANES, v.w, i);
    }
    __syncthreads();
    if (lane < FOURS) store(parts + warp * values + lane * 4, v);
    __syncthreads();
}
