// The matrices of a model file, rearranged in the order in which kernels read them, and as float16 for the tensor cores.
#include "common.cuh"

#define TILE_ROWS 16

// Units of 1, 2 or 4 bytes from tiles of 16 rows [R / 16, K, 16] to rows [R, K].
template <typename Unit>
__device__ __forceinline__ void untile(const Unit* __restrict__ from, Unit* __restrict__ to, int R, int K) {
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < (size_t)R * K; i += (size_t)gridDim.x * blockDim.x) {
        const int row = i / K, k = i % K;
        to[i] = from[((size_t)(row / TILE_ROWS) * K + k) * TILE_ROWS + row % TILE_ROWS];
    }
}

extern "C" __global__ void untile1(const u8* __restrict__ from, u8* __restrict__ to, int R, int K) {
    untile(from, to, R, K);
}
extern "C" __global__ void untile2(const u16* __restrict__ from, u16* __restrict__ to, int R, int K) {
    untile(from, to, R, K);
}
extern "C" __global__ void untile4(const u32* __restrict__ from, u32* __restrict__ to, int R, int K) {
    untile(from, to, R, K);
}

// W [R, K] in float16 from rows in int8 with scales [R, ceil(K / 64)]: exact, since the scales have few digits.
extern "C" __global__ void to_half(const signed char* __restrict__ from, const u16* __restrict__ scales,
                                   u16* __restrict__ to, int R, int K) {
    const int groups = (K + GROUP - 1) / GROUP;
    for (size_t i = 2 * (blockIdx.x * (size_t)blockDim.x + threadIdx.x); i < (size_t)R * K;
         i += 2 * (size_t)gridDim.x * blockDim.x) {
        const int k = i % K;  // K is even
        const float scale = bf16(scales[i / K * groups + k / GROUP]);
        store(to + i, make_float2(from[i] * scale, from[i + 1] * scale));
    }
}

// 16 bytes at a time, from blocks of 64 channels [B, F, width] to rows by hidden unit [F, B, width].
extern "C" __global__ void unblock(const uint4* __restrict__ from, uint4* __restrict__ to, int B, int F, int width) {
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < (size_t)B * F * width;
         i += (size_t)gridDim.x * blockDim.x) {
        const int j = i % width, b = i / width % B, f = i / width / B;
        to[i] = from[((size_t)b * F + f) * width + j];
    }
}

// W [R, K] in float16 from integers, 16 bytes at a time. The scale of row r and column k is
// scales[r / row_group, k / column_group]: groups are along the rows, but for ffn.value, which is stored by hidden unit.
extern "C" __global__ void dequantize(const uint4* __restrict__ weights, const u16* __restrict__ scales,
                                      u16* __restrict__ to, int R, int K, int row_group, int column_group) {
    const int COLUMNS = KIND == INT4 ? 32 : 16, pieces = K / COLUMNS;
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < (size_t)R * pieces; i += (size_t)gridDim.x * blockDim.x) {
        const int r = i / pieces, piece = i % pieces;
        const int first = KIND == INT4 ? piece / 2 * GROUP + piece % 2 * 16 : piece * 16;
        const u16* s = scales + (size_t)(r / row_group) * (K / column_group);
        const uint4 v = weights[i];
        const u32 words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (int half = 0; half < COLUMNS / 16; half++) {
            u32 pairs[8];
            const int c = first + half * 32;
#pragma unroll
            for (int e = 0; e < 16; e += 2) {
                const u32 two = words[e / 4] >> (e % 4 * 8);
                int a = (signed char)(two & 255), b = (signed char)(two >> 8 & 255);
                if (KIND == INT4) {
                    a = (int)(two >> 4 * half & 15) - 8;
                    b = (int)(two >> (8 + 4 * half) & 15) - 8;
                }
                pairs[e / 2] = to_halves(a * bf16(s[(c + e) / column_group]), b * bf16(s[(c + e + 1) / column_group]));
            }
            uint4* out = (uint4*)(to + (size_t)r * K + c);
            out[0] = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
            out[1] = make_uint4(pairs[4], pairs[5], pairs[6], pairs[7]);
        }
    }
}
