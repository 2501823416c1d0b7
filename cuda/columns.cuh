// The input of a matrix-vector product, spread over the threads of a block: a thread has a piece of columns, whose weights
// are 16 bytes of a row, and keeps their inputs in registers for all rows that the block computes.
//
//     FP16         8 columns     8p ..
//     INT8, SMALL  16 columns    16p ..; four neighbouring threads have a group of 64, which shares a scale
//     INT4         32 columns    64g + 16h .. and 64g + 32 + 16h .., p = 2g + h: the low and the high halves of 16 bytes
//
// Whatever the weights are, inputs are computed 8 columns per thread, as for FP16, so that all threads take part.
#pragma once
#include "common.cuh"
#include "layer_norm.cuh"

#define ROW_THREADS 512   // at most, of a block that computes rows: 128 registers each
#define INPUT_COLUMNS 8   // of a thread, while inputs are computed

template <int kind> struct Piece {
    static const int COLUMNS = kind == FP16 ? INPUT_COLUMNS : kind == INT4 ? 32 : 16;
    static const int OF_A_GROUP = GROUP / COLUMNS;  // pieces, and threads
};

// How the threads of a block share K columns and some rows: `parts` warps have a row together, and the block has `groups`
// of that many warps, which take rows in turns. A thread that is not active has no columns: it reads those of a neighbour,
// and has zeros for inputs. Warps that are left over have no rows.
template <int kind> struct Place {
    int parts, groups, part, group, piece;
    bool active;
    __device__ __forceinline__ Place(int K) {
        const int warp = threadIdx.x / LANES, pieces = K / Piece<kind>::COLUMNS;
        parts = (pieces + LANES - 1) / LANES;
        groups = blockDim.x / LANES / parts;
        part = warp % parts;
        group = warp / parts;
        piece = part * LANES + threadIdx.x % LANES;
        active = piece < pieces && group < groups;
        piece = min(piece, pieces - 1);  // so that reads need no condition for this
    }
    // The number of the first of four columns, e = 0, 4, ..
    __device__ __forceinline__ int column(int e) const {
        if (kind == INT4) return piece / 2 * GROUP + piece % 2 * 16 + e + (e >= 16 ? 16 : 0);
        return piece * Piece<kind>::COLUMNS + e;
    }
};

// 8 values of a vector [K]; zeros for a thread that has no columns. Every group of warps has the whole vector.
struct Values {
    float v[INPUT_COLUMNS];
    __device__ __forceinline__ Values(const Place<FP16>& at, const float* from) {
#pragma unroll
        for (int e = 0; e < INPUT_COLUMNS; e += 4) {
            const float4 four = at.active ? load4(from + at.column(e)) : zeros4();
            v[e] = four.x;
            v[e + 1] = four.y;
            v[e + 2] = four.z;
            v[e + 3] = four.w;
        }
    }
    __device__ __forceinline__ void write(const Place<FP16>& at, float* to) const {
        if (!at.active || at.group) return;
#pragma unroll
        for (int e = 0; e < INPUT_COLUMNS; e += 4)
            store(to + at.column(e), make_float4(v[e], v[e + 1], v[e + 2], v[e + 3]));
    }
    // Layer norm over the K columns.
    __device__ __forceinline__ void normalise(const Place<FP16>& at, int K, const Values& weight, const Values& bias) {
        __shared__ float sums[2 * LANES];
        float sum = 0, squares = 0;
#pragma unroll
        for (int e = 0; e < INPUT_COLUMNS; e++) {
            sum += v[e];
            squares += v[e] * v[e];
        }
        sum = warp_sum(sum);
        squares = warp_sum(squares);
        if (threadIdx.x % LANES == 0) {
            sums[threadIdx.x / LANES] = sum;
            sums[LANES + threadIdx.x / LANES] = squares;
        }
        __syncthreads();
        sum = 0;
        squares = 0;
        if (at.group < at.groups)
            for (int i = 0; i < at.parts; i++) {
                sum += sums[at.group * at.parts + i];
                squares += sums[LANES + at.group * at.parts + i];
            }
        const LayerNorm norm(sum, squares, K);
#pragma unroll
        for (int e = 0; e < INPUT_COLUMNS; e++) v[e] = norm.of(v[e], weight.v[e], bias.v[e]);
    }
    // Token shift: towards the last token's values, by the shares of `mix`.
    __device__ __forceinline__ void shift(const Values& last, const Values& mix) {
#pragma unroll
        for (int e = 0; e < INPUT_COLUMNS; e++) v[e] += (last.v[e] - v[e]) * mix.v[e];
    }
};

// A vector [K] rounded to integers from -127 to 127 with a scale for 64 of them, in shared memory, as the CPU kernels round
// it: K + K / 16 bytes.
struct Rounded {
    u32* q;        // [K / 4] four each
    float* scale;  // [K / 64]
    __device__ __forceinline__ Rounded(float* memory, int K) : q((u32*)memory), scale(memory + K / 4) {}

    // NaN or infinity makes the scale infinite, and all products with it NaN.
    __device__ __forceinline__ void write(const Place<FP16>& at, const Values& x) {
        float top = 0;
#pragma unroll
        for (int e = 0; e < INPUT_COLUMNS; e++) top = fmaxf(top, x.v[e] == x.v[e] ? fabsf(x.v[e]) : INFINITE);
        top = max_of_neighbours<Piece<FP16>::OF_A_GROUP>(top);
        const float inverse = top > 4e-37f ? 127.f / top : 0.f;  // below it the quotient overflows float32
        if (!at.active || at.group) return;
#pragma unroll
        for (int e = 0; e < INPUT_COLUMNS; e += 4) {
            u32 four = 0;
#pragma unroll
            for (int i = 0; i < 4; i++) four |= ((u32)(int)rintf(x.v[e + i] * inverse) & 255) << 8 * i;
            q[at.piece * 2 + e / 4] = four;
        }
        if (at.piece % Piece<FP16>::OF_A_GROUP == 0) scale[at.piece / Piece<FP16>::OF_A_GROUP] = top / 127.f;
    }
};

// A thread's inputs in the form that products take. `memory` has room for x [K], or for it `Rounded`.
template <int kind> struct Input {
    u32 q[Piece<kind>::COLUMNS / 4];
    float scale;
    int offset;  // INT4: 8 times their sum, since weights are stored with 8 added

    __device__ __forceinline__ Input(const Values& x, const Place<FP16>& from, const Place<kind>& at, int K, float* memory) {
        Rounded rounded(memory, K);
        rounded.write(from, x);
        __syncthreads();
        scale = at.active ? rounded.scale[at.piece / Piece<kind>::OF_A_GROUP] : 0;
        offset = 0;
#pragma unroll
        for (int e = 0; e < Piece<kind>::COLUMNS; e += 4) {
            q[e / 4] = at.active ? rounded.q[at.column(e) / 4] : 0;
            if (kind == INT4) offset = dot4(q[e / 4], 0x08080808, offset);
        }
    }
    // 16 bytes of a row, whose scale here is `s`, times the inputs.
    __device__ __forceinline__ float dot(uint4 w, u32 s) const {
        const u32 words[4] = {w.x, w.y, w.z, w.w};
        int sum = -offset, sum16 = 0;  // of the high halves of bytes, which count 16 times
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if (kind == INT8) sum = dot4(words[i], q[i], sum);
            else {
                sum = dot4_unsigned(words[i] & 0x0f0f0f0f, q[i], sum);
                sum16 = dot4_unsigned(words[i] & 0xf0f0f0f0, q[(i + 4) % (Piece<kind>::COLUMNS / 4)], sum16);
            }
        }
        return (sum + (sum16 >> 4)) * (scale * bf16(s));
    }
};

template <> struct Input<FP16> {
    Values x;
    __device__ __forceinline__ Input(const Values& x, const Place<FP16>&, const Place<FP16>&, int, float*) : x(x) {}
    __device__ __forceinline__ float dot(uint4 w, u32) const {
        float sum = 0;
        add_dot8(sum, w, x.v);
        return sum;
    }
};

template <> struct Input<SMALL> {
    float v[Piece<SMALL>::COLUMNS];
    __device__ __forceinline__ Input(const Values& x, const Place<FP16>& from, const Place<SMALL>& at, int, float* memory) {
        x.write(from, memory);
        __syncthreads();
#pragma unroll
        for (int e = 0; e < Piece<SMALL>::COLUMNS; e++) v[e] = at.active ? memory[at.column(0) + e] : 0;
    }
    __device__ __forceinline__ float dot(uint4 w, u32 s) const {
        float sum = 0;
        add_dot8(sum, make_uint2(w.x, w.y), v);
        add_dot8(sum, make_uint2(w.z, w.w), v + 8);
        return sum * bf16(s);
    }
};
