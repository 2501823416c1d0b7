// x = LN(embedding of a token; ln0): a block for each token.
#include "common.cuh"
#include "layer_norm.cuh"

// Channels c and c + 1 of a row [C] of the embedding that begins at element `row`.
__device__ __forceinline__ float2 embedding_of(const u8* embedding, const u16* scales, size_t row, int c) {
    if (KIND == FP16) return halves(*(const u32*)(embedding + (row + c) * 2));
    const float scale = bf16(scales[(row + c) / GROUP]);
    return make_float2((signed char)embedding[row + c] * scale, (signed char)embedding[row + c + 1] * scale);
}

extern "C" __global__ void embed(const int* tokens,    // [T]
                                 const u8* embedding,  // [V, C] float16, or int8 in files of integers
                                 const u16* scales,    // [V, C / 64] bfloat16, of int8
                                 const float* weight,  // [C] of ln0
                                 const float* bias,    // [C]
                                 float* x,             // [T, C]
                                 int C) {
    __shared__ float shared[LANES];
    wait_for_previous();
    let_next_begin();
    const size_t row = (size_t)tokens[blockIdx.x] * C;
    x += (size_t)blockIdx.x * C;
    float sum = 0, squares = 0;
    for (int c = 2 * threadIdx.x; c < C; c += 2 * blockDim.x) {
        const float2 v = embedding_of(embedding, scales, row, c);
        store(x + c, v);  // the same thread reads it again
        sum += sum_of(v);
        squares += sum_of(v * v);
    }
    sum = block_sum(sum, shared);
    squares = block_sum(squares, shared);
    const LayerNorm norm(sum, squares, C);
    for (int c = 2 * threadIdx.x; c < C; c += 2 * blockDim.x)
        store(x + c, norm.of(load2(x + c), load2(weight + c), load2(bias + c)));
}
