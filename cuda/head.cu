// The logits of one token.
//
//     logits = head LN(x; ln_out)
#include "rows.cuh"

extern "C" __global__ void __launch_bounds__(ROW_THREADS)
head(const float* x,       // [C]
     const float* weight,  // [C] of ln_out
     const float* bias,    // [C]
     const u8* weights,    // [V, C]
     const u16* scales,    // [V, C / 64]
     float* logits,        // [V]
     int C, int V) {
    __shared__ float sums[2 * LANES];
    Matrix<KIND> m = {weights, scales, C};
    Place<KIND> at(C);
    Place<FP16> in(C);
    const int begin = share(V, blockIdx.x, gridDim.x), end = share(V, blockIdx.x + 1, gridDim.x);
    Batch<KIND> batch;
    batch.read(m, at, begin + at.group, end);
    const Values w(in, weight), b(in, bias);
    wait_for_previous();
    let_next_begin();
    Values v(in, x);
    v.normalise(in, C, w, b, sums);
    multiply(m, at, Input<KIND>(v, in, at, C, memory), batch, begin, end, row_sums(C));
    __syncthreads();
    for (int r = begin + threadIdx.x; r < end; r += blockDim.x) logits[r] = row_sum(row_sums(C), at, r - begin);
}
