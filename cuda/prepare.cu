// Many tokens: everything that the recurrence takes, of each head of each token; a warp for each.
//
//     w = exp(-exp(-0.5) * sigmoid(w0 + w));  a = sigmoid(a0 + a);  v = v + (v_first - v) * sigmoid(v0 + towards_first)
//     kk = k * k_k / |k * k_k|;  k = k * (1 + (a - 1) * k_a);  removed = kk * a;  bonus = sum of r k r_k
#include "common.cuh"

extern "C" __global__ void prepare(const float* r,         // [T, C]
                                   float* k,               // [T, C] in place
                                   float* v,               // [T, C] in place
                                   float* w,               // [T, C] what w2 gave; becomes the decay
                                   float* a,               // [T, C] what a2 gave; becomes kk * a
                                   const float* towards_first,  // [T, C] what v2 gave
                                   float* v_first,         // [T, C] v of layer 0
                                   float* kk,              // [T, C]
                                   float* bonus,           // [T, H]
                                   const float* vectors,   // [6, C] w0, a0, v0, k_k, k_a, r_k
                                   int T, int C, int is_first) {
    const int H = C / N, item = (blockIdx.x * blockDim.x + threadIdx.x) / LANES, lane = threadIdx.x % LANES;
    if (item >= T * H) return;
    const int c = item % H * N + 2 * lane;
    const size_t i = (size_t)(item / H) * C + c;
    auto two = [](const float* p) { return *(const float2*)p; };
    const float2 w0 = two(vectors + c), a0 = two(vectors + C + c), v0 = two(vectors + 2 * C + c);
    const float2 k_k = two(vectors + 3 * C + c), k_a = two(vectors + 4 * C + c), r_k = two(vectors + 5 * C + c);
    const float2 my_k = two(k + i), my_r = two(r + i), decay = two(w + i), rate = two(a + i);
    float2 my_v = two(v + i);
    const float2 my_a = make_float2(sigmoid(a0.x + rate.x), sigmoid(a0.y + rate.y));
    const float2 unscaled = make_float2(my_k.x * k_k.x, my_k.y * k_k.y);
    const float2 new_k = make_float2(my_k.x * (1.f + (my_a.x - 1.f) * k_a.x), my_k.y * (1.f + (my_a.y - 1.f) * k_a.y));
    const float length = fmaxf(sqrtf(warp_sum(unscaled.x * unscaled.x + unscaled.y * unscaled.y)), 1e-12f);
    const float2 removal = make_float2(unscaled.x / length, unscaled.y / length);
    const float sum = warp_sum(my_r.x * new_k.x * r_k.x + my_r.y * new_k.y * r_k.y);
    if (lane == 0) bonus[item] = sum;
    if (is_first) *(float2*)(v_first + i) = my_v;
    else {
        const float2 first = two(v_first + i), towards = two(towards_first + i);
        my_v.x += (first.x - my_v.x) * sigmoid(v0.x + towards.x), my_v.y += (first.y - my_v.y) * sigmoid(v0.y + towards.y);
        *(float2*)(v + i) = my_v;
    }
    *(float2*)(k + i) = new_k, *(float2*)(kk + i) = removal;
    *(float2*)(a + i) = make_float2(removal.x * my_a.x, removal.y * my_a.y);
    *(float2*)(w + i) = make_float2(expf(DECAY_SCALE * sigmoid(w0.x + decay.x)), expf(DECAY_SCALE * sigmoid(w0.y + decay.y)));
}
