// Many tokens: the recurrence.
//
//     S = S * diag(w) - (S kk) b^T + v k^T;  y = S r       of each head, with b = kk * a
//
// Values of a head do not depend on each other: a block has 16 of them for one sequence and goes through its tokens. Two
// values have 8 threads, of 8 keys each, whose part of S stays in registers. What tokens bring is copied into shared
// memory while the tokens before them are worked on; that two values share what a thread reads of it matters, since
// shared memory is what limits this.
#include "common.cuh"

#define VALUES 16                        // of a block
#define OWN 2                            // values of a thread
#define KEYS 8                           // of a thread
#define PARTS (N / KEYS)                 // threads that have a value together
#define THREADS (VALUES / OWN * PARTS)
#define TOKENS 8                         // that are copied together; as many as PARTS, see the end of `recur`
#define STAGES 4                         // this one, the next, of which a vector is needed, and two on their way

enum { W, KK, B, K, R, VECTORS };

struct Stage {
    float vectors[VECTORS][TOKENS][N];
    float v[TOKENS][VALUES];
};

// Adds up v [8] over 8 neighbours; thread p of them gets the sum of v[p].
__device__ __forceinline__ float transposed_sum(const float* v, int part) {
    float four[4], two[2];
#pragma unroll
    for (int i = 0; i < 4; i++)
        four[i] = (part & 4 ? v[i + 4] : v[i]) + __shfl_xor_sync(ALL_LANES, part & 4 ? v[i] : v[i + 4], 4);
#pragma unroll
    for (int i = 0; i < 2; i++)
        two[i] = (part & 2 ? four[i + 2] : four[i]) + __shfl_xor_sync(ALL_LANES, part & 2 ? four[i] : four[i + 2], 2);
    return (part & 1 ? two[1] : two[0]) + __shfl_xor_sync(ALL_LANES, part & 1 ? two[0] : two[1], 1);
}

// n tokens from token `i` of a stage on, n being 1 or TOKENS: s [OWN, KEYS] goes on; read [OWN] is y of token i + part, or,
// if n is 1, of that one.
//
// What a token removes, S kk, takes three exchanges between threads. To have them under way while other work is done, they
// begin a token early, from what S will be but for the removal that is not known yet:
//
//     S' kk' = (S diag(w) + v k^T) kk' - removed (b . kk')          with ' for the next token
//
// `removed` [OWN] is that of the first token, and then that of the one behind the last, whose kk is at `next`.
template <int n>
__device__ __forceinline__ void recur(float s[OWN][KEYS], float* removed, const Stage& stage, int first, const float* next,
                                      int value, int part, float* read) {
    float y[OWN][n];
    auto keys = [&](float* to, const float* vector) {
#pragma unroll
        for (int j = 0; j < KEYS; j += 4) *(float4*)(to + j) = *(const float4*)(vector + j / 4 * 32 + 4 * part);
    };
    auto dot = [&](const float* a, const float* b) {
        float even = 0, odd = 0;
#pragma unroll
        for (int j = 0; j < KEYS; j += 2) even += a[j] * b[j], odd += a[j + 1] * b[j + 1];
        return even + odd;
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
        if constexpr (n == TOKENS) read[o] = transposed_sum(y[o], part);
        else read[o] = sum_of_neighbours<PARTS>(y[o][0]);
}

extern "C" __global__ void __launch_bounds__(THREADS)
wkv7(const float* w, const float* kk, const float* b, const float* k, const float* r, const float* v,  // [T, C]
     float* y,             // [T, C]
     const int* begins,    // [sequences + 1] where the tokens of a sequence begin
     const int* slots,     // [T] the state that a token belongs to
     float* wkv,           // a state's [H, N, N] of this layer, key by key
     float* shift,         // a state's [C] of this layer
     const float* last,    // [slots, C] its next token shift
     int C, long long state_size) {  // floats from the state of one slot to that of the next
    __shared__ __align__(16) Stage stages[STAGES];
    const int t = threadIdx.x, value = t / PARTS * OWN, part = t % PARTS;
    const int begin = begins[blockIdx.z], end = begins[blockIdx.z + 1], slot = slots[begin];
    const int c0 = blockIdx.x * N, own = blockIdx.y * VALUES;
    if (t < VALUES) (shift + slot * state_size)[c0 + own + t] = last[(size_t)slot * C + c0 + own + t];
    // A thread's keys are 4 part .. and 32 + 4 part ..: neighbours read neighbouring words.
    float* S = wkv + slot * state_size + (size_t)c0 * N + own + value;
    float s[OWN][KEYS];
#pragma unroll
    for (int j = 0; j < KEYS; j++) {
        const float2 both = *(const float2*)(S + (j / 4 * 32 + 4 * part + j % 4) * N);
        s[0][j] = both.x, s[1][j] = both.y;
    }
    const float* sources[VECTORS] = {w, kk, b, k, r};
    const int token = t / (N / 4), key = t % (N / 4) * 4;  // of the first piece that this thread copies
    auto copy = [&](int first) {                           // TOKENS tokens into their stage
        Stage& to = stages[(first - begin) / TOKENS % STAGES];
#pragma unroll
        for (int i = token; i < TOKENS; i += THREADS / (N / 4))
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
        for (int j = 0; j < KEYS; j++) removed[o] += s[o][j] * stages[0].vectors[KK][0][j / 4 * 32 + 4 * part + j % 4];
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
        auto write = [&](int i) {
            *(float2*)(y + (size_t)(first + i) * C + c0 + own + value) = make_float2(read[0], read[1]);
        };
        if (first + TOKENS <= end) recur<TOKENS>(s, removed, stage, 0, next, value, part, read), write(part);
        else
            for (int i = 0; i < end - first; i++) {  // the kk behind the last token is not there, and not used
                recur<1>(s, removed, stage, i, stage.vectors[KK][min(i + 1, TOKENS - 1)], value, part, read);
                if (part == 0) write(i);
            }
    }
#pragma unroll
    for (int j = 0; j < KEYS; j++)
        *(float2*)(S + (j / 4 * 32 + 4 * part + j % 4) * N) = make_float2(s[0][j], s[1][j]);
}
