// One token each of 2 to 16 sequences: what the channel mix adds to the residual stream. See few.cuh.
//
//     x += value h
//
// The matrix is stored by hidden unit, [F, C]. A warp has 64 channels and a part of the hidden units, 16 at a time: a lane
// reads 8 channels of 4 units. Pairs of units of a channel make an operand b; so 8 products have a channel of each lane.
#include "few.cuh"
#include "parts.cuh"

#define CHANNELS 256                         // of a block
#define OF_A_WARP 64                         // channels
#define ACROSS (CHANNELS / OF_A_WARP)        // warps that share a block's channels
#define SLICES (WARPS / ACROSS)              // warps that share a block's hidden units
#define UNITS 16                             // hidden units that a warp reads together
#define ROWS 4                               // of which a lane has so many
#define VALUE_STAGES 4                       // units in flight: 128 KB per multiprocessor
#define UNIT_PAD 16                          // hidden units between two tokens in shared memory
#define FIXED_BYTES (VALUE_STAGES * ROWS * THREADS * 16)

extern __shared__ __align__(16) float memory[];  // rows in flight, later sums; then the hidden units of this block

extern "C" __global__ void __launch_bounds__(THREADS)
few_value(const u16* h,        // [T, F] float16
          const u16* weights,  // [F, C]
          const int* slots,    // [T] the slot of each token's state
          const float* u,      // [T, C] the next token shift
          float* shift,        // [C] shift_ffn of this layer of the state in slot 0
          float* parts,        // [parts, T, C]
          int* arrived,        // [ceil(C / CHANNELS)] blocks that have written their part: zeros, before and after
          float* x,            // [T, C]
          int T, int C, int F, long long state_size) {
    __shared__ bool is_last;
    const int t = threadIdx.x, warp = t / LANES, lane = t % LANES, part = blockIdx.y, n_parts = gridDim.y;
    const int c0 = blockIdx.x * CHANNELS + warp % ACROSS * OF_A_WARP, channels = min(CHANNELS, C - (int)blockIdx.x * CHANNELS);
    const int block_begin = share(F / UNITS, part, n_parts), block_units = share(F / UNITS, part + 1, n_parts) - block_begin;
    const int begin = share(block_units, warp / ACROSS, SLICES), end = share(block_units, warp / ACROSS + 1, SLICES);
    uint4* ring = (uint4*)memory + t;
    u16* inputs = (u16*)(memory + FIXED_BYTES / 4);
    const int stride = block_units * UNITS + UNIT_PAD;
    const u16* rows = weights + ((size_t)block_begin * UNITS + lane % 4 * ROWS) * C + c0 + lane / 4 * 8;
    int next = begin, stage = 0;
    auto request = [&](int to) {
        if (next < end && c0 < C)
#pragma unroll
            for (int i = 0; i < ROWS; i++)
                copy_in_background(ring + (to * ROWS + i) * THREADS, rows + ((size_t)next * UNITS + i) * C);
        end_of_copies();
        next++;
    };
    for (int i = 0; i < VALUE_STAGES; i++) request(i);
    wait_for_previous();
    let_next_begin();
    for (int i = t; i < T * block_units * UNITS / 8; i += THREADS) {
        const int token = i / (block_units * UNITS / 8), unit = i % (block_units * UNITS / 8) * 8;
        *(uint4*)(inputs + token * stride + unit) = *(const uint4*)(h + (size_t)token * F + block_begin * UNITS + unit);
    }
    if (part == 0)  // `few_hidden`'s input was computed from what is overwritten here
        for (int i = t; i < T * channels; i += THREADS) {
            const int token = i / channels, c = blockIdx.x * CHANNELS + i % channels;
            (shift + slots[token] * state_size)[c] = u[(size_t)token * C + c];
        }
    __syncthreads();
    float4 sums[8];  // of a lane's 8 channels
#pragma unroll
    for (int i = 0; i < 8; i++) sums[i] = zeros4();
    for (int unit = begin; unit < end; unit++) {
        wait_for_copies<VALUE_STAGES - 1>();
        const u16* in = inputs + unit * UNITS + lane % 4 * ROWS;
        const uint2 a = *(const uint2*)(in + min(lane / 4, T - 1) * stride);
        const uint2 b = T > 8 ? *(const uint2*)(in + min(lane / 4 + 8, T - 1) * stride) : make_uint2(0, 0);
        u32 w[ROWS][4];
#pragma unroll
        for (int i = 0; i < ROWS; i++) {
            const uint4 row = ring[(stage * ROWS + i) * THREADS];
            w[i][0] = row.x;
            w[i][1] = row.y;
            w[i][2] = row.z;
            w[i][3] = row.w;
        }
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const int both = i % 2 ? 0x7632 : 0x5410;  // the upper or the lower halves of two words
            multiply_add(sums[i], a.x, b.x, a.y, b.y, __byte_perm(w[0][i / 2], w[1][i / 2], both),
                         __byte_perm(w[2][i / 2], w[3][i / 2], both));
        }
        request(stage);
        stage = stage + 1 == VALUE_STAGES ? 0 : stage + 1;
    }
    wait_for_copies<0>();
    __syncthreads();  // `memory` is free
    float* slice = memory + warp / ACROSS * T * CHANNELS + warp % ACROSS * OF_A_WARP;
#pragma unroll
    for (int i = 0; i < 8; i++)  // column n of product i is channel 8 n + i
        each_sum(sums[i], T, [&](int token, int n, float v) { slice[token * CHANNELS + 8 * n + i] = v; });
    __syncthreads();
    // Four channels of a token each: so few steps that all reads of one are under way at the same time.
    const int fours = channels / 4;
    for (int i = t; i < T * fours; i += THREADS) {
        const int token = i / fours, c = i % fours * 4;
        float4 total = zeros4();
#pragma unroll
        for (int s = 0; s < SLICES; s++) total = total + load4(memory + (s * T + token) * CHANNELS + c);
        store(parts + ((size_t)part * T + token) * C + blockIdx.x * CHANNELS + c, total);
    }
    if (!is_last_of(n_parts, &arrived[blockIdx.x], &is_last)) return;
    for (int i = t; i < T * fours; i += THREADS) {
        const size_t place = (size_t)(i / fours) * C + blockIdx.x * CHANNELS + i % fours * 4;
        store(x + place, sum_of_parts((const float4*)(parts + place), T * C / 4, n_parts, load4(x + place)));
    }
    if (t == 0) arrived[blockIdx.x] = 0;
}
