// Many tokens: the inputs of the recurrence; a warp for each head of each token.
//
//     w = exp(-exp(-0.5) * sigmoid(w0 + w));  a = sigmoid(a0 + a);  v = v + (v_first - v) * sigmoid(v0 + towards_first)
//     kk = k * k_k / |k * k_k|;  k = k * (1 + (a - 1) * k_a);  removed = kk * a;  bonus = sum of r k r_k
#include "common.cuh"
#include "vectors.cuh"

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
    auto vector = [&](Vector which) { return load2(vectors + which * C + c); };
    const float2 w0 = vector(ATT_W0), a0 = vector(ATT_A0), v0 = vector(ATT_V0);
    const float2 k_k = vector(ATT_K_K), k_a = vector(ATT_K_A), r_k = vector(ATT_R_K);
    const float2 my_k = load2(k + i), my_r = load2(r + i), decay = load2(w + i), rate = load2(a + i);
    float2 my_v = load2(v + i);
    const float2 my_a = sigmoid(a0 + rate);
    const float2 unscaled = my_k * k_k;
    const float2 new_k = my_k * ((my_a - 1.f) * k_a + 1.f);
    const float length = fmaxf(sqrtf(warp_sum(sum_of(unscaled * unscaled))), 1e-12f);
    const float2 removal = unscaled / length;
    const float sum = warp_sum(sum_of(my_r * new_k * r_k));
    if (lane == 0) bonus[item] = sum;
    if (is_first) store(v_first + i, my_v);
    else {
        my_v = my_v + (load2(v_first + i) - my_v) * sigmoid(v0 + load2(towards_first + i));
        store(v + i, my_v);
    }
    const float2 log_decay = sigmoid(w0 + decay) * DECAY_SCALE;
    store(k + i, new_k);
    store(kk + i, removal);
    store(a + i, removal * my_a);
    store(w + i, make_float2(expf(log_decay.x), expf(log_decay.y)));
}
