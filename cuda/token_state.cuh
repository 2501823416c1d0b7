// The recurrence of one head for one token, as in wkv7.cu. Most of the time goes into reading and writing the state, so a
// block has a whole head, and requests all of it at once.
//
//     S = S * diag(w) - (S kk) b^T + v k^T;  y = S r       with b = kk * a
#pragma once
#include "state.cuh"

#define THREADS 256
#define WARPS (THREADS / LANES)
#define ACROSS (HEAD / 4)               // threads that have a key together, four values each
#define KEYS (HEAD * ACROSS / THREADS)  // of a thread

enum { W, KK, B, K, R, V, VECTORS };

// S [N, N], key by key, spread over the block: a thread's keys are t / ACROSS, and every THREADS / ACROSS further.
struct HeadState {
    float4* S;
    float4 s[KEYS];
    __device__ __forceinline__ HeadState(float* wkv) : S((float4*)wkv + threadIdx.x) {
#pragma unroll
        for (int j = 0; j < KEYS; j++) s[j] = S[j * THREADS];
    }
    __device__ __forceinline__ static int key(int j) { return threadIdx.x / ACROSS + j * (THREADS / ACROSS); }

    // The sum over all keys of v [4 values], `parts` [WARPS, N] in shared memory; every thread gets those of its values.
    __device__ __forceinline__ static float4 sum_over_keys(float4 v, float* parts) {
        add_keys<HEAD>(v, parts);
        float4 total = zeros4();
#pragma unroll
        for (int i = 0; i < WARPS; i++) total = total + load4(parts + i * HEAD + threadIdx.x % ACROSS * 4);
        return total;
    }
    // Reads a token, whose vectors are `in` [VECTORS, N] in shared memory, and writes S: y of this thread's four values.
    __device__ __forceinline__ float4 advance(const float (*in)[HEAD], float* parts) {
        float4 removed = zeros4(), read = zeros4();
#pragma unroll
        for (int j = 0; j < KEYS; j++) removed = removed + s[j] * in[KK][key(j)];
        removed = sum_over_keys(removed, parts);
        const float4 added = load4(in[V] + threadIdx.x % ACROSS * 4);
#pragma unroll
        for (int j = 0; j < KEYS; j++) {
            s[j] = s[j] * in[W][key(j)] - removed * in[B][key(j)] + added * in[K][key(j)];
            S[j * THREADS] = s[j];
            read = read + s[j] * in[R][key(j)];
        }
        return sum_over_keys(read, parts);
    }
};
