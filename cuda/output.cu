// Decoding, third of five: what the time mix adds to the residual stream, of one token.
//
//     x += output (((group norm of y) * ln_x.weight + ln_x.bias + bonus) * g)
//
// `heads` has multiplied g out, so that few vectors remain: every block reads all of them.
#include "rows.cuh"

extern "C" __global__ void __launch_bounds__(ROW_THREADS)
output(const float* y,       // [3, C] of `heads`: y, ln_x.weight * g, (ln_x.bias + bonus) * g
       const u8* weights,    // [C, C]
       const u16* scales,    // [C, C / 64]
       float* x,             // [C]
       int C) {
    Matrix<KIND> m = {weights, scales, C};
    Place<KIND> at(C);
    Place<FP16> in(C);
    const int begin = share(C, blockIdx.x, gridDim.x), end = share(C, blockIdx.x + 1, gridDim.x);
    Batch<KIND> batch;
    batch.read(m, at, begin + at.group, end);
    int r = begin + threadIdx.x;
    float before = r < end ? __ldcg(x + r) : 0.f;  // `value` or `embed` has written it, three kernels ago
    wait_for_previous();
    let_next_begin();
    Values v(in, y);
    const Values factors(in, y + C), summands(in, y + 2 * C);
    const int HEAD = Piece<FP16>::OF_A_GROUP;  // threads that have the channels of a head
    float sum = 0, squares = 0;
#pragma unroll
    for (int e = 0; e < 8; e++) sum += v.v[e];
    const float mean = sum_of_neighbours<HEAD>(sum) / N;
#pragma unroll
    for (int e = 0; e < 8; e++) v.v[e] -= mean, squares += v.v[e] * v.v[e];
    const float factor = rsqrtf(sum_of_neighbours<HEAD>(squares) / N + GROUP_NORM_EPSILON);
#pragma unroll
    for (int e = 0; e < 8; e++) v.v[e] = v.v[e] * factor * factors.v[e] + summands.v[e];
    multiply(m, at, Input<KIND>(v, in, at, C, memory), batch, begin, end, row_sums(C));
    __syncthreads();
    for (; r < end; r += blockDim.x) {
        x[r] = before + row_sum(row_sums(C), at, r - begin);
        before = r + blockDim.x < end ? __ldcg(x + r + blockDim.x) : 0.f;
    }
}
