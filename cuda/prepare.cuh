// The inputs of the recurrence of one head of one token, by a warp: a lane has two neighbouring channels.
//
//     w = exp(-exp(-0.5) * sigmoid(w0 + w));  a = sigmoid(a0 + a);  v = v + (v_first - v) * sigmoid(v0 + towards_first)
//     kk = k * k_k / |k * k_k|;  k = k * (1 + (a - 1) * k_a);  b = kk * a;  bonus = sum of r k r_k
#pragma once
#include "common.cuh"
#include "vectors.cuh"

// Of a layer's `vectors` [.., C], at channels c and c + 1.
struct HeadVectors {
    float2 w0, a0, v0, k_k, k_a, r_k;
    __device__ __forceinline__ HeadVectors(const float* vectors, int C, int c)
        : w0(load2(vectors + ATT_W0 * C + c)), a0(load2(vectors + ATT_A0 * C + c)), v0(load2(vectors + ATT_V0 * C + c)),
          k_k(load2(vectors + ATT_K_K * C + c)), k_a(load2(vectors + ATT_K_A * C + c)), r_k(load2(vectors + ATT_R_K * C + c)) {}
};

struct Prepared {
    float2 w, kk, b, k;
    float bonus;
    // `decay` and `rate` are the outputs of w2 and a2.
    __device__ __forceinline__ Prepared(const HeadVectors& at, float2 r, float2 before, float2 decay, float2 rate) {
        const float2 a = sigmoid(at.a0 + rate), unscaled = before * at.k_k;
        k = before * ((a - 1.f) * at.k_a + 1.f);
        kk = unscaled / fmaxf(sqrtf(warp_sum(sum_of(unscaled * unscaled))), 1e-12f);
        b = kk * a;
        bonus = warp_sum(sum_of(r * k * at.r_k));
        const float2 log_decay = sigmoid(at.w0 + decay) * DECAY_SCALE;
        w = make_float2(expf(log_decay.x), expf(log_decay.y));
    }
};

// v of a layer after the first, where `towards_first` is the output of v2.
__device__ __forceinline__ float2 mixed_value(const HeadVectors& at, float2 v, float2 v_first, float2 towards_first) {
    return v + (v_first - v) * sigmoid(at.v0 + towards_first);
}
