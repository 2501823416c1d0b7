// One token each of many sequences: the recurrence, as in wkv7.cu. What takes the time is to bring the states and to take
// them back, so a block has a whole head of one sequence, and asks for all of it at once.
//
//     S = S * diag(w) - (S kk) b^T + v k^T;  y = S r       of each head, with b = kk * a
#include "state.cuh"

#define THREADS 256
#define WARPS (THREADS / LANES)
#define ACROSS (N / 4)               // threads that have a key together, four values each
#define KEYS (N * ACROSS / THREADS)  // of a thread

enum { W, KK, B, K, R, V, VECTORS };

// The sum over all keys of v [4 values], `parts` [WARPS, N] in shared memory; every thread gets those of its values.
__device__ __forceinline__ float4 sum_over_keys(float4 v, float* parts) {
    add_keys<N>(v, parts);
    float4 total = make_float4(0, 0, 0, 0);
#pragma unroll
    for (int i = 0; i < WARPS; i++) {
        const float4 part = *(const float4*)(parts + i * N + threadIdx.x % ACROSS * 4);
        total.x += part.x, total.y += part.y, total.z += part.z, total.w += part.w;
    }
    return total;
}

extern "C" __global__ void __launch_bounds__(THREADS)
wkv7_token(const float* w, const float* kk, const float* b, const float* k, const float* r, const float* v,  // [T, C]
           float* y,             // [T, C]
           const int* slots,     // [T] the state that a token belongs to, each another
           float* wkv,           // a state's [H, N, N] of this layer, key by key
           float* shift,         // a state's [C] of this layer
           const float* last,    // [slots, C] its next token shift
           int C, long long state_size) {  // floats from the state of one slot to that of the next
    __shared__ __align__(16) float in[VECTORS][N], parts[WARPS * N];
    const int t = threadIdx.x, slot = slots[blockIdx.y], c0 = blockIdx.x * N;
    const size_t token = (size_t)blockIdx.y * C + c0;
    // A thread's keys are t / ACROSS, and every so many further.
    float4* S = (float4*)(wkv + slot * state_size + (size_t)c0 * N) + t;
    float4 s[KEYS];
#pragma unroll
    for (int j = 0; j < KEYS; j++) s[j] = S[j * THREADS];
    const float* vectors[VECTORS] = {w, kk, b, k, r, v};
#pragma unroll
    for (int m = 0; m < VECTORS; m++)
        if (t / N == m % (THREADS / N)) in[m][t % N] = vectors[m][token + t % N];
    if (t < N) (shift + slot * state_size)[c0 + t] = last[(size_t)slot * C + c0 + t];
    __syncthreads();
    float4 removed = make_float4(0, 0, 0, 0), read = removed;
    auto key = [&](int j) { return t / ACROSS + j * (THREADS / ACROSS); };
#pragma unroll
    for (int j = 0; j < KEYS; j++) {
        const float p = in[KK][key(j)];
        removed.x += s[j].x * p, removed.y += s[j].y * p, removed.z += s[j].z * p, removed.w += s[j].w * p;
    }
    removed = sum_over_keys(removed, parts);
    const float4 added = *(const float4*)(in[V] + t % ACROSS * 4);
#pragma unroll
    for (int j = 0; j < KEYS; j++) {
        const float d = in[W][key(j)], q = in[B][key(j)], n = in[K][key(j)], o = in[R][key(j)];
        s[j].x = s[j].x * d - removed.x * q + added.x * n, s[j].y = s[j].y * d - removed.y * q + added.y * n;
        s[j].z = s[j].z * d - removed.z * q + added.z * n, s[j].w = s[j].w * d - removed.w * q + added.w * n;
        S[j * THREADS] = s[j];
        read.x += s[j].x * o, read.y += s[j].y * o, read.z += s[j].z * o, read.w += s[j].w * o;
    }
    read = sum_over_keys(read, parts);
    if (t < ACROSS) *(float4*)(y + token + t * 4) = read;
}
