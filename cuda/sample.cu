// The choice of the next token, by the rules of `Sampler` in rwkv_cli/engine/sampling.py.
//
// One block does it for one sequence: the logits are a quarter of a megabyte in the second-level cache, and blocks that
// wait for each other would take longer than to read them a few times. Every sum has a fixed order, so that the same
// numbers give the same token.
#include "common.cuh"

#define THREADS 1024             // the most that a block can have; tests launch fewer, and only bounds depend on it
#define LOWEST -3.402823466e38f  // the lowest float: tokens below it, at minus infinity, are never chosen
#define NOT_A_NUMBER -1          // in place of a token: a logit is NaN or infinite
#define NOTHING_LEFT -2          // in place of a token: none may be chosen

// Only a few tokens are so likely that top-p can end among them, and only those are read repeatedly. They are looked for
// at most one, two or three times DEPTH below the highest logit; where that is not enough, everywhere.
#define DEPTHS 3
#define DEPTH 5.f

// What the host writes for every token, and reads back; rwkv_cli/engine/gpu/device_sampler.py takes the layout from here.
struct Change {
    int token;
    float amount;  // added to its logit
};
struct Request {
    int token;         // to be read first: for embed.cu
    int n;             // changes
    Change* changes;   // [n], of different tokens; `sample` keeps the original logits in them
    double random;     // in [0, 1)
    double log_min_p;  // minus infinity for none
    float temperature, top_p;
};
struct Choice {
    int token;
    float logprob;  // under the logits as the model gave them
};

// softmax(logits) = exp(logits - peak) / total
struct Softmax {
    float peak, total;
    float above[DEPTHS];  // the part of the total at most 1, 2, .. times DEPTH below the peak

    // `logits` [V]; `sums` [LANES] is shared memory for this alone.
    __device__ __forceinline__ Softmax(const float* logits, int V, float* sums) : peak(LOWEST), total(0), above() {
#pragma unroll 8
        for (int i = threadIdx.x; i < V; i += blockDim.x) peak = fmaxf(peak, logits[i]);
        peak = max_of_neighbours<LANES>(peak);
        __syncthreads();
        if (threadIdx.x % LANES == 0) sums[threadIdx.x / LANES] = peak;
        __syncthreads();
        for (int i = 0; i < (int)blockDim.x / LANES; i++) peak = fmaxf(peak, sums[i]);
#pragma unroll 8
        for (int i = threadIdx.x; i < V; i += blockDim.x) {
            const float weight = expf(logits[i] - peak);
            total += weight;
#pragma unroll
            for (int d = 0; d < DEPTHS; d++) above[d] += logits[i] >= peak - (d + 1) * DEPTH ? weight : 0.f;
        }
        total = block_sum(total, sums);
#pragma unroll
        for (int d = 0; d < DEPTHS; d++) above[d] = block_sum(above[d], sums);
    }
    // False if a logit is NaN or +inf, or all are -inf; a valid total is >= 1, since the peak adds 1.
    __device__ __forceinline__ bool is_valid() const { return total >= 1; }
};

// Floats as unsigned integers of the same order, and back.
__device__ __forceinline__ u32 to_ordered(float v) {
    const u32 bits = __float_as_uint(v);
    return bits >> 31 ? ~bits : bits | 1u << 31;
}
__device__ __forceinline__ float from_ordered(u32 v) { return __uint_as_float(v >> 31 ? v & ~(1u << 31) : ~v); }

// The highest float such that the tokens whose logits are not below it have at least `wanted` of the total, or `floor` if
// that is higher: by bisection. `candidates` [V, rounded up to a multiple of the threads] is for the logits that are not
// below `floor`.
__device__ __forceinline__ float top_p_cutoff(const float* logits, int V, const Softmax& softmax, float wanted,
                                              float floor, float* candidates, float* sums) {
    int n = 0;
    candidates += threadIdx.x;
#pragma unroll 8
    for (int i = threadIdx.x; i < V; i += blockDim.x)
        if (logits[i] >= floor) candidates[n++ * blockDim.x] = logits[i];
    u32 low = to_ordered(floor), high = to_ordered(softmax.peak) + 1;  // no token is that likely
    while (high - low > 1) {
        const u32 middle = low + (high - low) / 2;
        const float cutoff = from_ordered(middle);
        float mine = 0;
        for (int i = 0; i < n; i++) {
            const float v = candidates[i * blockDim.x];
            if (v >= cutoff) mine += expf(v - softmax.peak);
        }
        (block_sum(mine, sums) >= wanted ? low : high) = middle;
    }
    return from_ordered(low);
}

// The number of the one of n consecutive intervals that contains `place`, which on return counts from where that interval
// begins. If rounding has carried it past the end, that is the end of the last interval that is not empty.
template <class Size> __device__ __forceinline__ int interval(int n, const Size& size, double& place) {
    int last = 0;
    double end = 0;
    for (int i = 0; i < n; i++) {
        const double s = size(i);
        if (place < s) return i;
        if (s > 0) {
            last = i;
            end = s;
        }
        place -= s;
    }
    place = end;
    return last;
}

// One block per multiprocessor: with a second one, each would have half the registers.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
sample(float* logits,           // [sequences, stride], of which V are used; changed and changed back
       const Request* requests, // [sequences]
       float* candidates,       // [sequences, V rounded up to a multiple of the threads]
       Choice* choices,         // [sequences]
       int V, int stride) {
    __shared__ float sums[LANES];
    __shared__ double of_thread[THREADS], of_warp[THREADS / LANES];
    wait_for_previous();
    let_next_begin();
    const int t = threadIdx.x, threads = blockDim.x, sequence = blockIdx.x;
    const Request r = requests[sequence];
    logits += (size_t)sequence * stride;
    candidates += (size_t)sequence * ((V + threads - 1) / threads * threads);
    const Softmax own(logits, V, sums);
    if (!own.is_valid()) {
        if (t == 0) choices[sequence].token = NOT_A_NUMBER;
        return;
    }
    auto change = [&](bool back) {
        __syncthreads();
        for (int i = t; i < r.n; i += threads) {
            float& logit = logits[r.changes[i].token];
            const float before = logit;
            logit = back ? r.changes[i].amount : before + r.changes[i].amount;
            r.changes[i].amount = before;
        }
        __syncthreads();
    };
    Softmax softmax = own;
    if (r.n) {
        change(false);
        softmax = Softmax(logits, V, sums);
    }

    const float wanted = r.top_p * softmax.total;
    float cutoff = fmaxf(LOWEST, (float)(softmax.peak + r.log_min_p));
    if (softmax.is_valid() && r.top_p < 1) {
        float floor = LOWEST;
#pragma unroll
        for (int d = DEPTHS; d > 0; d--)
            if (softmax.above[d - 1] >= wanted) floor = softmax.peak - d * DEPTH;
        cutoff = top_p_cutoff(logits, V, softmax, wanted, fmaxf(cutoff, floor), candidates, sums);
    }

    // A thread has consecutive tokens, so three short searches find the one: for its warp, its thread and itself.
    auto weight = [&](int i) {
        return logits[i] >= cutoff ? expf((logits[i] - softmax.peak) / r.temperature) : 0.f;
    };
    const int begin = share(V, t, threads), end = share(V, t + 1, threads);
    double mine = 0;
#pragma unroll 8
    for (int i = begin; i < end; i++) mine += weight(i);
    of_thread[t] = mine;
    __syncthreads();
    if (t % LANES == 0) {
        double total = 0;
        for (int i = 0; i < LANES; i++) total += of_thread[t + i];
        of_warp[t / LANES] = total;
    }
    __syncthreads();
    int token = NOTHING_LEFT;
    if (t == 0 && softmax.is_valid()) {
        double total = 0;
        for (int i = 0; i < threads / LANES; i++) total += of_warp[i];
        double place = r.random * total;
        const int warp = interval(threads / LANES, [&](int i) { return of_warp[i]; }, place);
        const int thread = warp * LANES + interval(LANES, [&](int i) { return of_thread[warp * LANES + i]; }, place);
        const int first = share(V, thread, threads);
        const int n = share(V, thread + 1, threads) - first;
        token = first + interval(n, [&](int i) { return weight(first + i); }, place);
    }
    if (r.n) change(true);
    if (t == 0) choices[sequence] = {token, token < 0 ? 0.f : logits[token] - own.peak - logf(own.total)};
}
