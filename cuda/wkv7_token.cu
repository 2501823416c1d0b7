// One token each of many sequences: the recurrence. See token_state.cuh.
#include "token_state.cuh"

extern "C" __global__ void __launch_bounds__(THREADS)
wkv7_token(const float* __restrict__ w,      // [T, C]
           const float* __restrict__ kk,     // [T, C]
           const float* __restrict__ b,      // [T, C]
           const float* __restrict__ k,      // [T, C]
           const float* __restrict__ r,      // [T, C]
           const float* __restrict__ v,      // [T, C]
           float* __restrict__ y,            // [T, C]
           const int* __restrict__ slots,    // [T] the slot of each token's state, all different
           float* __restrict__ wkv,          // [H, N, N] of this layer of the state in slot 0, key by key
           float* __restrict__ shift,        // [C] of this layer of the state in slot 0
           const float* __restrict__ last,   // [slots, C] the next token shift
           int C, long long state_size) {    // floats from the state of one slot to that of the next
    __shared__ __align__(16) float in[VECTORS][HEAD], parts[WARPS * HEAD];
    const int t = threadIdx.x, slot = slots[blockIdx.y], c0 = blockIdx.x * HEAD;
    const size_t token = (size_t)blockIdx.y * C + c0;
    HeadState state(wkv + slot * state_size + (size_t)c0 * HEAD);
    const float* vectors[VECTORS] = {w, kk, b, k, r, v};
#pragma unroll
    for (int m = 0; m < VECTORS; m++)
        if (t / HEAD == m % (THREADS / HEAD)) in[m][t % HEAD] = vectors[m][token + t % HEAD];
    if (t < HEAD) (shift + slot * state_size)[c0 + t] = last[(size_t)slot * C + c0 + t];
    __syncthreads();
    const float4 read = state.advance(in, parts);
    if (t < ACROSS) store(y + token + t * 4, read);
}
