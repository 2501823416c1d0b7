// Decoding, last of five: what the channel mix adds to the residual stream, of one token.
//
//     x += value h
//
// The matrix is stored by hidden unit, [F, C], and units that are zero, most of them in trained models, are not read. A
// block has some channels and a part of the hidden units. The last block of the same channels to finish adds up all parts,
// in order, so that the sum is always the same.
#include "parts.cuh"

#define CHANNELS (KIND == INT4 ? 512 : 256)  // of a block: a warp reads pieces of rows of 512 or 256 bytes
#define WARPS 16  // as in the kernels before and after: a multiprocessor has the registers for one block
#define THREADS (WARPS * LANES)

// Rows that are multiplied together, four of integers, since that is what an instruction takes; and how many of those a
// warp has in flight: 4 KB, or 64 KB per multiprocessor. Twice as much was slower, and half as much with INT8.
#define TOGETHER (KIND == FP16 ? 1 : 4)
#define TURN (KIND == FP16 ? 8 : 4)
#define COLUMNS (CHANNELS / LANES)  // of a thread

// Bytes of dynamic shared memory for each group of 64 hidden units: its values, the units' numbers, their scale, and of
// integers the scales of the weights; and what is read, but not used, after the end of the list.
#define GROUP_BYTES (4 * GROUP + 2 * GROUP + 4 + (KIND == FP16 ? 0 : 2 * CHANNELS))
#define BEYOND_LIST 32

#if KIND == FP16
typedef uint4 Piece;  // of a row, that a lane has
#else
typedef uint2 Piece;
#endif
#define WORDS ((int)sizeof(Piece) / 4)

// The hidden units that are not zero, in order; of integers those of a group of 64 are padded by zeros to a multiple of
// four.
struct Units {
    u32* values;   // floats; of integers four in a word, as bytes
    u16* numbers;  // of the units, counted from the first of this block
    float* scale;  // [groups] of integers
};

// The number of a lane's channel e: INT4 has 8 in the low halves of its bytes and 8, 32 further, in the high ones.
__device__ __forceinline__ int channel(int lane, int e) {
    return KIND == INT4 ? lane / 4 * GROUP + lane % 4 * 8 + e % 8 + e / 8 * 32 : lane * COLUMNS + e;
}

// A lane's two of a group of hidden units h [64], rounded to integers if the weights are.
struct Pair {
    float2 v;
    float scale;
    u32 even, odd;  // a bit for each lane: whether its first, or second, unit is not zero
    __device__ __forceinline__ Pair(float2 h) : v(h) {
        if (KIND != FP16) {
            const float top = max_of_neighbours<LANES>(fmaxf(v.x, v.y));
            const float inverse = top > 4e-37f ? 127.f / top : 0.f;  // below it the quotient overflows float32
            v = make_float2(rintf(v.x * inverse), rintf(v.y * inverse));
            scale = top / 127.f;
        }
        even = __ballot_sync(ALL_LANES, v.x != 0);
        odd = __ballot_sync(ALL_LANES, v.y != 0);
    }
    __device__ __forceinline__ int count() const { return (__popc(even) + __popc(odd) + TOGETHER - 1) / TOGETHER; }
};

// Lists the units of h [groups, 64] that are not zero; a warp has a group at a time. Returns their number, in multiples of
// TOGETHER. `counts` [2, WARPS] is shared memory for this alone.
__device__ __forceinline__ int list_units(const float* h, int groups, const Units& units, int (*counts)[WARPS]) {
    const int warp = threadIdx.x / LANES, lane = threadIdx.x % LANES;
    auto mine = [&](int g) { return load2(h + min(g, groups - 1) * GROUP + 2 * lane); };
    int total = 0;
    float2 next = mine(warp);
    for (int first = 0, turn = 0; first < groups; first += WARPS, turn ^= 1) {
        const int g = first + warp;
        const Pair pair(next);
        next = mine(g + WARPS);
        if (lane == 0) counts[turn][warp] = g < groups ? pair.count() : 0;
        __syncthreads();
        int before = total;
#pragma unroll
        for (int i = 0; i < WARPS; i++) {
            before += i < warp ? counts[turn][i] : 0;
            total += counts[turn][i];
        }
        if (g >= groups) continue;
        if (lane == 0) units.scale[g] = pair.scale;
        const u32 below = (1u << lane) - 1;
        int at = before * TOGETHER + __popc(pair.even & below) + __popc(pair.odd & below);
        auto put = [&](float v, int number) {
            units.numbers[at] = g * GROUP + number;
            if (KIND == FP16) units.values[at] = __float_as_uint(v);
            else ((u8*)units.values)[at] = (u8)v;
            at++;
        };
        if (pair.v.x != 0) put(pair.v.x, 2 * lane);
        if (pair.v.y != 0) put(pair.v.y, 2 * lane + 1);
        const int used = __popc(pair.even) + __popc(pair.odd);
        if (lane < pair.count() * TOGETHER - used) {
            at = before * TOGETHER + used + lane;
            put(0, 0);
        }
    }
    __syncthreads();
    return total;
}

// A lane's pieces of TOGETHER rows.
struct Rows {
    Piece pieces[TOGETHER];
    int group;
    u32 values;
    // Word e of row j; the compiler checks j = 1 .. 3 even where TOGETHER is 1.
    __device__ __forceinline__ u32 word(int j, int e) const { return ((const u32*)&pieces[j % TOGETHER])[e]; }
    // Entry i of the list; undefined from `end` on. The list is read up to TURN - 1 entries beyond its end.
    __device__ __forceinline__ void read(const u8* weights, u32 row_bytes, const Units& units, int i, int end) {
        values = units.values[i];
        u32 numbers[TOGETHER];
        if (KIND == FP16) numbers[0] = units.numbers[i];
        else {
            const uint2 four = ((const uint2*)units.numbers)[i];
            numbers[0] = four.x & 0xffff;
            numbers[1 % TOGETHER] = four.x >> 16;
            numbers[2 % TOGETHER] = four.y & 0xffff;
            numbers[3 % TOGETHER] = four.y >> 16;
        }
        group = numbers[0] / GROUP;
#pragma unroll
        for (int j = 0; j < TOGETHER; j++)
            pieces[j] = read_once<Piece>(weights + (size_t)numbers[j] * row_bytes, i < end);
    }
};

// A warp's sums; of integers the sums of the current group apart, since its weights share scales.
struct Sums {
    float v[COLUMNS];
    int of_group[COLUMNS], offset, group;  // INT4: the second half, of high halves of bytes, counts 16 times
    __device__ __forceinline__ Sums() : v(), of_group(), offset(0), group(0) {}

    // `scales` [groups, CHANNELS] of integers, at this lane's channels.
    __device__ __forceinline__ void add(const Rows& rows, const Units& units, const u16* scales) {
        if (KIND == FP16) {
            const float x = __uint_as_float(rows.values);
#pragma unroll
            for (int e = 0; e < WORDS; e++) {
                const float2 w = halves(rows.word(0, e));
                v[2 * e] += w.x * x;
                v[2 * e + 1] += w.y * x;
            }
            return;
        }
        if (rows.group != group) {
            end_group(units, scales);
            group = rows.group;
        }
        if (KIND == INT4) offset -= dot4(rows.values, 0x08080808, 0);  // 8 was added to the weights
#pragma unroll
        for (int e = 0; e < WORDS; e++) {  // transpose: the bytes of a channel into one word
            const u32 a = rows.word(0, e), b = rows.word(1, e), c = rows.word(2, e), d = rows.word(3, e);
            const u32 ab = __byte_perm(a, b, 0x5140), cd = __byte_perm(c, d, 0x5140);  // a0 b0 a1 b1, c0 d0 c1 d1
            const u32 ab2 = __byte_perm(a, b, 0x7362), cd2 = __byte_perm(c, d, 0x7362);
            const u32 four[4] = {__byte_perm(ab, cd, 0x5410), __byte_perm(ab, cd, 0x7632), __byte_perm(ab2, cd2, 0x5410),
                                 __byte_perm(ab2, cd2, 0x7632)};
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int& low = of_group[4 * e + i];
                int& high = of_group[(4 * e + i + 8) % COLUMNS];
                if (KIND == INT8) low = dot4(four[i], rows.values, low);
                else {
                    low = dot4_unsigned(four[i] & 0x0f0f0f0f, rows.values, low);
                    high = dot4_unsigned(four[i] & 0xf0f0f0f0, rows.values, high);
                }
            }
        }
    }
    // After the last row of a group.
    __device__ __forceinline__ void end_group(const Units& units, const u16* scales) {
        if (KIND == FP16) return;
        const float scale = units.scale[group];
#pragma unroll
        for (int half = 0; half < COLUMNS / 8; half++) {
            const uint4 eight = *(const uint4*)(scales + group * CHANNELS + channel(0, 8 * half));
            const u32 pairs[4] = {eight.x, eight.y, eight.z, eight.w};
#pragma unroll
            for (int i = 0; i < 8; i++) {
                int& sum = of_group[8 * half + i];
                v[8 * half + i] += ((half ? sum >> 4 : sum) + offset) * (scale * bf16(pairs[i / 2] >> i % 2 * 16 & 0xffff));
                sum = 0;
            }
        }
        offset = 0;
    }
};

extern "C" __global__ void __launch_bounds__(THREADS)
value(const float* h,       // [F]
      const u8* weights,    // [F, C]
      const u16* scales,    // [F / 64, C]
      const float* u,       // [C] the next token shift
      float* shift,         // [C] shift_ffn of this layer's state
      float* parts,         // [parts, C]
      int* arrived,         // [ceil(C / CHANNELS)] blocks that have written their part: zeros, before and after
      float* x,             // [C]
      int C, int F) {
    __shared__ float sums[WARPS][CHANNELS];
    __shared__ int counts[2][WARPS];
    __shared__ bool is_last;
    extern __shared__ __align__(16) float memory[];
    const int t = threadIdx.x, warp = t / LANES, lane = t % LANES, n_parts = gridDim.y, part = blockIdx.y;
    const int c0 = blockIdx.x * CHANNELS, channels = min(CHANNELS, C - c0);
    const int g0 = share(F / GROUP, part, n_parts), groups = share(F / GROUP, part + 1, n_parts) - g0;
    const int capacity = (F / GROUP + n_parts - 1) / n_parts;  // in groups
    u16* group_scales = (u16*)memory;  // first, since it is copied 16 bytes at a time
    float* lists = memory + (KIND == FP16 ? 0 : capacity * CHANNELS / 2);
    const Units units = {(u32*)lists, (u16*)(lists + capacity * GROUP), lists + capacity * (GROUP + GROUP / 2)};
    if (KIND != FP16)
        for (int i = 8 * t; i < groups * CHANNELS; i += 8 * THREADS)
            if (i % CHANNELS < channels)
                copy_in_background(group_scales + i, scales + (size_t)(g0 + i / CHANNELS) * C + c0 + i % CHANNELS);
    end_of_copies();
    wait_for_previous();
    let_next_begin();
    if (part == 0 && t < channels) shift[c0 + t] = u[c0 + t];  // `hidden` has read it
    wait_for_copies<0>();  // for all threads, by the barriers of what follows
    const int n = list_units(h + g0 * GROUP, groups, units, counts);
    // A warp has consecutive entries of the list.
    const int begin = share(n, warp, WARPS), end = share(n, warp + 1, WARPS);
    const u32 row_bytes = KIND == FP16 ? C * 2 : KIND == INT8 ? C : C / 2;
    weights += (size_t)g0 * GROUP * row_bytes + c0 * row_bytes / C + lane * WORDS * 4;
    group_scales += channel(lane, 0);
    Sums mine;
    if (channel(lane, 0) < channels) {
        for (int i = begin; i < end; i += TURN) {
            Rows rows[TURN];
#pragma unroll
            for (int j = 0; j < TURN; j++) rows[j].read(weights, row_bytes, units, i + j, end);
#pragma unroll
            for (int j = 0; j < TURN; j++)
                if (i + j < end) mine.add(rows[j], units, group_scales);
        }
        if (begin < end) mine.end_group(units, group_scales);
    }
#pragma unroll
    for (int e = 0; e < COLUMNS; e++) sums[warp][channel(lane, e)] = mine.v[e];
    __syncthreads();
    const int c = c0 + t;
    if (t < channels) {
        float total = 0;
#pragma unroll
        for (int i = 0; i < WARPS; i++) total += sums[i][t];
        parts[(size_t)part * C + c] = total;
    }
    if (!is_last_of(n_parts, &arrived[blockIdx.x], &is_last)) return;
    if (t < channels) x[c] = sum_of_parts(parts + c, C, n_parts, x[c]);
    if (t == 0) arrived[blockIdx.x] = 0;
}
