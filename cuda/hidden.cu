// Decoding, fourth of five: the hidden units of the channel mix, of one token.
//
//     u = LN(x; ln2);  h = relu(key (u + (shift_ffn - u) * x_k))^2
#include "rows.cuh"

extern "C" __global__ void __launch_bounds__(ROW_THREADS)
hidden(const float* x,       // [C]
       const float* shift,   // [C] shift_ffn of this layer's state
       const float* weight,  // [C] of ln2
       const float* bias,    // [C]
       const float* mix,     // [C] x_k
       const u8* weights,    // [F, C]
       const u16* scales,    // [F, C / 64]
       float* u,             // [C] the state's next token shift
       float* h,             // [F]
       int C, int F) {
    __shared__ float sums[2 * LANES];
    Matrix<KIND> m = {weights, scales, C};
    Place<KIND> at(C);
    Place<FP16> in(C);
    const int begin = share(F, blockIdx.x, gridDim.x), end = share(F, blockIdx.x + 1, gridDim.x);
    Batch<KIND> batch;
    batch.read(m, at, begin + at.group, end);
    const Values w(in, weight), b(in, bias), last(in, shift), share_of_last(in, mix);
    wait_for_previous();
    let_next_begin();
    Values v(in, x);
    v.normalise(in, C, w, b, sums);
    if (blockIdx.x == 0) v.write(in, u);
    v.shift(last, share_of_last);
    multiply(m, at, Input<KIND>(v, in, at, C, memory), batch, begin, end, row_sums(C));
    __syncthreads();
    for (int r = begin + threadIdx.x; r < end; r += blockDim.x) {
        float up = fmaxf(row_sum(row_sums(C), at, r - begin), 0.f);
        h[r] = up * up;
    }
}
