// The choice of the next token, by the rules of `Sampler` in rwkv_cli/engine/sampling.py: what its kernels share.
//
//     survey      a part of the vocabulary each: penalties, bias, bans and masks; the softmax of the part
//     candidates  a part each: the few tokens that are near the likeliest one
//     sample      a sequence each: what top-p, top-k and min-p leave, and the draw
//
// Many blocks read the logits, which are a quarter of a megabyte, twice; the last kernel reads candidates alone, unless
// those cannot tell. Sums are either exact, in integers, or have a fixed order, so that the same numbers give the same token.
#pragma once
#include "common.cuh"

#define PARTS 32                 // of the vocabulary; as many as lanes, so that a warp has a value of each
#define LIST 256                 // candidates of a part, at most
#define DEPTH 8.f                // candidates are this far below the likeliest, at most
#define LOWEST -3.402823466e38f  // the lowest float: tokens below it, at minus infinity, are never chosen
#define NOT_A_NUMBER -1          // in place of a token: a logit is NaN or infinite
#define NOTHING_LEFT -2          // in place of a token: none may be chosen

// What the host writes for every token, and reads back; rwkv_cli/engine/gpu/device_sampler.py takes the layout from here.
struct Change {
    int token;
    float amount;  // added to its logit
};
struct Request {
    int token;         // to be read first: for embed.cu
    int n;             // changes
    Change* changes;   // [n], of different tokens
    u32* mask;         // [ceil(V / 32)] a bit for each token that may be chosen; null for all
    double random;     // in [0, 1)
    double log_min_p;  // minus infinity for none
    float temperature, top_p;
    int top_k;         // 0 for none
    int row;           // of the logits
};
struct Choice {
    int token;
    float logprob;  // under the logits as the model gave them
};

// Of a part of the logits.
struct Survey {
    float peak, total;  // the highest, and the sum of exp(logit - peak)
    float lowest;       // of those that are not minus infinity
    float unused;
};

// softmax(logits) = exp(logits - peak) / total
struct Softmax {
    float peak, total, lowest;

    // Of all parts, from that of each [PARTS]; every lane gets it.
    __device__ __forceinline__ Softmax(const Survey* parts) {
        const Survey mine = parts[threadIdx.x % LANES];
        peak = max_of_neighbours<LANES>(mine.peak);
        total = warp_sum(mine.total * expf(mine.peak - peak));
        lowest = -max_of_neighbours<LANES>(-mine.lowest);
    }
    // False if a logit is NaN or +inf, or all are -inf; a valid total is >= 1, since the peak adds 1.
    __device__ __forceinline__ bool is_valid() const { return total >= 1; }
};

__device__ __forceinline__ bool is_cut_by_rank(const Request& r) { return r.top_p < 1 || r.top_k > 0; }
// The lowest logit that min-p leaves.
__device__ __forceinline__ float lowest_kept(const Request& r, float peak) {
    return fmaxf(LOWEST, (float)(peak + r.log_min_p));
}
// Candidates are not below this.
__device__ __forceinline__ float lowest_candidate(const Request& r, float peak) {
    return fmaxf(lowest_kept(r, peak), peak - DEPTH);
}
// Whether tokens have been added to a row of logits or taken from it: then it is in `adjusted`.
__device__ __forceinline__ bool is_adjusted(const Request& r) { return r.n || r.mask; }
