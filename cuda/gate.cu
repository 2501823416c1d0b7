// Many tokens: the inputs of the output matrix; a warp for each head of each token.
//
//     gated = ((group norm of y; ln_x) + bonus * v) * g
#include "common.cuh"

extern "C" __global__ void gate(const float* __restrict__ y,       // [T, C]
                                const float* __restrict__ v,       // [T, C]
                                const float* __restrict__ g,       // [T, C]
                                const float* __restrict__ bonus,   // [T, H]
                                const float* __restrict__ weight,  // [C] of ln_x
                                const float* __restrict__ bias,    // [C]
                                u16* __restrict__ gated,           // [T, C] float16
                                int T, int C) {
    const int H = C / HEAD, item = (blockIdx.x * blockDim.x + threadIdx.x) / LANES, lane = threadIdx.x % LANES;
    if (item >= T * H) return;
    const int c = item % H * HEAD + 2 * lane;
    const size_t i = (size_t)(item / H) * C + c;
    float2 p = load2(y + i);
    const float2 my_v = load2(v + i), my_g = load2(g + i), w = load2(weight + c), b = load2(bias + c);
    const float mean = warp_sum(sum_of(p)) / HEAD, extra = bonus[item];
    p = p - mean;
    const float factor = rsqrtf(warp_sum(sum_of(p * p)) / HEAD + GROUP_NORM_EPSILON);
    store(gated + i, (p * factor * w + b + my_v * extra) * my_g);
}
