// Decoding, third of five: what the time mix adds to the residual stream, of one token.
//
//     x += output (((group norm of y) * ln_x.weight + ln_x.bias + bonus) * g)
//
// `heads` has multiplied by g already, so that few vectors remain: every block reads all of them.
#include "rows.cuh"

// The group norm of a thread's part of y [C], times `factors`, plus `summands`.
__device__ __forceinline__ void group_norm(Values& y, const Values& factors, const Values& summands) {
    const int THREADS_OF_A_HEAD = HEAD / INPUT_COLUMNS;
    float sum = 0, squares = 0;
#pragma unroll
    for (int e = 0; e < INPUT_COLUMNS; e++) sum += y.v[e];
    const float mean = sum_of_neighbours<THREADS_OF_A_HEAD>(sum) / HEAD;
#pragma unroll
    for (int e = 0; e < INPUT_COLUMNS; e++) {
        y.v[e] -= mean;
        squares += y.v[e] * y.v[e];
    }
    const float factor = rsqrtf(sum_of_neighbours<THREADS_OF_A_HEAD>(squares) / HEAD + GROUP_NORM_EPSILON);
#pragma unroll
    for (int e = 0; e < INPUT_COLUMNS; e++) y.v[e] = y.v[e] * factor * factors.v[e] + summands.v[e];
}

extern "C" __global__ void __launch_bounds__(ROW_THREADS)
output(const float* y,     // [3, C] of `heads`: y, ln_x.weight * g, (ln_x.bias + bonus) * g
       const u8* weights,  // [C, C]
       const u16* scales,  // [C, C / 64]
       float* x,           // [C]
       int C) {
    Rows<KIND> rows({weights, scales, C}, C);
    int r = rows.begin + threadIdx.x;
    float before = r < rows.end ? __ldcg(x + r) : 0.f;  // `value` or `embed` has written it, three kernels ago
    wait_for_previous();
    let_next_begin();
    Values v(rows.in, y);
    const Values factors(rows.in, y + C), summands(rows.in, y + 2 * C);
    group_norm(v, factors, summands);
    rows.multiply(v);
    for (; r < rows.end; r += blockDim.x) {
        x[r] = before + rows.sum(r);
        before = r + blockDim.x < rows.end ? __ldcg(x + r + blockDim.x) : 0.f;
    }
}
