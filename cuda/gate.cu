// Many tokens: the inputs of the output matrix; a warp for each head of each token. See gate.cuh.
#include "gate.cuh"

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
    store(gated + i, gated_value(load2(y + i), load2(v + i), load2(g + i), bonus[item], load2(weight + c), load2(bias + c)));
}
