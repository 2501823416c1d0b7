// Many tokens: layer norm, and the token shift of every matrix that follows.
//
//     u = LN(x);  mixed[m] = u + (u of the token before - u) * mixes[m]
//
// The token before is the row above or, at the beginning of a sequence, in its state. A block has some consecutive rows, so
// that it computes u of only one more.
#include "mix.cuh"

extern "C" __global__ void __launch_bounds__(THREADS)
mix(const float* __restrict__ x,       // [T, C]
    const int* __restrict__ slots,     // [T] the slot of each token's state; the tokens of a sequence are neighbours
    const float* __restrict__ shift,   // [C] of the state in slot 0; the next slot's is `state_size` floats further
    const float* __restrict__ weight,  // [C] of the layer norm
    const float* __restrict__ bias,    // [C]
    const float* __restrict__ mixes,   // [n_mixes, C]; if n_mixes is 0, u itself is written
    u16* __restrict__ mixed,           // [n_mixes or 1, T, C] float16
    float* __restrict__ last,          // [slots, C] u of a sequence's last token, the next token shift
    int T, int C, int n_mixes, long long state_size, int tokens) {  // tokens of a block
    __shared__ float sums[2 * LANES];
    const int begin = blockIdx.x * tokens, end = min(begin + tokens, T);
    Row before, now;
    if (begin > 0 && n_mixes && slots[begin - 1] == slots[begin]) {
        before.read(x + (size_t)(begin - 1) * C, C);
        before.normalise(weight, bias, C, sums);
    }
    for (int t = begin; t < end; t++) {
        const int slot = slots[t];
        const bool is_first = t == 0 || slots[t - 1] != slot, is_last = t == T - 1 || slots[t + 1] != slot;
        now.read(x + (size_t)t * C, C);
        if (is_first && n_mixes) before.read(shift + slot * state_size, C);
        now.normalise(weight, bias, C, sums);
#pragma unroll
        for (int j = 0; j < FOURS; j++) {
            const int c = Row::channel(j);
            if (c >= C) break;
            const float4 u = now.v[j];
            if (n_mixes == 0) store(mixed + (size_t)t * C + c, u);
            for (int m = 0; m < n_mixes; m++)
                store(mixed + ((size_t)m * T + t) * C + c, u + (before.v[j] - u) * load4(mixes + m * C + c));
            if (is_last && n_mixes) store(last + (size_t)slot * C + c, u);
        }
        before = now;
    }
}

// Copies the token shifts of sequences after their last tokens into their states, where no other kernel does.
extern "C" __global__ void keep_shift(const int* __restrict__ slots,   // [T]
                                      const float* __restrict__ last,  // [slots, C]
                                      float* __restrict__ shift,       // [C] of the state in slot 0
                                      int T, int C, long long state_size) {
    const int t = blockIdx.x, slot = slots[t];
    if (t < T - 1 && slots[t + 1] == slot) return;
    for (int c = threadIdx.x; c < C; c += blockDim.x) (shift + slot * state_size)[c] = last[(size_t)slot * C + c];
}
