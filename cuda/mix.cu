// Many tokens: layer norm, and the token shift of every matrix that follows.
//
//     u = LN(x);  mixed[m] = u + (u of the token before - u) * mixes[m]
//
// The token before is the row above or, at the beginning of a sequence, in its state. A block has some rows one after
// another, so that it computes u of only one more.
#include "common.cuh"

#define THREADS 256
#define FOURS 4  // groups of four channels that a thread has: for C up to 4,096

// A row [C] spread over the threads of a block.
struct Row {
    float4 v[FOURS];
    __device__ __forceinline__ static int channel(int j) { return (threadIdx.x + j * THREADS) * 4; }
    __device__ __forceinline__ void read(const float* from, int C) {
#pragma unroll
        for (int j = 0; j < FOURS; j++)
            v[j] = channel(j) < C ? *(const float4*)(from + channel(j)) : make_float4(0, 0, 0, 0);
    }
    // Layer norm; `sums` [2, LANES] is shared memory for this alone.
    __device__ __forceinline__ void normalise(const float* weight, const float* bias, int C, float* sums) {
        float s = 0, q = 0;
#pragma unroll
        for (int j = 0; j < FOURS; j++)
            s += v[j].x + v[j].y + v[j].z + v[j].w, q += v[j].x * v[j].x + v[j].y * v[j].y + v[j].z * v[j].z + v[j].w * v[j].w;
        s = warp_sum(s), q = warp_sum(q);
        __syncthreads();
        if (threadIdx.x % LANES == 0) sums[threadIdx.x / LANES] = s, sums[LANES + threadIdx.x / LANES] = q;
        __syncthreads();
        s = q = 0;
#pragma unroll
        for (int i = 0; i < THREADS / LANES; i++) s += sums[i], q += sums[LANES + i];
        const float mean = s / C, factor = rsqrtf(fmaxf(q / C - mean * mean, 0.f) + LN_EPSILON);
        Row w, b;
        w.read(weight, C), b.read(bias, C);
#pragma unroll
        for (int j = 0; j < FOURS; j++) {
            v[j].x = (v[j].x - mean) * factor * w.v[j].x + b.v[j].x, v[j].y = (v[j].y - mean) * factor * w.v[j].y + b.v[j].y;
            v[j].z = (v[j].z - mean) * factor * w.v[j].z + b.v[j].z, v[j].w = (v[j].w - mean) * factor * w.v[j].w + b.v[j].w;
        }
    }
};

extern "C" __global__ void __launch_bounds__(THREADS)
mix(const float* x,       // [T, C]
    const int* slots,     // [T] the state that a token belongs to; its tokens are neighbours
    const float* shift,   // a state's [C], `state_size` floats after that of the slot before
    const float* weight,  // [C] of the layer norm
    const float* bias,    // [C]
    const float* mixes,   // [n_mixes, C]; with n_mixes 0, u itself is what is wanted
    u16* mixed,           // [n_mixes or 1, T, C] float16
    float* last,          // [slots, C] u of a sequence's last token, the next token shift
    int T, int C, int n_mixes, long long state_size, int tokens) {  // tokens of a block
    __shared__ float sums[2 * LANES];
    const int begin = blockIdx.x * tokens, end = min(begin + tokens, T);
    Row before, now;
    if (begin > 0 && n_mixes && slots[begin - 1] == slots[begin])
        before.read(x + (size_t)(begin - 1) * C, C), before.normalise(weight, bias, C, sums);
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
            const float4 v = now.v[j], b = before.v[j];
            if (n_mixes == 0) *(uint2*)(mixed + (size_t)t * C + c) = make_uint2(to_halves(v.x, v.y), to_halves(v.z, v.w));
            for (int m = 0; m < n_mixes; m++) {
                const float4 share = *(const float4*)(mixes + m * C + c);
                *(uint2*)(mixed + ((size_t)m * T + t) * C + c) =
                    make_uint2(to_halves(v.x + (b.x - v.x) * share.x, v.y + (b.y - v.y) * share.y),
                               to_halves(v.z + (b.z - v.z) * share.z, v.w + (b.w - v.w) * share.w));
            }
            if (is_last && n_mixes) *(float4*)(last + (size_t)slot * C + c) = v;
        }
        before = now;
    }
}

// The token shifts of sequences after their last tokens, where nothing else brings them into the states.
extern "C" __global__ void keep_shift(const int* slots,   // [T]
                                      const float* last,  // [slots, C]
                                      float* shift,       // a state's [C]
                                      int T, int C, long long state_size) {
    const int t = blockIdx.x, slot = slots[t];
    if (t < T - 1 && slots[t + 1] == slot) return;
    for (int c = threadIdx.x; c < C; c += blockDim.x) (shift + slot * state_size)[c] = last[(size_t)slot * C + c];
}
