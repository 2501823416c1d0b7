// One token each of 2 to 16 sequences: products on tensor cores that read each weight once, at the speed of memory.
//
// A warp multiplies a chunk of 8 rows of a matrix, 16 bytes of a row for each of four lanes: the weights are the operand b of
// products of which tokens are the rows of a. The order of columns within a chunk does not matter, as long as a and b agree on
// it: a lane has the same ones of both.
#pragma once
#include "common.cuh"

#define MOST_TOKENS 16
#define THREADS 512
#define WARPS (THREADS / LANES)
#define TILE 8         // rows
#define STAGES 8       // tiles that a warp has in flight: 64 KB per multiprocessor
#define INPUT_PAD 32   // columns between the inputs of two tokens in shared memory, so that a warp reads different banks

// 8 columns, from this lane's `column` on, of tokens lane / 4 and lane / 4 + 8 of x [T, ..]; the second are zeros for up to 8
// tokens. What is read in place of tokens that do not exist gives sums that nobody uses.
struct Inputs {
    uint4 first, second;
    __device__ __forceinline__ Inputs(const u16* x, size_t stride, int T, int column) : second(make_uint4(0, 0, 0, 0)) {
        const int token = threadIdx.x % LANES / 4;
        first = *(const uint4*)(x + min(token, T - 1) * stride + column);
        if (T > 8) second = *(const uint4*)(x + min(token + 8, T - 1) * stride + column);
    }
    // Adds 8 columns of a row each, row lane / 4.
    __device__ __forceinline__ void multiply(float4& sum, u32 w0, u32 w1, u32 w2, u32 w3) const {
        multiply_add(sum, first.x, second.x, first.y, second.y, w0, w1);
        multiply_add(sum, first.z, second.z, first.w, second.w, w2, w3);
    }
};

// Integer weights become float16 in registers, times their scale, and times UP: so that few of them are too small for float16.
#define UP 16.f
#define BYTES_OFFSET 0x64806480u    // 1024 + 128, twice, in float16
#define NIBBLES_OFFSET 0x64086408u  // 1024 + 8, which is added to what is stored

__device__ __forceinline__ u32 scale_halves(u32 scale) {
    const float s = bf16(scale) * UP;
    return to_halves(s, s);
}
// Four unsigned bytes, in INT8 with 128 added and in INT4 with 8, and two of them as float16, inserted into the lowest bits of
// 1024: bytes 0 and 1, or 2 and 3.
template <int kind> __device__ __forceinline__ u32 unsigned_bytes(u32 word, int half) {
    return kind == INT8 ? word ^ 0x80808080 : word >> 4 * half & 0x0f0f0f0f;
}
template <int kind> __device__ __forceinline__ u32 scaled(u32 in_1024, u32 scale) {
    return multiply_halves(subtract_halves(in_1024, kind == INT8 ? BYTES_OFFSET : NIBBLES_OFFSET), scale);
}
template <int kind> __device__ __forceinline__ u32 lower_two(u32 bytes, u32 scale) {
    return scaled<kind>(__byte_perm(bytes, 0x64646464, 0x4140), scale);
}
template <int kind> __device__ __forceinline__ u32 upper_two(u32 bytes, u32 scale) {
    return scaled<kind>(__byte_perm(bytes, 0x64646464, 0x4342), scale);
}

// 16 bytes of a row, for each of four lanes; of integers they are in one group of 64 columns, or the groups of two lanes each.
template <int kind> struct Chunk {
    static const int COLUMNS = kind == FP16 ? 32 : kind == INT8 ? 64 : 128;
    // Adds the chunk that begins at x [T, ..]; `scale` is that of this lane's weights.
    __device__ __forceinline__ static void multiply(float4& sum, uint4 w, u32 scale, const u16* x, size_t stride, int T) {
        const int q = threadIdx.x % 4;
        if constexpr (kind == FP16) Inputs(x, stride, T, q * 8).multiply(sum, w.x, w.y, w.z, w.w);
        else {
            const u32 words[4] = {w.x, w.y, w.z, w.w}, s = scale_halves(scale);
            const int column = kind == INT8 ? q * 16 : q / 2 * GROUP + q % 2 * 16;
#pragma unroll
            for (int half = 0; half < (kind == INT8 ? 1 : 2); half++)
#pragma unroll
                for (int i = 0; i < 4; i += 2) {
                    const u32 first = unsigned_bytes<kind>(words[i], half), second = unsigned_bytes<kind>(words[i + 1], half);
                    Inputs(x, stride, T, column + 32 * half + 4 * i)
                        .multiply(sum, lower_two<kind>(first, s), upper_two<kind>(first, s), lower_two<kind>(second, s),
                                  upper_two<kind>(second, s));
                }
        }
    }
};

// finish(token, row, sum) of the sums of a tile that a lane has: rows 2q and 2q + 1 of it, q = lane % 4.
template <class Finish> __device__ __forceinline__ void each_sum(float4 sum, int T, const Finish& finish) {
    const int token = threadIdx.x % LANES / 4, row = threadIdx.x % 4 * 2;
    if (token < T) {
        finish(token, row, sum.x);
        finish(token, row + 1, sum.y);
    }
    if (token + 8 < T) {
        finish(token + 8, row, sum.z);
        finish(token + 8, row + 1, sum.w);
    }
}
