// The inputs of the output matrix, of one head of one token, by a warp: a lane has two neighbouring channels.
//
//     gated = ((group norm of y; ln_x) + bonus * v) * g
#pragma once
#include "common.cuh"

__device__ __forceinline__ float2 gated_value(float2 y, float2 v, float2 g, float bonus, float2 weight, float2 bias) {
    const float2 centred = y - warp_sum(sum_of(y)) / HEAD;
    const float factor = rsqrtf(warp_sum(sum_of(centred * centred)) / HEAD + GROUP_NORM_EPSILON);
    return (centred * factor * weight + bias + v * bonus) * g;
}
