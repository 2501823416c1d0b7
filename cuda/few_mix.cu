// One token each of 2 to 16 sequences: layer norm, and the token shift of every matrix that follows; a block for each token.
//
//     x += parts;  u = LN(x);  mixed[m] = u + (u of the token before - u) * mixes[m]
//
// The parts are the blocks' sums of few_value.cu, and are added in their order.
//
// The token before is in the state. All that does not depend on the previous kernel is read before that has ended.
#define THREADS 512  // so that few parts of sums are read one after another
#include "mix.cuh"
#include "parts.cuh"

template <int n_mixes>
__device__ __forceinline__ void mix_token(float* x, const float* parts, int n_parts, const int* slots, const float* shift, const float* weight,
                                          const float* bias, const float* mixes, u16* mixed, float* u, int T, int C,
                                          long long state_size) {
    __shared__ float sums[2 * LANES];
    const int t = blockIdx.x;
    Row w, b, before, shares[n_mixes ? n_mixes : 1], now;
    w.read(weight, C);
    b.read(bias, C);
    if (n_mixes) before.read(shift + slots[t] * state_size, C);
#pragma unroll
    for (int m = 0; m < n_mixes; m++) shares[m].read(mixes + m * C, C);
    wait_for_previous();
    let_next_begin();
    now.read(x + (size_t)t * C, C);
    if (n_parts)
#pragma unroll
        for (int j = 0; j < FOURS; j++) {
            const size_t place = (size_t)t * C + Row::channel(j);
            if (Row::channel(j) >= C) break;
            now.v[j] = sum_of_parts((const float4*)(parts + place), T * C / 4, n_parts, now.v[j]);
            store(x + place, now.v[j]);
        }
    now.normalise(w, b, C, sums);
#pragma unroll
    for (int j = 0; j < FOURS; j++) {
        const int c = Row::channel(j);
        if (c >= C) break;
        if (n_mixes == 0) store(mixed + (size_t)t * C + c, now.v[j]);
        else store(u + (size_t)t * C + c, now.v[j]);
#pragma unroll
        for (int m = 0; m < n_mixes; m++)
            store(mixed + ((size_t)m * T + t) * C + c, now.v[j] + (before.v[j] - now.v[j]) * shares[m].v[j]);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
few_time_mix(float* x,             // [T, C]
             const float* parts,   // [n_parts, T, C]
             int n_parts,
             const int* slots,     // [T] the slot of each token's state
             const float* shift,   // [C] of the state in slot 0
             const float* weight,  // [C] of the layer norm
             const float* bias,    // [C]
             const float* mixes,   // [6, C]
             u16* mixed,           // [6, T, C] float16
             float* u,             // [T, C] the next token shift
             int T, int C, long long state_size) {
    mix_token<6>(x, parts, n_parts, slots, shift, weight, bias, mixes, mixed, u, T, C, state_size);
}

extern "C" __global__ void __launch_bounds__(THREADS)
few_channel_mix(float* x, const int* slots, const float* shift, const float* weight, const float* bias,
                const float* mixes,  // [C]
                u16* mixed,          // [T, C] float16
                float* u, int T, int C, long long state_size) {
    mix_token<1>(x, 0, 0, slots, shift, weight, bias, mixes, mixed, u, T, C, state_size);
}

// The sum and the layer norm alone.
extern "C" __global__ void __launch_bounds__(THREADS)
few_norm(float* x, const float* parts, int n_parts, const float* weight, const float* bias, u16* mixed, int T, int C) {
    mix_token<0>(x, parts, n_parts, 0, 0, weight, bias, 0, mixed, 0, T, C, 0);
}
