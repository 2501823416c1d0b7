// One token each of 2 to 16 sequences: what the channel mix adds to the residual stream. See few.cuh.
//
//     parts = value h, of some of the hidden units each
//
// The kernel that reads x next adds the parts to it: few_mix.cu.
//
// The matrix is stored by hidden unit, [F, C]. A warp has 64 channels and a part of the hidden units, 16 at a time: a lane
// reads 8 channels of 4 units. Pairs of units of a channel make an operand b; so 8 products have a channel of each lane. Of
// integers, 64 hidden units share a scale for each channel.
#include "few.cuh"

#define CHANNELS 256                         // of a block
#define OF_A_WARP 64                         // channels
#define ACROSS (CHANNELS / OF_A_WARP)        // warps that share a block's channels
#define SLICES (WARPS / ACROSS)              // warps that share a block's hidden units
#define UNITS 16                             // hidden units that a warp reads together
#define ROWS 4                               // of which a lane has so many
#define OF_A_ROW (KIND == FP16 ? 16 : 8 / KIND)  // bytes of a lane
#define WORDS (OF_A_ROW / 4)
#define VALUE_STAGES (KIND == FP16 ? 4 : 8)  // units in flight: 128 KB per multiprocessor, of INT4 64
#define UNIT_PAD 16                          // hidden units between two tokens in shared memory
#define FIXED_BYTES (VALUE_STAGES * ROWS * THREADS * OF_A_ROW)

// The number of a lane's channel i: INT4 has 4 in the low halves of its bytes and 4, 32 further, in the high ones.
__device__ __forceinline__ int channel(int lane, int i) {
    return KIND == INT4 ? lane / 4 * 4 + i % 4 + i / 4 * 32 : lane / 4 * 8 + i;
}

// The scales of a lane's 8 channels in a group of hidden units, bfloat16; `at` is that of the warp's first channel.
struct Scales {
    u32 pairs[4];
    __device__ __forceinline__ Scales() : pairs() {}
    __device__ __forceinline__ void read(const u16* at, int lane) {
        const uint2 low = *(const uint2*)(at + channel(lane, 0)), high = *(const uint2*)(at + channel(lane, 4));
        pairs[0] = low.x;
        pairs[1] = low.y;
        pairs[2] = high.x;
        pairs[3] = high.y;
    }
    __device__ __forceinline__ u32 of(int i) const { return scale_halves(pairs[i / 2] >> i % 2 * 16 & 0xffff); }
};

// Channel i of two hidden units, as float16, from a lane's words of both.
__device__ __forceinline__ u32 pair(const u32* first, const u32* second, int i, u32 scale) {
    if constexpr (KIND == FP16) return __byte_perm(first[i / 2], second[i / 2], i % 2 ? 0x7632 : 0x5410);
    else {
        const int word = KIND == INT8 ? i / 4 : 0, half = KIND == INT8 ? 0 : i / 4, byte = i % 4;
        const u32 both = __byte_perm(unsigned_bytes<KIND>(first[word], half), unsigned_bytes<KIND>(second[word], half),
                                     byte | (4 + byte) << 8);
        return scaled<KIND>((both & 0x00ff00ff) | 0x64006400, scale);
    }
}

__device__ __forceinline__ void copy_piece(void* to, const void* from) {
    if constexpr (KIND == FP16) copy_in_background(to, from);
    else copy_little_in_background<OF_A_ROW>(to, from);
}

extern __shared__ __align__(16) float memory[];  // rows in flight, later sums; then the hidden units of this block

extern "C" __global__ void __launch_bounds__(THREADS)
few_value(const u16* h,        // [T, F] float16
          const u8* weights,   // [F, C]
          const u16* scales,   // [F / 64, C]
          const int* slots,    // [T] the slot of each token's state
          const float* u,      // [T, C] the next token shift
          float* shift,        // [C] shift_ffn of this layer of the state in slot 0
          float* parts,        // [gridDim.y, T, C]
          int T, int C, int F, long long state_size) {
    const int t = threadIdx.x, warp = t / LANES, lane = t % LANES, part = blockIdx.y, n_parts = gridDim.y;
    const int c0 = blockIdx.x * CHANNELS + warp % ACROSS * OF_A_WARP, channels = min(CHANNELS, C - (int)blockIdx.x * CHANNELS);
    const int block_begin = share(F / UNITS, part, n_parts), block_units = share(F / UNITS, part + 1, n_parts) - block_begin;
    const int begin = share(block_units, warp / ACROSS, SLICES), end = share(block_units, warp / ACROSS + 1, SLICES);
    u32* ring = (u32*)memory + t * WORDS;
    u16* inputs = (u16*)(memory + FIXED_BYTES / 4);
    const int stride = block_units * UNITS + UNIT_PAD;
    const size_t row_bytes = (size_t)C * OF_A_ROW / 8;
    const u8* rows = weights + ((size_t)block_begin * UNITS + lane % 4 * ROWS) * row_bytes + (c0 + lane / 4 * 8) * OF_A_ROW / 8;
    int copied = begin, stage = 0;
    auto request = [&](int to) {
        if (copied < end && c0 < C)
#pragma unroll
            for (int i = 0; i < ROWS; i++)
                copy_piece(ring + (to * ROWS + i) * THREADS * WORDS, rows + ((size_t)copied * UNITS + i) * row_bytes);
        end_of_copies();
        copied++;
    };
    for (int i = 0; i < VALUE_STAGES; i++) request(i);
    wait_for_previous();
    let_next_begin();
    for (int i = t; i < T * block_units * UNITS / 8; i += THREADS) {
        const int token = i / (block_units * UNITS / 8), unit = i % (block_units * UNITS / 8) * 8;
        *(uint4*)(inputs + token * stride + unit) = *(const uint4*)(h + (size_t)token * F + block_begin * UNITS + unit);
    }
    __syncthreads();
    float4 sums[8];  // of a lane's 8 channels
#pragma unroll
    for (int i = 0; i < 8; i++) sums[i] = zeros4();
    const int OF_A_SCALE = GROUP / UNITS;
    Scales now, next_scales;
    auto read_scales = [&](int unit) {  // of the group that has this one, or of the last one
        const int group = min(block_begin + unit, F / UNITS - 1) / OF_A_SCALE;
        if (KIND != FP16 && c0 < C) next_scales.read(scales + (size_t)group * C + c0, lane);
    };
    read_scales(begin);
    for (int unit = begin; unit < end; unit++) {
        if (unit == begin || (block_begin + unit) % OF_A_SCALE == 0) {
            now = next_scales;
            read_scales(unit + OF_A_SCALE);
        }
        wait_for_copies<VALUE_STAGES - 1>();
        const u16* in = inputs + unit * UNITS + lane % 4 * ROWS;
        const uint2 a = *(const uint2*)(in + min(lane / 4, T - 1) * stride);
        const uint2 b = T > 8 ? *(const uint2*)(in + min(lane / 4 + 8, T - 1) * stride) : make_uint2(0, 0);
        u32 w[ROWS][WORDS];
#pragma unroll
        for (int i = 0; i < ROWS; i++) {
            const u32* piece = ring + (stage * ROWS + i) * THREADS * WORDS;
            if constexpr (WORDS == 4) *(uint4*)w[i] = *(const uint4*)piece;
            else if constexpr (WORDS == 2) *(uint2*)w[i] = *(const uint2*)piece;
            else w[i][0] = piece[0];
        }
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const u32 scale = KIND == FP16 ? 0 : now.of(i);
            multiply_add(sums[i], a.x, b.x, a.y, b.y, pair(w[0], w[1], i, scale), pair(w[2], w[3], i, scale));
        }
        request(stage);
        stage = stage + 1 == VALUE_STAGES ? 0 : stage + 1;
    }
    wait_for_copies<0>();
    __syncthreads();  // `memory` is free
    float* slice = memory + warp / ACROSS * T * CHANNELS + warp % ACROSS * OF_A_WARP;
#pragma unroll
    for (int i = 0; i < 8; i++)  // column n of product i is channel i of lanes 4 n ..
        each_sum(sums[i], T, [&](int token, int n, float v) {
            slice[token * CHANNELS + channel(4 * n, i)] = KIND == FP16 ? v : v / UP;
        });
    __syncthreads();
    // Four channels of a token each: so few steps that all reads of one are under way at the same time.
    const int fours = channels / 4;
    for (int i = t; i < T * fours; i += THREADS) {
        const int token = i / fours, c = i % fours * 4;
        float4 total = zeros4();
#pragma unroll
        for (int s = 0; s < SLICES; s++) total = total + load4(memory + (s * T + token) * CHANNELS + c);
        store(parts + ((size_t)part * T + token) * C + blockIdx.x * CHANNELS + c, total);
        if (part) continue;
        // The state's token shift: `few_channel_mix` has read the last one.
        const size_t from = (size_t)token * C + blockIdx.x * CHANNELS + c;
        store(shift + slots[token] * state_size + blockIdx.x * CHANNELS + c, load4(u + from));
    }
}
