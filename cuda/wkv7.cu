// Many tokens: the recurrence.
//
//     S = S * diag(w) - (S kk) b^T + v k^T;  y = S r       of each head, with b = kk * a
//
// Values of a head do not depend on each other: a block has 16 of them for one sequence and loops over its tokens. Two
// values have 8 threads, of 8 keys each, whose part of S stays in registers. The vectors of tokens are copied into shared
// memory while earlier tokens are worked on; shared memory's bandwidth is the limit, so it matters that two values share
// what a thread reads of it.
#include "common.cuh"

#define VALUES 16                        // of a block
#define OWN 2                            // values of a thread
#define KEYS 8                           // of a thread
#define PARTS (HEAD / KEYS)              // threads that have a value together
#define THREADS (VALUES / OWN * PARTS)
#define TOKENS 8                         // that are copied together; as many as PARTS, see the end of `recur`
#define STAGES 4                         // this one, the next, of which a vector is needed, and two in flight

enum { W, KK, B, K, R, VECTORS };

struct Stage {
    float vectors[VECTORS][TOKENS][HEAD];
    float v[TOKENS][VALUES];
};

// The number of a thread's key j: 4 part .. and 32 + 4 part .., so that neighbours read neighbouring words.
__device__ __forceinline__ int key_of(int part, int j) { return j / 4 * 32 + 4 * part + j % 4; }

__device__ __forceinline__ float dot(const float* a, const float* b) {
    float even = 0, odd = 0;
#pragma unroll
    for (int j = 0; j < KEYS; j += 2) {
        even += a[j] * b[j];
        odd += a[j + 1] * b[j + 1];
    }
    return even + odd;
}

// n tokens from token `first` of a stage on, n being 1 or TOKENS: advances s [OWN, KEYS]; read [OWN] is y of token
// first + part or, if n is 1, of that one.
//
// What a token removes, S kk, takes three exchanges between threads. To hide their latency, they begin a token early, from
// what S will be but for the removal that is not known yet:
//
//     S' kk' = (S diag(w) + v k^T) kk' - removed (b . kk')          with ' for the next token
//
// `removed` [OWN] is that of the first token, and on return that of the token after the last, whose kk is at `next`.
template <int n>
__device__ __forceinline__ void recur(float s[OWN][KEYS], float* removed, const Stage& stage, int first, const float* next,
                                      int value, int part, float* read) {
    float y[OWN][n];
    auto keys = [&](float* to, const float* vector) {
#pragma unroll
        for (int j = 0; j < KEYS; j += 4) store(to + j, load4(vector + key_of(part, j)));
    };
#pragma unroll
    for (int i = 0; i < n; i++) {
        float in[VECTORS][KEYS], kk[KEYS], sums[OWN + 1];
#pragma unroll
        for (int m = 0; m < VECTORS; m++)
            if (m != KK) keys(in[m], stage.vectors[m][first + i]);
        keys(kk, i + 1 < n ? stage.vectors[KK][first + i + 1] : next);
#pragma unroll
        for (int o = 0; o < OWN; o++) {
            const float v = stage.v[first + i][value + o];
#pragma unroll
            for (int j = 0; j < KEYS; j++) s[o][j] = s[o][j] * in[W][j] + v * in[K][j];
            sums[o] = dot(s[o], kk);
        }
        sums[OWN] = dot(in[B], kk);
#pragma unroll
        for (int lanes = PARTS / 2; lanes; lanes /= 2)
#pragma unroll
            for (int o = 0; o <= OWN; o++) sums[o] += __shfl_xor_sync(ALL_LANES, sums[o], lanes);
#pragma unroll
        for (int o = 0; o < OWN; o++) {
#pragma unroll
            for (int j = 0; j < KEYS; j++) s[o][j] -= removed[o] * in[B][j];
            y[o][i] = dot(s[o], in[R]);
            removed[o] = sums[o] - removed[o] * sums[OWN];
        }
    }
#pragma unroll
    for (int o = 0; o < OWN; o++)
        if constexpr (n == TOKENS) read[o] = transposed_sum<TOKENS, PARTS / 2>(y[o]);
        else read[o] = sum_of_neighbours<PARTS>(y[o][0]);
}

extern "C" __global__ void __launch_bounds__(THREADS)
wkv7(const float* __restrict__ w,      // [T, C]
     const float* __restrict__ kk,     // [T, C]
     const float* __restrict__ b,      // [T, C]
     const float* __restrict__ k,      // [T, C]
     const float* __restrict__ r,      // [T, C]
     const float* __restrict__ v,      // [T, C]
     float* __restrict__ y,            // [T, C]
     const int* __restrict__ begins,   // [sequences + 1] where the tokens of a sequence begin
     const int* __restrict__ slots,    // [T] the slot of each token's state
     float* __restrict__ wkv,          // [H, N, N] of this layer of the state in slot 0, key by key
     float* __restrict__ shift,        // [C] of this layer of the state in slot 0
     const float* __restrict__ last,   // [slots, C] the next token shift
     int C, long long state_size) {    // floats from the state of one slot to that of the next
    __shared__ __align__(16) Stage stages[STAGES];
    const int t = threadIdx.x, value = t / PARTS * OWN, part = t % PARTS;
    const int begin = begins[blockIdx.z], end = begins[blockIdx.z + 1], slot = slots[begin];
    const int c0 = blockIdx.x * HEAD, own = blockIdx.y * VALUES;
    if (t < VALUES) (shift + slot * state_size)[c0 + own + t] = last[(size_t)slot * C + c0 + own + t];
    float* S = wkv + slot * state_size + (size_t)c0 * HEAD + own + value;
    float s[OWN][KEYS];
#pragma unroll
    for (int j = 0; j < KEYS; j++) {
        const float2 both = load2(S + key_of(part, j) * HEAD);
        s[0][j] = both.x;
        s[1][j] = both.y;
    }
    const float* sources[VECTORS] = {w, kk, b, k, r};
    const int token = t / (HEAD / 4), key = t % (HEAD / 4) * 4;  // of the first piece that this thread copies
    auto copy = [&](int first) {                                 // TOKENS tokens into their stage
        Stage& to = stages[(first - begin) / TOKENS % STAGES];
#pragma unroll
        for (int i = token; i < TOKENS; i += THREADS / (HEAD / 4))
            if (first + i < end) {
                const size_t from = (size_t)(first + i) * C + c0 + key;
#pragma unroll
                for (int m = 0; m < VECTORS; m++) copy_in_background(&to.vectors[m][i][key], sources[m] + from);
                if (key < VALUES) copy_in_background(&to.v[i][key], v + (size_t)(first + i) * C + c0 + own + key);
            }
        end_of_copies();
    };
    for (int i = 0; i < STAGES - 1; i++) copy(begin + i * TOKENS);
    wait_for_copies<STAGES - 2>();
    __syncthreads();
    float removed[OWN] = {};  // by the first token
#pragma unroll
    for (int o = 0; o < OWN; o++) {
#pragma unroll
        for (int j = 0; j < KEYS; j++) removed[o] += s[o][j] * stages[0].vectors[KK][0][key_of(part, j)];
        removed[o] = sum_of_neighbours<PARTS>(removed[o]);
    }
    for (int first = begin; first < end; first += TOKENS) {
        __syncthreads();  // all are done with the stage that is filled now
        copy(first + (STAGES - 1) * TOKENS);
        wait_for_copies<STAGES - 2>();
        __syncthreads();
        const Stage& stage = stages[(first - begin) / TOKENS % STAGES];
        const float* next = stages[((first - begin) / TOKENS + 1) % STAGES].vectors[KK][0];
        float read[OWN] = {};
        auto write = [&](int i) { store(y + (size_t)(first + i) * C + c0 + own + value, make_float2(read[0], read[1])); };
        if (first + TOKENS <= end) {
            recur<TOKENS>(s, removed, stage, 0, next, value, part, read);
            write(part);
        } else
            for (int i = 0; i < end - first; i++) {  // the kk after the last token is not there, and not used
                recur<1>(s, removed, stage, i, stage.vectors[KK][min(i + 1, TOKENS - 1)], value, part, read);
                if (part == 0) write(i);
            }
    }
#pragma unroll
    for (int j = 0; j < KEYS; j++) store(S + key_of(part, j) * HEAD, make_float2(s[0][j], s[1][j]));
}
