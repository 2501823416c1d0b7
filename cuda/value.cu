// Decoding, last of five: what the channel mix adds to the residual stream, of one token.
//
//     x += value h
//
// The matrix lies by hidden unit, [F, C], and units that are zero, most of them in trained models, are not read. A block
// has 256 channels and a part of the hidden units. The last block of some channels to come adds up all parts, in order,
// so that the sum is always the same.
#include "common.cuh"

#define CHANNELS 256  // of a block: a warp reads rows of 512 bytes in float16
#define WARPS 16
#define THREADS (WARPS * LANES)
#define UNITS 8       // that a thread has on their way

// A lane has a piece of the channels of one row; a warp reads rows of as many hidden units as it has lanes for.
#define COLUMNS (KIND == FP16 ? 8 : KIND == INT8 ? 16 : 32)
#define ROW_LANES (CHANNELS / COLUMNS)
#define TAKERS (THREADS / ROW_LANES)

// Which channel is number e of a piece: INT4 has 16 in the low halves of its bytes and 16, 32 further, in the high ones.
__device__ __forceinline__ int channel(int piece, int e) {
    return KIND == INT4 ? piece / 2 * N + piece % 2 * 16 + e % 16 + e / 16 * 32 : piece * COLUMNS + e;
}

// The hidden units that are not zero, of some groups of 64.
struct Units {
    float* h;      // [groups, 64] their values, those that are not zero first; whole numbers if weights are
    u8* number;    // [groups, 64] which of the 64
    int* count;    // [groups]
    float* scale;  // [groups] of the values, if they are whole numbers
};

// A warp rounds a group of hidden units h [64] and lists those that are not zero.
__device__ __forceinline__ void list_units(const float* h, const Units& units, int g) {
    const int lane = threadIdx.x % LANES;
    float2 v = *(const float2*)(h + 2 * lane);
    if (KIND != FP16) {
        float top = fmaxf(v.x, v.y);
#pragma unroll
        for (int i = LANES / 2; i; i /= 2) top = fmaxf(top, __shfl_xor_sync(ALL_LANES, top, i));
        float inverse = top > 4e-37f ? 127.f / top : 0.f;
        v.x = rintf(v.x * inverse), v.y = rintf(v.y * inverse);
        if (lane == 0) units.scale[g] = top / 127.f;
    }
    u32 even = __ballot_sync(ALL_LANES, v.x != 0), odd = __ballot_sync(ALL_LANES, v.y != 0), below = (1u << lane) - 1;
    int at = g * N + __popc(even & below) + __popc(odd & below);
    if (v.x != 0) units.number[at] = 2 * lane, units.h[at++] = v.x;
    if (v.y != 0) units.number[at] = 2 * lane + 1, units.h[at] = v.y;
    if (lane == 0) units.count[g] = __popc(even) + __popc(odd);
}

// sums [COLUMNS] += rows of four units, of which `n` count, times their whole numbers x: the bytes of a channel are
// brought together for dot4.
__device__ __forceinline__ void add_four(int* sums, const uint4* rows, const float* x, int n) {
    u32 q = 0, words[4][4];
#pragma unroll
    for (int j = 0; j < 4; j++) {
        q |= (u32)(j < n ? (int)x[j] : 0) << 8 * j;
        words[j][0] = rows[j].x, words[j][1] = rows[j].y, words[j][2] = rows[j].z, words[j][3] = rows[j].w;
    }
    const int offset = dot4(q, 0x08080808, 0);  // of INT4 weights
#pragma unroll
    for (int e = 0; e < 4; e++) {
        u32 even_1 = __byte_perm(words[0][e], words[1][e], 0x5140), even_2 = __byte_perm(words[2][e], words[3][e], 0x5140);
        u32 odd_1 = __byte_perm(words[0][e], words[1][e], 0x7362), odd_2 = __byte_perm(words[2][e], words[3][e], 0x7362);
        const u32 channel[4] = {__byte_perm(even_1, even_2, 0x5410), __byte_perm(even_1, even_2, 0x7632),
                                __byte_perm(odd_1, odd_2, 0x5410), __byte_perm(odd_1, odd_2, 0x7632)};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if (KIND == INT8) sums[4 * e + i] = dot4(channel[i], q, sums[4 * e + i]);
            else {
                sums[4 * e + i] = dot4_unsigned(channel[i] & 0x0f0f0f0f, q, sums[4 * e + i] - offset);
                sums[(16 + 4 * e + i) % COLUMNS] =
                    dot4_unsigned(channel[i] >> 4 & 0x0f0f0f0f, q, sums[(16 + 4 * e + i) % COLUMNS] - offset);
            }
        }
    }
}

// sums [COLUMNS] += rows of UNITS units of group g, from the `first` of its list on, at the lane's channels.
__device__ __forceinline__ void add_units(float* sums, const u8* weights, size_t row_bytes, const u16* scales,
                                          const Units& units, int g, int first) {
    const int n = units.count[g] - first;
    const u8* number = units.number + g * N + first;
    const float* x = units.h + g * N + first;
    uint4 rows[UNITS];
#pragma unroll
    for (int j = 0; j < UNITS; j++)
        rows[j] = j < n ? read_once(weights + (g * N + number[j]) * row_bytes) : make_uint4(0, 0, 0, 0);
    if (KIND == FP16) {
#pragma unroll
        for (int j = 0; j < UNITS; j++) {
            if (j >= n) break;
            const u32 words[4] = {rows[j].x, rows[j].y, rows[j].z, rows[j].w};
#pragma unroll
            for (int e = 0; e < 4; e++) {
                float2 w = halves(words[e]);
                sums[2 * e] += w.x * x[j], sums[2 * e + 1] += w.y * x[j];
            }
        }
        return;
    }
    int whole[COLUMNS] = {};
#pragma unroll
    for (int j = 0; j < UNITS; j += 4)
        if (j < n) add_four(whole, rows + j, x + j, n - j);
#pragma unroll
    for (int e = 0; e < COLUMNS; e += 2) {
        u32 both = *(const u32*)(scales + e + (e >= 16 ? 16 : 0));
        sums[e] += whole[e] * (units.scale[g] * bf16(both & 0xffff));
        sums[e + 1] += whole[e + 1] * (units.scale[g] * bf16(both >> 16));
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
value(const float* h,       // [F]
      const u8* weights,    // [F, C]
      const u16* scales,    // [F / 64, C]
      const float* u,       // [C] the next token shift
      float* shift,         // [C] shift_ffn of this layer's state
      float* parts,         // [parts, C]
      int* arrived,         // [C / 256, rounded up] blocks that have written their part: zeros, before and after
      float* x,             // [C]
      int C, int F) {
    __shared__ float sums[WARPS][CHANNELS];
    __shared__ bool is_last;
    extern __shared__ __align__(16) float memory[];
    const int t = threadIdx.x, warp = t / LANES, n_parts = gridDim.y, part = blockIdx.y;
    const int c0 = blockIdx.x * CHANNELS, piece = c0 / COLUMNS + t % ROW_LANES, first_channel = channel(piece, 0);
    const int g0 = share(F / N, part, n_parts), groups = share(F / N, part + 1, n_parts) - g0;
    const int room = (F / N + n_parts - 1) / n_parts;
    Units units = {memory, (u8*)(memory + room * (N + 2)), (int*)(memory + room * N), memory + room * (N + 1)};
    wait_for_previous();
    let_next_begin();
    if (part == 0 && t < CHANNELS && c0 + t < C) shift[c0 + t] = u[c0 + t];  // `hidden` has read it
    for (int g = warp; g < groups; g += WARPS) list_units(h + (g0 + g) * N, units, g);
    __syncthreads();
    float acc[COLUMNS] = {};
    const size_t row_bytes = KIND == FP16 ? C * 2 : KIND == INT8 ? C : C / 2;
    weights += g0 * N * row_bytes + piece * 16;
    // First the first units of all groups, then the next ones: so all takers have about as much.
    if (first_channel < C)
        for (int i = t / ROW_LANES; i < groups * (N / UNITS); i += TAKERS) {
            int g = i % groups, first = i / groups * UNITS;
            if (first < units.count[g])
                add_units(acc, weights, row_bytes, scales + (size_t)(g0 + g) * C + first_channel, units, g, first);
        }
    __syncwarp();
#pragma unroll
    for (int e = 0; e < COLUMNS; e++) {
#pragma unroll
        for (int i = LANES / 2; i >= ROW_LANES; i /= 2) acc[e] += __shfl_xor_sync(ALL_LANES, acc[e], i);
        if (t % LANES < ROW_LANES) sums[warp][channel(piece, e) - c0] = acc[e];
    }
    __syncthreads();
    const int c = c0 + t;
    const bool mine = t < CHANNELS && c < C;
    if (mine) {
        float total = 0;
#pragma unroll
        for (int i = 0; i < WARPS; i++) total += sums[i][t];
        parts[(size_t)part * C + c] = total;
    }
    __threadfence();
    __syncthreads();
    if (t == 0) is_last = atomicAdd(&arrived[blockIdx.x], 1) == n_parts - 1;
    __syncthreads();
    if (!is_last) return;
    __threadfence();
    if (mine) {
        float total = x[c];
#pragma unroll 8
        for (int i = 0; i < n_parts; i++) total += __ldcg(parts + (size_t)i * C + c);
        x[c] = total;
    }
    if (t == 0) arrived[blockIdx.x] = 0;
}
