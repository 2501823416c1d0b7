// One token each of 2 to 16 sequences: the inputs of the recurrence, the recurrence, and the inputs of the output matrix. A
// block has a head of a token. See prepare.cuh, token_state.cuh and gate.cuh.
#include "gate.cuh"
#include "prepare.cuh"
#include "token_state.cuh"

extern "C" __global__ void __launch_bounds__(THREADS)
few_heads(const float* rkv,      // [3, T, C]
          const float* second,   // [4, T, C] the outputs of w2, a2, v2 and g2
          const float* vectors,  // [.., C] of the layer
          const int* slots,      // [T] the slot of each token's state, all different
          const float* u,        // [T, C] the next token shift
          float* shift,          // [C] shift_att of this layer of the state in slot 0
          float* wkv,            // [H, N, N] of this layer of the state in slot 0, key by key
          float* v_first,        // [T, C] v of layer 0
          u16* gated,            // [T, C] float16
          int T, int C, int is_first, long long state_size) {
    __shared__ __align__(16) float in[VECTORS][HEAD], parts[WARPS * HEAD], y[HEAD];
    const int t = threadIdx.x, c0 = blockIdx.x * HEAD, slot = slots[blockIdx.y], lane = t % LANES;
    HeadState state(wkv + slot * state_size + (size_t)c0 * HEAD);
    const int c = c0 + 2 * lane;
    const HeadVectors at(vectors, C, c);
    const float2 weight = load2(vectors + ATT_LN_X_WEIGHT * C + c), bias = load2(vectors + ATT_LN_X_BIAS * C + c);
    const size_t i = (size_t)blockIdx.y * C + c, plane = (size_t)T * C;
    wait_for_previous();
    let_next_begin();
    float2 v, gate;
    float bonus;
    if (t < LANES) {
        const float2 r = load2(rkv + i);
        v = load2(rkv + 2 * plane + i);
        gate = load2(second + 3 * plane + i);
        const Prepared p(at, r, load2(rkv + plane + i), load2(second + i), load2(second + plane + i));
        bonus = p.bonus;
        if (is_first) store(v_first + i, v);
        else v = mixed_value(at, v, load2(v_first + i), load2(second + 2 * plane + i));
        store(in[W] + 2 * lane, p.w);
        store(in[KK] + 2 * lane, p.kk);
        store(in[B] + 2 * lane, p.b);
        store(in[K] + 2 * lane, p.k);
        store(in[R] + 2 * lane, r);
        store(in[V] + 2 * lane, v);
    }
    if (t / LANES == 1) store(shift + slot * state_size + c, load2(u + i));
    __syncthreads();
    const float4 read = state.advance(in, parts);
    if (t < ACROSS) store(y + t * 4, read);
    __syncthreads();
    if (t < LANES) store(gated + i, gated_value(load2(y + 2 * lane), v, gate, bonus, weight, bias));
}
