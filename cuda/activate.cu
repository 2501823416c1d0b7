// Many tokens: what is between the halves of the low-rank maps, and between those of the channel mix.
#include "common.cuh"

// low = tanh of w1's outputs, sigmoid of g1's, and those of a1 and v1 unchanged
extern "C" __global__ void activate_low(u16* __restrict__ low,  // [T, ranks] float16, in place: w, a, v, g
                                        int ranks, int end_w, int end_v, int size) {
    for (int i = 2 * (blockIdx.x * blockDim.x + threadIdx.x); i < size; i += 2 * gridDim.x * blockDim.x) {
        float2 v = halves(*(u32*)(low + i));
        const int column = i % ranks;  // ranks are even: both are of one map
        if (column < end_w) v = make_float2(tanhf(v.x), tanhf(v.y));
        else if (column >= end_v) v = sigmoid(v);
        store(low + i, v);
    }
}

// h = relu(h)^2
extern "C" __global__ void activate_hidden(uint4* __restrict__ h,  // [T, F / 8] eight float16 each, in place
                                           long long size) {
    const float ROOT_OF_LARGEST = 255.9f;  // of float16
    for (long long i = blockIdx.x * blockDim.x + threadIdx.x; i < size; i += gridDim.x * blockDim.x) {
        const uint4 v = h[i];
        u32 words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (int j = 0; j < 4; j++) {
            float2 f = halves(words[j]);
            f.x = fminf(fmaxf(f.x, 0.f), ROOT_OF_LARGEST);
            f.y = fminf(fmaxf(f.y, 0.f), ROOT_OF_LARGEST);
            words[j] = to_halves(f.x * f.x, f.y * f.y);
        }
        h[i] = make_uint4(words[0], words[1], words[2], words[3]);
    }
}
