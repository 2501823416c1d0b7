// The choice of the next token, first and second of three kernels: see sampling.cuh. A block has a part of a sequence's
// vocabulary.
#include "sampling.cuh"

#define THREADS 256

__device__ __forceinline__ float block_max(float v, float* shared) {
    v = max_of_neighbours<LANES>(v);
    __syncthreads();
    if (threadIdx.x % LANES == 0) shared[threadIdx.x / LANES] = v;
    __syncthreads();
    for (int i = 0; i < (int)blockDim.x / LANES; i++) v = fmaxf(v, shared[i]);
    return v;
}

// Of n values in shared memory; `shared` [LANES] is for this alone.
__device__ __forceinline__ Survey survey_of(const float* values, int n, float* shared) {
    float peak = LOWEST, total = 0, depth = LOWEST;
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
        peak = fmaxf(peak, values[i]);
        if (values[i] > -INFINITE) depth = fmaxf(depth, -values[i]);
    }
    peak = block_max(peak, shared);
    for (int i = threadIdx.x; i < n; i += blockDim.x) total += expf(values[i] - peak);
    total = block_sum(total, shared);
    return {peak, total, -block_max(depth, shared), 0};
}

extern __shared__ __align__(16) float memory[];  // a part of the logits

extern "C" __global__ void __launch_bounds__(THREADS)
survey(const float* logits,      // [rows, stride], of which V are used
       const Request* requests,  // [sequences]
       float* adjusted,          // [sequences, V] logits after all changes, of sequences that have any
       Survey* own,              // [sequences, PARTS] of the model's logits
       Survey* changed,          // [sequences, PARTS] after all changes
       int V, int stride) {
    __shared__ float shared[LANES];
    wait_for_previous();
    let_next_begin();
    const int t = threadIdx.x, sequence = blockIdx.y;
    const int begin = share(V, blockIdx.x, PARTS), n = share(V, blockIdx.x + 1, PARTS) - begin;
    const Request& r = requests[sequence];
    const float* row = logits + (size_t)r.row * stride + begin;
#pragma unroll 8
    for (int i = t; i < n; i += blockDim.x) memory[i] = row[i];  // which the same thread reads next
    const Survey before = survey_of(memory, n, shared);
    Survey after = before;
    if (is_adjusted(r)) {
        __syncthreads();
        for (int i = t; i < r.n; i += blockDim.x) {
            const int at = r.changes[i].token - begin;
            if (0 <= at && at < n) memory[at] += r.changes[i].amount;
        }
        __syncthreads();
        for (int i = t; i < n; i += blockDim.x) {
            if (r.mask && !(r.mask[(begin + i) / 32] >> (begin + i) % 32 & 1)) memory[i] = -INFINITE;
            adjusted[(size_t)sequence * V + begin + i] = memory[i];
        }
        after = survey_of(memory, n, shared);
    }
    if (t == 0) {
        own[sequence * PARTS + blockIdx.x] = before;
        changed[sequence * PARTS + blockIdx.x] = after;
    }
}

// Lists the tokens that are not below `lowest_candidate`, by ascending id.
extern "C" __global__ void __launch_bounds__(THREADS)
candidates(const float* logits, const float* adjusted, const Request* requests, const Survey* changed,  // as above
           float* values,  // [sequences, PARTS, LIST] their logits
           int* tokens,    // [sequences, PARTS, LIST]
           int* counts,    // [sequences, PARTS] how many; -1 where there are more than LIST
           int V, int stride) {
    __shared__ int found[LANES];
    wait_for_previous();
    let_next_begin();
    const int warp = threadIdx.x / LANES, lane = threadIdx.x % LANES, warps = blockDim.x / LANES, sequence = blockIdx.y;
    const int begin = share(V, blockIdx.x, PARTS), n = share(V, blockIdx.x + 1, PARTS) - begin;
    const Request& r = requests[sequence];
    const Softmax softmax(changed + sequence * PARTS);
    const size_t list = (size_t)sequence * PARTS + blockIdx.x;
    if (!softmax.is_valid() || (!is_cut_by_rank(r) && lowest_kept(r, softmax.peak) == LOWEST)) {  // all of them
        if (threadIdx.x == 0) counts[list] = -1;
        return;
    }
    const float lowest = lowest_candidate(r, softmax.peak);
    const float* row = (is_adjusted(r) ? adjusted + (size_t)sequence * V : logits + (size_t)r.row * stride) + begin;
    const int first = share(n, warp, warps), end = share(n, warp + 1, warps);  // of this warp
    int count = 0;
#pragma unroll 8
    for (int i = first; i < end; i += LANES) count += i + lane < end && row[i + lane] >= lowest;
    count = (int)warp_sum((float)count);  // exact: there are not so many
    if (lane == 0) found[warp] = count;
    __syncthreads();
    int at = 0, total = 0;
    for (int i = 0; i < warps; i++) {
        if (i == warp) at = total;
        total += found[i];
    }
    if (threadIdx.x == 0) counts[list] = total > LIST ? -1 : total;
    if (total > LIST || !count) return;
    for (int i = first; i < end; i += LANES) {
        const float v = i + lane < end ? row[i + lane] : -INFINITE;
        const u32 hits = __ballot_sync(ALL_LANES, v >= lowest);
        if (v >= lowest) {
            const size_t here = list * LIST + at + __popc(hits & ((1u << lane) - 1));
            values[here] = v;
            tokens[here] = begin + i + lane;
        }
        at += __popc(hits);
    }
}
