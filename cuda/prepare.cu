// Many tokens: the inputs of the recurrence; a warp for each head of each token. See prepare.cuh.
#include "prepare.cuh"

extern "C" __global__ void prepare(const float* __restrict__ r,              // [T, C]
                                   float* __restrict__ k,                    // [T, C] in place
                                   float* __restrict__ v,                    // [T, C] in place
                                   float* __restrict__ w,                    // [T, C] w2's outputs; becomes the decay
                                   float* __restrict__ a,                    // [T, C] a2's outputs; becomes kk * a
                                   const float* __restrict__ towards_first,  // [T, C] v2's outputs
                                   float* __restrict__ v_first,              // [T, C] v of layer 0
                                   float* __restrict__ kk,                   // [T, C]
                                   float* __restrict__ bonus,                // [T, H]
                                   const float* __restrict__ vectors,        // [.., C] of the layer
                                   int T, int C, int is_first) {
    const int H = C / HEAD, item = (blockIdx.x * blockDim.x + threadIdx.x) / LANES, lane = threadIdx.x % LANES;
    if (item >= T * H) return;
    const int c = item % H * HEAD + 2 * lane;
    const size_t i = (size_t)(item / H) * C + c;
    const HeadVectors at(vectors, C, c);
    const Prepared p(at, load2(r + i), load2(k + i), load2(w + i), load2(a + i));
    const float2 my_v = load2(v + i);
    if (lane == 0) bonus[item] = p.bonus;
    if (is_first) store(v_first + i, my_v);
    else store(v + i, mixed_value(at, my_v, load2(v_first + i), load2(towards_first + i)));
    store(k + i, p.k);
    store(kk + i, p.kk);
    store(a + i, p.b);
    store(w + i, p.w);
}
