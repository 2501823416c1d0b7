// Two and four floats as vectors, and sums over threads.
#pragma once
#include "intrinsics.cuh"

#define LANES 32  // threads of a warp
#define ALL_LANES 0xffffffffu
#define INFINITE __uint_as_float(0x7f800000u)

// -------------------------------------------------------------------------------------------- two and four floats

__device__ __forceinline__ float2 load2(const float* p) { return *(const float2*)p; }
__device__ __forceinline__ float4 load4(const float* p) { return *(const float4*)p; }
__device__ __forceinline__ void store(float* p, float2 v) { *(float2*)p = v; }
__device__ __forceinline__ void store(float* p, float4 v) { *(float4*)p = v; }
// Rounded to float16.
__device__ __forceinline__ void store(u16* p, float2 v) { *(u32*)p = to_halves(v.x, v.y); }
__device__ __forceinline__ void store(u16* p, float4 v) {
    *(uint2*)p = make_uint2(to_halves(v.x, v.y), to_halves(v.z, v.w));
}

__device__ __forceinline__ float4 zeros4() { return make_float4(0, 0, 0, 0); }

__device__ __forceinline__ float2 operator+(float2 a, float2 b) { return make_float2(a.x + b.x, a.y + b.y); }
__device__ __forceinline__ float2 operator-(float2 a, float2 b) { return make_float2(a.x - b.x, a.y - b.y); }
__device__ __forceinline__ float2 operator*(float2 a, float2 b) { return make_float2(a.x * b.x, a.y * b.y); }
__device__ __forceinline__ float2 operator+(float2 a, float b) { return make_float2(a.x + b, a.y + b); }
__device__ __forceinline__ float2 operator-(float2 a, float b) { return make_float2(a.x - b, a.y - b); }
__device__ __forceinline__ float2 operator*(float2 a, float b) { return make_float2(a.x * b, a.y * b); }
__device__ __forceinline__ float2 operator/(float2 a, float b) { return make_float2(a.x / b, a.y / b); }

__device__ __forceinline__ float4 operator+(float4 a, float4 b) {
    return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
}
__device__ __forceinline__ float4 operator-(float4 a, float4 b) {
    return make_float4(a.x - b.x, a.y - b.y, a.z - b.z, a.w - b.w);
}
__device__ __forceinline__ float4 operator*(float4 a, float4 b) {
    return make_float4(a.x * b.x, a.y * b.y, a.z * b.z, a.w * b.w);
}
__device__ __forceinline__ float4 operator-(float4 a, float b) {
    return make_float4(a.x - b, a.y - b, a.z - b, a.w - b);
}
__device__ __forceinline__ float4 operator*(float4 a, float b) {
    return make_float4(a.x * b, a.y * b, a.z * b, a.w * b);
}

__device__ __forceinline__ float sum_of(float2 v) { return v.x + v.y; }
__device__ __forceinline__ float sum_of(float4 v) { return v.x + v.y + v.z + v.w; }

__device__ __forceinline__ float sigmoid(float x) { return 1.f / (1.f + expf(-x)); }
__device__ __forceinline__ float2 sigmoid(float2 v) { return make_float2(sigmoid(v.x), sigmoid(v.y)); }

// ---------------------------------------------------------------------------------------------- sums over threads

// The sum over `lanes` neighbours, a power of two.
template <int lanes> __device__ __forceinline__ float sum_of_neighbours(float v) {
#pragma unroll
    for (int i = lanes / 2; i; i /= 2) v += __shfl_xor_sync(ALL_LANES, v, i);
    return v;
}
__device__ __forceinline__ float warp_sum(float v) { return sum_of_neighbours<LANES>(v); }

// The largest over `lanes` neighbours, a power of two.
template <int lanes> __device__ __forceinline__ float max_of_neighbours(float v) {
#pragma unroll
    for (int i = lanes / 2; i; i /= 2) v = fmaxf(v, __shfl_xor_sync(ALL_LANES, v, i));
    return v;
}

// The sum over the block; `sums` [LANES] is shared memory for this alone.
__device__ __forceinline__ float block_sum(float v, float* sums) {
    v = warp_sum(v);
    __syncthreads();
    if (threadIdx.x % LANES == 0) sums[threadIdx.x / LANES] = v;
    __syncthreads();
    float total = 0;
    for (int i = 0; i < (int)blockDim.x / LANES; i++) total += sums[i];
    return total;
}

// Adds up v [n] over n lanes, whose numbers differ in the bits `distance`, `distance` / 2 and so on, log2(n) of them. Each
// lane gets one of the n sums, whose number those bits are.
template <int n, int distance> __device__ __forceinline__ float transposed_sum(const float* v) {
    if constexpr (n == 1) return v[0];
    else {
        const bool upper = threadIdx.x & distance;
        float half[n / 2];
#pragma unroll
        for (int i = 0; i < n / 2; i++)
            half[i] = (upper ? v[i + n / 2] : v[i]) + __shfl_xor_sync(ALL_LANES, upper ? v[i] : v[i + n / 2], distance);
        return transposed_sum<n / 2, distance / 2>(half);
    }
}
