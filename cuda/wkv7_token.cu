// One token each of many sequences: the recurrence, as in wkv7.cu. Most of the time goes into reading and writing the
// states, so a block has a whole head of one sequence, and requests all of it at once.
//
//     S = S * diag(w) - (S kk) b^T + v k^T;  y = S r       of each head, with b = kk * a
#include "state.cuh"

#define THREADS 256
#define WARPS (THREADS / LANES)
#define ACROSS (HEAD / 4)               // threads that have a key together, four values each
#define KEYS (HEAD * ACROSS / THREADS)  // of a thread

enum { W, KK, B, K, R, V, VECTORS };

// The sum over all keys of v [4 values], `parts` [WARPS, N] in shared memory; every thread gets those of its values.
__device__ __forceinline__ float4 sum_over_keys(float4 v, float* parts) {
    add_keys<HEAD>(v, parts);
    float4 total = zeros4();
#pragma unroll
    for (int i = 0; i < WARPS; i++) total = total + load4(parts + i * HEAD + threadIdx.x % ACROSS * 4);
    return total;
}

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
    // A thread's keys are t / ACROSS, and every THREADS / ACROSS further.
    float4* S = (float4*)(wkv + slot * state_size + (size_t)c0 * HEAD) + t;
    float4 s[KEYS];
#pragma unroll
    for (int j = 0; j < KEYS; j++) s[j] = S[j * THREADS];
    const float* vectors[VECTORS] = {w, kk, b, k, r, v};
#pragma unroll
    for (int m = 0; m < VECTORS; m++)
        if (t / HEAD == m % (THREADS / HEAD)) in[m][t % HEAD] = vectors[m][token + t % HEAD];
    if (t < HEAD) (shift + slot * state_size)[c0 + t] = last[(size_t)slot * C + c0 + t];
    __syncthreads();
    auto key = [&](int j) { return t / ACROSS + j * (THREADS / ACROSS); };
    float4 removed = zeros4(), read = zeros4();
#pragma unroll
    for (int j = 0; j < KEYS; j++) removed = removed + s[j] * in[KK][key(j)];
    removed = sum_over_keys(removed, parts);
    const float4 added = load4(in[V] + t % ACROSS * 4);
#pragma unroll
    for (int j = 0; j < KEYS; j++) {
        s[j] = s[j] * in[W][key(j)] - removed * in[B][key(j)] + added * in[K][key(j)];
        S[j * THREADS] = s[j];
        read = read + s[j] * in[R][key(j)];
    }
    read = sum_over_keys(read, parts);
    if (t < ACROSS) store(y + token + t * 4, read);
}
