// Decoding, second of five: the second halves of the low-rank maps, and the recurrence of a head, for one token. Values
// of a head do not depend on each other, so two blocks have a head, 32 values each: H alone are too few to fill a GPU.
//
//     w = exp(-exp(-0.5) * sigmoid(w0 + w2 tanh(..)));  a = sigmoid(a0 + a2 ..);  g = g2 sigmoid(..)
//     v = v + (v_first - v) * sigmoid(v0 + v2 ..);  kk = k * k_k / |k * k_k|;  k = k * (1 + (a - 1) * k_a)
//     S = S * diag(w) - (S kk) (kk * a)^T + v k^T;  y = S r
//
// `output` takes the group norm of y times ln_x.weight * g, and adds (ln_x.bias + bonus) * g, where the bonus is
// (the sum of r k r_k) v: these two vectors are computed here.
#include "state.cuh"
#include "vectors.cuh"

#define VALUES 32                      // of a head, in a block
#define THREADS (HEAD * VALUES / 4)    // one for 4 values and each key
#define WARPS (THREADS / LANES)
#define OF_A_CHANNEL (THREADS / HEAD)  // threads that have a row of w2 and a2

#if KIND == FP16
typedef uint4 Eight;  // weights of a map
#else
typedef uint2 Eight;
#endif

// Row `row` of the second half of a low-rank map [.., rank], shared by `lanes` neighbouring threads: the first PIECES pieces
// of each, 8 columns, are read ahead of the inputs. In int8 the map has bfloat16 scales [.., ceil(rank / 64)].
template <int lanes, int PIECES> struct Row {
    const Eight* weights;
    const u16* scales;
    int rank;
    Eight held[PIECES];
    u32 scale[PIECES];
    __device__ __forceinline__ Row(const u8* map, const u16* map_scales, int rank, int row)
        : weights((const Eight*)map + (size_t)row * (rank / 8)),
          scales(map_scales + (size_t)row * ((rank + GROUP - 1) / GROUP)), rank(rank) {
#pragma unroll
        for (int j = 0; j < PIECES; j++) {
            held[j] = read_once<Eight>(weights + piece(j), piece(j) < rank / 8);
            scale[j] = piece(j) < rank / 8 ? scale_of(j) : 0;
        }
    }
    __device__ __forceinline__ int piece(int j) const { return threadIdx.x % lanes + j * lanes; }
    __device__ __forceinline__ u32 scale_of(int j) const { return KIND == FP16 ? 0 : scales[piece(j) * 8 / GROUP]; }
    // Times x [rank] in shared memory; all of the threads get it.
    __device__ __forceinline__ float dot(const float* x) const {
        float sum = 0;
#pragma unroll
        for (int j = 0; j < PIECES; j++)
            if (piece(j) < rank / 8) add(sum, held[j], scale[j], x + piece(j) * 8);
        for (int j = PIECES; piece(j) < rank / 8; j++) add(sum, weights[piece(j)], scale_of(j), x + piece(j) * 8);
        return sum_of_neighbours<lanes>(sum);
    }
    __device__ __forceinline__ static void add(float& sum, Eight w, u32 scale, const float* x) {
        float of_group = 0;
        add_dot8(of_group, w, x);
        sum += KIND == FP16 ? of_group : of_group * bf16(scale);
    }
};

// The sum over all keys of v [4 values], `parts` [WARPS, VALUES] in shared memory; thread t gets that of value t % VALUES.
__device__ __forceinline__ float sum_over_keys(float4 v, float* parts) {
    add_keys<VALUES>(v, parts);
    float total = 0;
#pragma unroll
    for (int i = 0; i < WARPS; i++) total += parts[i * VALUES + threadIdx.x % VALUES];
    return total;
}

extern "C" __global__ void __launch_bounds__(THREADS)
heads(const float* rkv,      // [3, C]
      const float* hidden,   // [rank_w + rank_a + rank_v + rank_g]
      const u8* w2, const u8* a2, const u8* v2, const u8* g2,  // [C, rank]
      const u16* scales_w, const u16* scales_a, const u16* scales_v, const u16* scales_g,  // [C, ceil(rank / 64)]
      int rank_w, int rank_a, int rank_v, int rank_g,
      const float* vectors,  // [.., C] of the layer
      const float* u,        // [C] the next token shift
      float* shift,          // [C] shift_att of this layer's state
      float* wkv,            // [H, N, N] of this layer's state, key by key
      float* v_first,        // [C] v of layer 0
      float* y,              // [3, C] y of the recurrence; ln_x.weight * g; (ln_x.bias + bonus) * g
      int C, int is_first) {
    extern __shared__ __align__(16) float x[];  // `hidden`
    __shared__ float w[HEAD], a[HEAD], kk[HEAD], b[HEAD], k[HEAD], r[HEAD], g[VALUES], sums[4];
    __shared__ __align__(16) float v[VALUES], removed[VALUES], parts[WARPS * VALUES];
    const int t = threadIdx.x, c0 = blockIdx.x * HEAD, own = blockIdx.y * VALUES;
    const int c = c0 + t % HEAD, mine = c0 + own + t % VALUES;
    const int key = t / (VALUES / 4), value = t % (VALUES / 4) * 4;  // of the state
    float* S = wkv + ((size_t)c0 + key) * HEAD + own + value;
    float4 s = load4(S);
    // What is read ahead suffices for ranks of up to 128, and of 512 for the gate; larger ones take longer.
    const Row<OF_A_CHANNEL, 16 / OF_A_CHANNEL> row_w(w2, scales_w, rank_w, c0 + t / OF_A_CHANNEL);
    const Row<OF_A_CHANNEL, 16 / OF_A_CHANNEL> row_a(a2, scales_a, rank_a, c0 + t / OF_A_CHANNEL);
    const Row<16, 1> row_v(v2, scales_v, rank_v, c0 + own + t / 16);
    const Row<16, 4> row_g(g2, scales_g, rank_g, c0 + own + t / 16);
    const float w0 = vectors[ATT_W0 * C + c], a0 = vectors[ATT_A0 * C + c], v0 = vectors[ATT_V0 * C + mine];
    const float k_k = vectors[ATT_K_K * C + c], k_a = vectors[ATT_K_A * C + c], r_k = vectors[ATT_R_K * C + c];
    const float weight = vectors[ATT_LN_X_WEIGHT * C + mine], bias = vectors[ATT_LN_X_BIAS * C + mine];
    wait_for_previous();
    let_next_begin();
    const int ranks = rank_w + rank_a + rank_v + rank_g;
    const float my_r = rkv[c], my_k = rkv[C + c], my_v = rkv[2 * C + mine], my_first = is_first ? my_v : v_first[mine];
    for (int i = t; i < ranks; i += THREADS) x[i] = hidden[i];
    if (t < VALUES) shift[mine] = u[mine];  // `project` has read it
    __syncthreads();
    const float decay = row_w.dot(x), rate = row_a.dot(x + rank_w);
    if (t % OF_A_CHANNEL == 0) {
        w[t / OF_A_CHANNEL] = decay;
        a[t / OF_A_CHANNEL] = rate;
    }
    const float towards_first = row_v.dot(x + rank_w + rank_a), gate = row_g.dot(x + ranks - rank_g);
    if (t % 16 == 0) {
        v[t / 16] = towards_first;
        g[t / 16] = gate;
    }
    __syncthreads();
    const float my_a = sigmoid(a0 + a[t % HEAD]), unscaled = my_k * k_k, new_k = my_k * (1.f + (my_a - 1.f) * k_a);
    const float square = warp_sum(unscaled * unscaled), bonus = warp_sum(my_r * new_k * r_k);
    if (t < HEAD && t % LANES == 0) {
        sums[t / LANES] = square;
        sums[2 + t / LANES] = bonus;
    }
    const float new_v = my_v + (my_first - my_v) * sigmoid(v0 + v[t % VALUES]);
    __syncthreads();
    if (t < HEAD) {
        const float removal = unscaled / fmaxf(sqrtf(sums[0] + sums[1]), 1e-12f);
        w[t] = expf(DECAY_SCALE * sigmoid(w0 + w[t]));
        kk[t] = removal;
        b[t] = removal * my_a;
        k[t] = new_k;
        r[t] = my_r;
    }
    if (t < VALUES) {
        v[t] = new_v;
        y[C + mine] = weight * g[t];
        y[2 * C + mine] = (bias + (sums[2] + sums[3]) * new_v) * g[t];
        if (is_first) v_first[mine] = new_v;
    }
    __syncthreads();
    const float total = sum_over_keys(s * kk[key], parts);
    if (t < VALUES) removed[t] = total;
    __syncthreads();
    const float d = w[key], q = b[key], n = k[key], o = r[key];
    s = s * d - load4(removed + value) * q + load4(v + value) * n;
    store(S, s);
    const float read = sum_over_keys(s * o, parts);
    if (t < VALUES) y[mine] = read;
}
