// x = LN(embedding of a token; ln0): a block for each token.
#include "common.cuh"

extern "C" __global__ void embed(const int* tokens,     // [T]
                                 const u8* embedding,   // [V, C] float16, or int8 in files of integers
                                 const u16* scales,     // [V, C / 64] bfloat16, of int8
                                 const float* weight,   // [C] of ln0
                                 const float* bias,     // [C]
                                 float* x,              // [T, C]
                                 int C) {
    __shared__ float sums[LANES];
    wait_for_previous();
    let_next_begin();
    size_t row = (size_t)tokens[blockIdx.x] * C;
    x += (size_t)blockIdx.x * C;
    float s = 0, q = 0;
    for (int c = 2 * threadIdx.x; c < C; c += 2 * blockDim.x) {
        float2 v;
        if (KIND == FP16) v = halves(*(const u32*)(embedding + (row + c) * 2));
        else {
            float scale = bf16(scales[(row + c) / N]);
            v = make_float2((signed char)embedding[row + c] * scale, (signed char)embedding[row + c + 1] * scale);
        }
        *(float2*)(x + c) = v;  // the same thread reads it again
        s += v.x + v.y, q += v.x * v.x + v.y * v.y;
    }
    s = block_sum(s, sums), q = block_sum(q, sums);
    float mean = s / C, factor = rsqrtf(fmaxf(q / C - mean * mean, 0.f) + LN_EPSILON);
    for (int c = 2 * threadIdx.x; c < C; c += 2 * blockDim.x) {
        float2 v = *(float2*)(x + c), w = *(const float2*)(weight + c), b = *(const float2*)(bias + c);
        *(float2*)(x + c) = make_float2((v.x - mean) * factor * w.x + b.x, (v.y - mean) * factor * w.y + b.y);
    }
}
