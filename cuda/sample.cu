// The choice of the next token, last of three kernels: see sampling.cuh. A block has a sequence.
#include "sampling.cuh"

#define THREADS 1024     // at most
#define AHEAD 8          // values that a lane requests together
#define BINS 1024        // of a histogram of values
#define REACH 16.f       // of the first one, below the peak, at most: the last bin has all that is further
#define FEW 512          // values whose order is found by comparing all with all
#define NO_TOKEN 0x7fffffff

// Weights as integers, so that sums do not depend on their order: 2^40 of them for the likeliest token.
#define UNIT 1099511627776.f

// The values of a part of a sequence, by ascending id: candidates, or all.
struct Part {
    const float* values;
    const int* tokens;  // null for the consecutive ones from `begin` on
    int begin, n;
    __device__ __forceinline__ int token(int i) const { return tokens ? tokens[i] : begin + i; }
    // Zeros of either sign are equal: adding one makes them the same.
    __device__ __forceinline__ float value(int i) const { return i < n ? values[i] + 0.f : -INFINITE; }
    // use(i, value) of all values, i by i in each lane; with minus infinity beyond the end, so that all lanes take part.
    template <class Use> __device__ __forceinline__ void each(const Use& use) const {
        for (int first = threadIdx.x % LANES; first - (int)(threadIdx.x % LANES) < n; first += AHEAD * LANES) {
            float v[AHEAD];
#pragma unroll
            for (int j = 0; j < AHEAD; j++) v[j] = value(first + j * LANES);
#pragma unroll
            for (int j = 0; j < AHEAD; j++) use(first + j * LANES, v[j]);
        }
    }
};

struct Source {
    const float* values;
    const int *tokens, *counts;  // of candidates; null if these are all tokens
    int V;
    __device__ __forceinline__ Part part(int p) const {
        if (counts) return {values + p * LIST, tokens + p * LIST, 0, counts[p]};
        const int begin = share(V, p, PARTS);
        return {values + begin, nullptr, begin, share(V, p + 1, PARTS) - begin};
    }
    // use(value) of all values; a warp has a part at a time.
    template <class Use> __device__ __forceinline__ void each(const Use& use) const {
        for (int p = threadIdx.x / LANES; p < PARTS; p += blockDim.x / LANES)
            part(p).each([&](int, float v) { use(v); });
    }
};

// Floats as unsigned integers of the same order, and back.
__device__ __forceinline__ u32 to_ordered(float v) {
    const u32 bits = __float_as_uint(v);
    return bits >> 31 ? ~bits : bits | 1u << 31;
}
__device__ __forceinline__ float from_ordered(u32 v) { return __uint_as_float(v >> 31 ? v & ~(1u << 31) : ~v); }

// How much weight tokens have, and how many they are.
struct Amount {
    u64 weight;
    int count;
    __device__ __forceinline__ void operator+=(const Amount& more) {
        weight += more.weight;
        count += more.count;
    }
};

struct Histogram {
    u32 low[BINS], high[BINS], count[BINS];  // low and high words of weights
    __device__ __forceinline__ void clear() {
        for (int i = threadIdx.x; i < BINS; i += blockDim.x) low[i] = high[i] = count[i] = 0;
    }
    __device__ __forceinline__ void add(int bin, u64 weight) {
        const u32 part = (u32)weight, before = atomicAdd(&low[bin], part);
        const u32 rest = (u32)(weight >> 32) + (before + part < before);
        if (rest) atomicAdd(&high[bin], rest);
        atomicAdd(&count[bin], 1u);
    }
    __device__ __forceinline__ Amount of(int bin) const { return {(u64)high[bin] << 32 | low[bin], (int)count[bin]}; }
};

// The rules that count from the likeliest token on: top-p and top-k.
struct Rank {
    double wanted;  // weight, for top-p
    float peak, bins_per_unit;
    int top_k;
    __device__ __forceinline__ Rank(const Request& r, const Softmax& softmax)
        : wanted(r.top_p < 1 ? (double)r.top_p * softmax.total * UNIT : 1e300), peak(softmax.peak),
          bins_per_unit((BINS - 1) / fmaxf(fminf(softmax.peak - softmax.lowest, REACH), 1e-30f)), top_k(r.top_k) {}
    __device__ __forceinline__ bool is_reached(const Amount& a) const {
        return (double)a.weight >= wanted || (top_k && a.count >= top_k);
    }
    __device__ __forceinline__ u64 weight(float v) const { return (u64)(expf(v - peak) * UNIT); }
};

// Shared memory of `cutoff_of`.
struct Search {
    Histogram bins;
    Amount of_lane[LANES], above;  // above: of what is certainly kept
    float values[FEW];
    u64 weights[FEW];
    u32 lowest, highest, best;
    int bin, n;
};

// By one warp: the first bin where `rank` is reached, and what is above it; a bin of -1 if there is none.
__device__ __forceinline__ void find_bin(Search& s, const Rank& rank) {
    const int lane = threadIdx.x, EACH = BINS / LANES;
    Amount mine = {0, 0}, before = s.above;
    for (int j = 0; j < EACH; j++) mine += s.bins.of(lane * EACH + (j + lane) % EACH);  // each lane another bank
    s.of_lane[lane] = mine;
    if (lane == 0) s.bin = -1;
    __syncwarp();
    for (int i = 0; i < lane; i++) before += s.of_lane[i];
    Amount after = before;
    after += mine;
    if (rank.is_reached(before) || !rank.is_reached(after)) return;  // one lane is left, or none
    for (int j = 0; j < EACH; j++) {
        after = before;
        after += s.bins.of(lane * EACH + j);
        if (rank.is_reached(after)) {
            s.bin = lane * EACH + j;
            break;
        }
        before = after;
    }
    s.above = before;
}

// The highest value such that `rank` is reached by the tokens that are not below it, or `lowest` if it never is.
//
// A histogram says in which bin the value is. If there are few values, they are compared; otherwise there is a finer histogram
// of what is in the bin. The first one has bins of equal widths down to the lowest logit, and the others divide the bits of
// floats.
__device__ __forceinline__ float cutoff_of(const Source& source, const Rank& rank, float lowest, Search& s) {
    u32 low = to_ordered(lowest), high = to_ordered(rank.peak);
    if (threadIdx.x == 0) s.above = {0, 0};
    for (bool first = true;; first = false) {
        int shift = 0;
        while ((high - low) >> shift >= BINS) shift++;
        auto bin_of = [&](float v) {
            if (first) return v >= lowest ? (int)fminf((rank.peak - v) * rank.bins_per_unit, BINS - 1) : -1;
            const u32 ordered = to_ordered(v);
            return low <= ordered && ordered <= high ? (int)((high - ordered) >> shift) : -1;
        };
        s.bins.clear();
        __syncthreads();
        source.each([&](float v) {
            const int bin = bin_of(v);
            if (bin >= 0) s.bins.add(bin, rank.weight(v));
        });
        __syncthreads();
        if (threadIdx.x < LANES) find_bin(s, rank);
        if (threadIdx.x == 0) {
            s.n = 0;
            s.lowest = ~0u;
            s.highest = s.best = 0;
        }
        __syncthreads();
        const int bin = s.bin;
        if (bin < 0) return lowest;
        const bool few = s.bins.count[bin] <= FEW;
        source.each([&](float v) {
            if (bin_of(v) != bin) return;
            if (few) {
                const int at = atomicAdd(&s.n, 1);
                s.values[at] = v;
                s.weights[at] = rank.weight(v);
            } else {
                atomicMin(&s.lowest, to_ordered(v));
                atomicMax(&s.highest, to_ordered(v));
            }
        });
        __syncthreads();
        if (few) break;
        low = s.lowest;
        high = s.highest;
        if (low == high) return from_ordered(low);
    }
    for (int i = threadIdx.x; i < s.n; i += blockDim.x) {
        Amount sum = s.above;
        for (int j = 0; j < s.n; j++)
            if (s.values[j] >= s.values[i]) sum += {s.weights[j], 1};
        if (rank.is_reached(sum)) atomicMax(&s.best, to_ordered(s.values[i]));
    }
    __syncthreads();
    return from_ordered(s.best);
}

// Of tokens at the cutoff, top-k leaves those with the lowest ids: the last one that stays, or NO_TOKEN if all do.
// `above` and `tied` [PARTS] and `last` are shared memory for this alone.
__device__ __forceinline__ int last_tied(const Source& source, float cutoff, int top_k, int* above, int* tied, int* last) {
    const int warp = threadIdx.x / LANES, lane = threadIdx.x % LANES;
    for (int p = warp; p < PARTS; p += blockDim.x / LANES) {
        int more = 0, same = 0;
        source.part(p).each([&](int, float v) {
            more += __popc(__ballot_sync(ALL_LANES, v > cutoff));
            same += __popc(__ballot_sync(ALL_LANES, v == cutoff));
        });
        if (lane == 0) {
            above[p] = more;
            tied[p] = same;
        }
    }
    if (threadIdx.x == 0) *last = NO_TOKEN;
    __syncthreads();
    int left = top_k, part = 0;
    for (int p = 0; p < PARTS; p++) left -= above[p];
    while (part < PARTS && tied[part] <= left) left -= tied[part++];
    if (part < PARTS && warp == 0) {  // the one that has the tie after the last
        const Part here = source.part(part);
        if (left == 0 && lane == 0) *last = here.token(0) - 1;
        here.each([&](int i, float v) {
            const u32 same = __ballot_sync(ALL_LANES, v == cutoff);
            if (v == cutoff && __popc(same & ((1u << lane) - 1)) == left - 1) *last = here.token(i);
            left -= __popc(same);
        });
    }
    __syncthreads();
    return *last;
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

__device__ __forceinline__ double warp_sum(double v) {
#pragma unroll
    for (int i = LANES / 2; i; i /= 2) v += __shfl_xor_sync(ALL_LANES, v, i);
    return v;
}
__device__ __forceinline__ u64 warp_sum(u64 v) {
#pragma unroll
    for (int i = LANES / 2; i; i /= 2) v += __shfl_xor_sync(ALL_LANES, v, i);
    return v;
}

// Shared memory of `draw`.
struct Sums {
    double of_part[PARTS], of_thread[THREADS], of_warp[THREADS / LANES];
};

// A token by the inverse of the distribution function; weight(value, token) is 0 for those that are not kept. Thread 0 gets
// it. Three short searches find it: for its part, the thread that has it there, and itself.
template <class Weight> __device__ __forceinline__ int draw(const Source& source, double random, const Weight& weight, Sums& s) {
    const int t = threadIdx.x, threads = blockDim.x, warps = threads / LANES, lane = t % LANES;
    for (int p = t / LANES; p < PARTS; p += warps) {
        const Part here = source.part(p);
        double sum = 0;
        here.each([&](int i, float v) { sum += weight(here, i, v); });
        sum = warp_sum(sum);
        if (lane == 0) s.of_part[p] = sum;
    }
    __syncthreads();
    double total = 0;
    for (int p = 0; p < PARTS; p++) total += s.of_part[p];
    double place = random * total;
    const Part here = source.part(interval(PARTS, [&](int p) { return s.of_part[p]; }, place));
    auto in_part = [&](int i) { return (double)weight(here, i, here.value(i)); };
    double mine = 0;
    for (int i = share(here.n, t, threads); i < share(here.n, t + 1, threads); i++) mine += in_part(i);
    s.of_thread[t] = mine;
    mine = warp_sum(mine);
    if (lane == 0) s.of_warp[t / LANES] = mine;
    __syncthreads();
    if (t) return 0;
    const int warp = interval(warps, [&](int i) { return s.of_warp[i]; }, place) * LANES;
    const int thread = warp + interval(LANES, [&](int i) { return s.of_thread[warp + i]; }, place);
    const int first = share(here.n, thread, threads), n = share(here.n, thread + 1, threads) - first;
    return here.token(first + interval(n, [&](int i) { return in_part(first + i); }, place));
}

// The candidates of a sequence, if they are all that can be kept, and otherwise all tokens. `weights` [LANES] is shared memory.
__device__ __forceinline__ Source source_of(const Request& r, const Rank& rank, const Source& listed, const Source& all,
                                            u64* weights) {
    const int lane = threadIdx.x % LANES;
    const int count = listed.counts[lane];
    if (__ballot_sync(ALL_LANES, count < 0)) return all;
    if (lowest_candidate(r, rank.peak) == lowest_kept(r, rank.peak)) return listed;
    Amount sum = {0, (int)warp_sum((float)count)};
    u64 mine = 0;
    listed.each([&](float v) { mine += v == -INFINITE ? 0 : rank.weight(v); });
    mine = warp_sum(mine);
    if (lane == 0) weights[threadIdx.x / LANES] = mine;
    __syncthreads();
    for (int i = 0; i < (int)blockDim.x / LANES; i++) sum.weight += weights[i];
    return rank.is_reached(sum) ? listed : all;
}

extern "C" __global__ void __launch_bounds__(THREADS)
sample(const float* logits, const float* adjusted, const Request* requests,  // as in survey.cu
       const Survey* own, const Survey* changed, const float* values, const int* tokens, const int* counts,
       Choice* choices,  // [sequences]
       int V, int stride) {
    __shared__ union { Search search; Sums sums; } shared;
    __shared__ u64 weights[LANES];
    __shared__ int above[PARTS], tied[PARTS], last;
    wait_for_previous();
    let_next_begin();
    const int sequence = blockIdx.x;
    const Request r = requests[sequence];
    const Softmax model(own + sequence * PARTS), softmax(changed + sequence * PARTS);
    if (!model.is_valid() || !softmax.is_valid()) {
        if (threadIdx.x == 0) choices[sequence] = {model.is_valid() ? NOTHING_LEFT : NOT_A_NUMBER, 0.f};
        return;
    }
    const Rank rank(r, softmax);
    const float* row = logits + (size_t)r.row * stride;
    const size_t lists = (size_t)sequence * PARTS;
    const Source listed = {values + lists * LIST, tokens + lists * LIST, counts + lists, V};
    const Source all = {is_adjusted(r) ? adjusted + (size_t)sequence * V : row, nullptr, nullptr, V};
    const Source source = source_of(r, rank, listed, all, weights);
    float cutoff = lowest_kept(r, softmax.peak);
    if (is_cut_by_rank(r)) cutoff = cutoff_of(source, rank, cutoff, shared.search);
    const int end = r.top_k ? last_tied(source, cutoff, r.top_k, above, tied, &last) : NO_TOKEN;
    __syncthreads();  // the search is over
    auto weight = [&](const Part& part, int i, float v) {
        if (v < cutoff || (v == cutoff && end != NO_TOKEN && part.token(i) > end)) return 0.f;
        return expf((v - softmax.peak) / r.temperature);
    };
    const int token = draw(source, r.random, weight, shared.sums);
    if (threadIdx.x == 0) choices[sequence] = {token, row[token] - model.peak - logf(model.total)};
}
