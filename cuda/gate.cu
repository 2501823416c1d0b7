// Many tokens: what the output matrix takes; a warp for each head of each token.
//
//     gated = ((group norm of y; ln_x) + bonus * v) * g
#include "common.cuh"

extern "C" __global__ void gate(const float* y,       // [T, C]
                                const float* v,       // [T, C]
                                const float* g,       // [T, C]
                                const float* bonus,   // [T, H]
                                const float* weight,  // [C] of ln_x
                                const float* bias,    // [C]
                                u16* gated,           // [T, C] float16
                                int T, int C) {
    const int H = C / N, item = (blockIdx.x * blockDim.x + threadIdx.x) / LANES, lane = threadIdx.x % LANES;
    if (item >= T * H) return;
    const int c = item % H * N + 2 * lane;
    const size_t i = (size_t)(item / H) * C + c;
    auto two = [](const float* p) { return *(const float2*)p; };
    float2 p = two(y + i);
    const float2 my_v = two(v + i), my_g = two(g + i), w = two(weight + c), b = two(bias + c);
    const float mean = warp_sum(p.x + p.y) / N, extra = bonus[item];
    p.x -= mean, p.y -= mean;
    const float factor = rsqrtf(warp_sum(p.x * p.x + p.y * p.y) / N + GROUP_NORM_EPSILON);
    *(u32*)(gated + i) = to_halves((p.x * factor * w.x + b.x + extra * my_v.x) * my_g.x,
                                   (p.y * factor * w.y + b.y + extra * my_v.y) * my_g.y);
}
