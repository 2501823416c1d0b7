// The matrices of a model file, in the order that this backend reads them in, and as float16 for the tensor cores.
#include "common.cuh"

// Units of 1, 2 or 4 bytes out of tiles of 16 rows [R / 16, K, 16] into rows [R, K].
template <typename Unit> __device__ __forceinline__ void untile(const Unit* from, Unit* to, int R, int K) {
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < (size_t)R * K; i += (size_t)gridDim.x * blockDim.x) {
        int row = i / K, k = i % K;
        to[i] = from[((size_t)(row / 16) * K + k) * 16 + row % 16];
    }
}

extern "C" __global__ void untile1(const u8* from, u8* to, int R, int K) { untile(from, to, R, K); }
extern "C" __global__ void untile2(const u16* from, u16* to, int R, int K) { untile(from, to, R, K); }
extern "C" __global__ void untile4(const u32* from, u32* to, int R, int K) { untile(from, to, R, K); }

// W [R, K] in float16 out of rows in int8 with scales [R, K / 64 rounded up]: exact, since the scales are round numbers.
extern "C" __global__ void to_half(const signed char* from, const u16* scales, u16* to, int R, int K) {
    const int groups = (K + N - 1) / N;
    for (size_t i = 2 * (blockIdx.x * (size_t)blockDim.x + threadIdx.x); i < (size_t)R * K;
         i += 2 * (size_t)gridDim.x * blockDim.x) {
        const int k = i % K;  // K is even
        const float scale = bf16(scales[i / K * groups + k / N]);
        *(u32*)(to + i) = to_halves(from[i] * scale, from[i + 1] * scale);
    }
}

// 16 bytes at a time, out of blocks of 64 channels [B, F, width] into rows by hidden unit [F, B, width].
extern "C" __global__ void unblock(const uint4* from, uint4* to, int B, int F, int width) {
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < (size_t)B * F * width;
         i += (size_t)gridDim.x * blockDim.x) {
        int j = i % width, b = i / width % B, f = i / width / B;
        to[i] = from[((size_t)b * F + f) * width + j];
    }
}

// W [R, K] in float16 out of 16 bytes at a time of whole numbers. The scale of row r and column k is
// scales[r / row_group, k / column_group]: groups are along the rows, but for ffn.value, which lies by hidden unit.
extern "C" __global__ void dequantize(const uint4* weights, const u16* scales, u16* to, int R, int K, int row_group,
                                      int column_group) {
    const int COLUMNS = KIND == INT4 ? 32 : 16, pieces = K / COLUMNS;
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < (size_t)R * pieces; i += (size_t)gridDim.x * blockDim.x) {
        const int r = i / pieces, piece = i % pieces;
        const int first = KIND == INT4 ? piece / 2 * N + piece % 2 * 16 : piece * 16;
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
                if (KIND == INT4) a = (int)(two >> 4 * half & 15) - 8, b = (int)(two >> (8 + 4 * half) & 15) - 8;
                pairs[e / 2] = to_halves(a * bf16(s[(c + e) / column_group]), b * bf16(s[(c + e + 1) / column_group]));
            }
            uint4* out = (uint4*)(to + (size_t)r * K + c);
            out[0] = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
            out[1] = make_uint4(pairs[4], pairs[5], pairs[6], pairs[7]);
        }
    }
}
