// Many tokens: layer norm, and the token shift of every matrix that follows.
//
//     u = LN(x);  mixed[m] = u + (u of the token before - u) * mixes[m]
//
// The token before is the row above or, at the beginning of a sequence, in its state. A block has TOKENS rows one after
// another, so that it computes u of only one more.
#include "common.cuh"

#define TOKENS 8
#define LARGEST_HALF 65504.f

// Row x [C], normalised, into u [C] in shared memory.
__device__ __forceinline__ void normalise(const float* x, const float* weight, const float* bias, float* u, int C,
                                          float* sums) {
    float s = 0, q = 0;
    for (int c = threadIdx.x; c < C; c += blockDim.x) s += x[c], q += x[c] * x[c];
    s = block_sum(s, sums), q = block_sum(q, sums);
    float mean = s / C, factor = rsqrtf(fmaxf(q / C - mean * mean, 0.f) + LN_EPSILON);
    for (int c = threadIdx.x; c < C; c += blockDim.x) u[c] = (x[c] - mean) * factor * weight[c] + bias[c];
    __syncthreads();
}

extern "C" __global__ void mix(const float* x,       // [T, C]
                               const int* slots,     // [T] the state that a token belongs to; its tokens are neighbours
                               const float* shift,   // a state's [C], `state_size` floats after that of the slot before
                               const float* weight,  // [C] of the layer norm
                               const float* bias,    // [C]
                               const float* mixes,   // [n_mixes, C]; with n_mixes 0, u itself is what is wanted
                               u16* mixed,           // [n_mixes or 1, T, C] float16
                               float* last,          // [slots, C] u of a sequence's last token, the next token shift
                               int T, int C, int n_mixes, long long state_size) {
    extern __shared__ __align__(16) float u[];  // [2, C] of this token and the one before
    __shared__ float sums[LANES];
    wait_for_previous();
    let_next_begin();
    const int begin = blockIdx.x * TOKENS, end = min(begin + TOKENS, T);
    if (begin > 0 && n_mixes && slots[begin - 1] == slots[begin])
        normalise(x + (size_t)(begin - 1) * C, weight, bias, u + (begin + 1) % 2 * C, C, sums);
    for (int t = begin; t < end; t++) {
        float* now = u + t % 2 * C;
        normalise(x + (size_t)t * C, weight, bias, now, C, sums);
        const int slot = slots[t];
        const bool is_first = t == 0 || slots[t - 1] != slot, is_last = t == T - 1 || slots[t + 1] != slot;
        const float* before = is_first ? shift + slot * state_size : u + (t + 1) % 2 * C;
        for (int c = 2 * threadIdx.x; c < C; c += 2 * blockDim.x) {
            float2 v = make_float2(now[c], now[c + 1]);
            if (n_mixes == 0) *(u32*)(mixed + (size_t)t * C + c) = to_halves(v.x, v.y);
            else {
                float2 d = make_float2(before[c] - v.x, before[c + 1] - v.y);
                for (int m = 0; m < n_mixes; m++) {
                    float2 share = *(const float2*)(mixes + m * C + c);
                    *(u32*)(mixed + ((size_t)m * T + t) * C + c) = to_halves(v.x + d.x * share.x, v.y + d.y * share.y);
                }
                if (is_last) *(float2*)(last + (size_t)slot * C + c) = v;
            }
        }
        __syncthreads();
    }
}

// The token shifts of sequences after their last tokens, where nothing else brings them into the states.
extern "C" __global__ void keep_shift(const int* slots,   // [T]
                                      const float* last,  // [slots, C]
                                      float* shift,       // a state's [C]
                                      int T, int C, long long state_size) {
    wait_for_previous();
    let_next_begin();
    const int t = blockIdx.x, slot = slots[t];
    if (t < T - 1 && slots[t + 1] == slot) return;
    for (int c = threadIdx.x; c < C; c += blockDim.x) (shift + slot * state_size)[c] = last[(size_t)slot * C + c];
}
