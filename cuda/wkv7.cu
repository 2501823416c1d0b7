// Many tokens: the recurrence.
//
//     S = S * diag(w) - (S kk) b^T + v k^T;  y = S r       of each head, with b = kk * a
//
// Values of a head do not depend on each other: a block has 16 of them for one sequence and goes through its tokens. A
// value has 8 threads, of 8 keys each, whose part of S stays in registers. What tokens bring is copied into shared memory
// while the tokens before them are worked on.
#include "common.cuh"

#define VALUES 16
#define KEYS 8                            // of a thread
#define OF_A_VALUE (N / KEYS)             // threads
#define THREADS (VALUES * OF_A_VALUE)
#define TOKENS 8                          // that are copied together
#define STAGES 3

enum { W, KK, B, K, R, VECTORS };

struct Stage {
    float vectors[VECTORS][TOKENS][N];
    float v[TOKENS][VALUES];
};

extern "C" __global__ void __launch_bounds__(THREADS)
wkv7(const float* w, const float* kk, const float* b, const float* k, const float* r, const float* v,  // [T, C]
     float* y,             // [T, C]
     const int* begins,    // [sequences + 1] where the tokens of a sequence begin
     const int* slots,     // [T] the state that a token belongs to
     float* wkv,           // a state's [H, N, N] of this layer, key by key
     float* shift,         // a state's [C] of this layer
     const float* last,    // [slots, C] its next token shift
     int C, long long state_size) {  // floats from the state of one slot to that of the next
    extern __shared__ __align__(16) char memory[];
    Stage* stages = (Stage*)memory;
    wait_for_previous();
    let_next_begin();
    const int t = threadIdx.x, value = t / OF_A_VALUE, part = t % OF_A_VALUE;
    const int begin = begins[blockIdx.z], end = begins[blockIdx.z + 1], slot = slots[begin];
    const int c0 = blockIdx.x * N, own = blockIdx.y * VALUES;
    if (t < VALUES) (shift + slot * state_size)[c0 + own + t] = last[(size_t)slot * C + c0 + own + t];
    // A thread's keys are 4 part .. and 32 + 4 part ..: neighbours read neighbouring words.
    float* S = wkv + slot * state_size + (size_t)c0 * N + own + value;
    float s[KEYS];
#pragma unroll
    for (int j = 0; j < KEYS; j++) s[j] = S[(j / 4 * 32 + 4 * part + j % 4) * N];

    const float* sources[VECTORS] = {w, kk, b, k, r};
    auto copy = [&](int first) {  // TOKENS tokens into their stage
        Stage& to = stages[(first - begin) / TOKENS % STAGES];
        const int n = min(TOKENS, end - first);
#pragma unroll
        for (int m = 0; m < VECTORS; m++)
            for (int i = t; i < n * (N / 4); i += THREADS)
                copy_in_background(&to.vectors[m][i / (N / 4)][i % (N / 4) * 4],
                                   sources[m] + (size_t)(first + i / (N / 4)) * C + c0 + i % (N / 4) * 4);
        for (int i = t; i < n * (VALUES / 4); i += THREADS)
            copy_in_background(&to.v[i / (VALUES / 4)][i % (VALUES / 4) * 4],
                               v + (size_t)(first + i / (VALUES / 4)) * C + c0 + own + i % (VALUES / 4) * 4);
        end_of_copies();
    };
    for (int i = 0; i < STAGES - 1; i++) copy(begin + i * TOKENS);
    for (int first = begin; first < end; first += TOKENS) {
        __syncthreads();  // all are done with the stage that is filled now
        copy(first + (STAGES - 1) * TOKENS);
        wait_for_copies<STAGES - 1>();
        __syncthreads();
        const Stage& stage = stages[(first - begin) / TOKENS % STAGES];
        const int n = min(TOKENS, end - first);
        for (int i = 0; i < n; i++) {
            float in[VECTORS][KEYS];
#pragma unroll
            for (int m = 0; m < VECTORS; m++)
#pragma unroll
                for (int j = 0; j < KEYS; j += 4)
                    *(float4*)&in[m][j] = *(const float4*)&stage.vectors[m][i][j / 4 * 32 + 4 * part];
            const float my_v = stage.v[i][value];
            float even = 0, odd = 0;
#pragma unroll
            for (int j = 0; j < KEYS; j += 2) even += s[j] * in[KK][j], odd += s[j + 1] * in[KK][j + 1];
            const float removed = sum_of_neighbours<OF_A_VALUE>(even + odd);
            even = odd = 0;
#pragma unroll
            for (int j = 0; j < KEYS; j++) s[j] = s[j] * in[W][j] + my_v * in[K][j] - removed * in[B][j];
#pragma unroll
            for (int j = 0; j < KEYS; j += 2) even += s[j] * in[R][j], odd += s[j + 1] * in[R][j + 1];
            const float read = sum_of_neighbours<OF_A_VALUE>(even + odd);
            if (part == 0) y[(size_t)(first + i) * C + c0 + own + value] = read;
        }
    }
#pragma unroll
    for (int j = 0; j < KEYS; j++) S[(j / 4 * 32 + 4 * part + j % 4) * N] = s[j];
}
