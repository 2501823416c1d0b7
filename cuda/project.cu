// Decoding, first of five operations of a layer: r, k, v and the first halves of the low-rank maps, of one token.
//
//     u = LN(x; ln1);  each matrix times u + (shift_att - u) * its own mix
//
// A block has rows of one matrix; the host gives the matrices blocks by the time that their rows take.
#include "rows.cuh"

enum { RECEPTANCE, KEY, VALUE, W1, A1, V1, G1, MATRICES };

template <int kind>
__device__ __forceinline__ void project_rows(const Matrix<kind>& m, int begin, int end, const float* x, const float* shift,
                                             const float* weight, const float* bias, const float* mix, float* u_out,
                                             int matrix, float* out) {
    __shared__ float sums[2 * LANES];
    const int C = m.K;
    Place<kind> at(C);
    Place<FP16> in(C);
    Batch<kind> batch;
    batch.read(m, at, begin + at.group, end);
    const Values w(in, weight), b(in, bias), last(in, shift), share_of_last(in, mix);
    wait_for_previous();
    let_next_begin();
    Values v(in, x);
    v.normalise(in, C, w, b, sums);
    if (u_out) v.write(in, u_out);
    v.shift(last, share_of_last);
    multiply(m, at, Input<kind>(v, in, at, C, memory), batch, begin, end, row_sums(C));
    __syncthreads();
    for (int r = begin + threadIdx.x; r < end; r += blockDim.x) {
        float total = row_sum(row_sums(C), at, r - begin);
        out[r] = matrix == W1 ? tanhf(total) : matrix == G1 ? sigmoid(total) : total;
    }
}

extern "C" __global__ void __launch_bounds__(ROW_THREADS)
project(const float* x,         // [C] the residual stream
        const float* shift,     // [C] shift_att of this layer's state
        const float* weight,    // [C] of ln1
        const float* bias,      // [C]
        const float* mixes,     // [6, C] x_r, x_k, x_v, x_w, x_a, x_g
        const u8* main,         // [3 C, C] receptance, key, value
        const u16* scales,      // [3 C, C / 64]
        const u8* low,          // [the sum of ranks, C] w1, a1, v1, g1
        const u16* low_scales,  // [the sum of ranks, C / 64]
        float* u,               // [C] the state's next token shift
        float* rkv,             // [3, C]
        float* hidden,          // [the sum of ranks] what the second halves take
        int C,
        int end_r, int end_k, int end_v, int end_w, int end_a, int end_v1,  // blocks; g1 has the last ones
        int rank_w, int rank_a, int rank_v, int rank_g) {
    const int ends[MATRICES] = {end_r, end_k, end_v, end_w, end_a, end_v1, (int)gridDim.x};
    const int rows[MATRICES] = {C, C, C, rank_w, rank_a, rank_v, rank_g}, mix_of[MATRICES] = {0, 1, 2, 3, 4, 2, 5};
    int matrix = RECEPTANCE, first_block = 0, first_row = 0, n = C, last_block = end_r, mix = 0;
#pragma unroll
    for (int i = 1; i < MATRICES; i++)
        if ((int)blockIdx.x >= ends[i - 1]) {
            first_row = i == W1 ? 0 : first_row + n;  // the low-rank maps are a matrix of their own
            matrix = i, first_block = ends[i - 1], last_block = ends[i], n = rows[i], mix = mix_of[i];
        }
    const int block = blockIdx.x - first_block, blocks = last_block - first_block;
    const int begin = first_row + share(n, block, blocks), end = first_row + share(n, block + 1, blocks);
    if (matrix < W1)
        project_rows<KIND>({main, scales, C}, begin, end, x, shift, weight, bias, mixes + mix * C,
                           blockIdx.x == 0 ? u : 0, matrix, rkv);
    else
        project_rows<LOW>({low, low_scales, C}, begin, end, x, shift, weight, bias, mixes + mix * C, 0, matrix, hidden);
}
