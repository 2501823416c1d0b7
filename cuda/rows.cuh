// Rows of a matrix times an input in registers (columns.cuh): the product that decoding spends most of its time in. Each
// weight is read once, 16 bytes per thread, a few rows ahead of the arithmetic.
#pragma once
#include "columns.cuh"

#define AHEAD 8  // rows that a thread has in flight, and as many again: 128 KB per multiprocessor with 16 warps

// W [R, K]: row-major; of integers with a bfloat16 scale for 64 columns, scales [R, K / 64].
template <int kind> struct Matrix {
    const u8* weights;
    const u16* scales;
    int K;
    __device__ __forceinline__ size_t row_bytes() const { return K / Piece<kind>::COLUMNS * 16; }
};

// A thread's pieces of AHEAD rows: row, row + groups, ..
template <int kind> struct Batch {
    uint4 w[AHEAD];
    u32 s[AHEAD];
    __device__ __forceinline__ void read(const Matrix<kind>& m, const Place<kind>& at, int row, int end) {
        const u8* weights = m.weights + row * m.row_bytes() + at.piece * 16;
        const u16* scales = m.scales + (size_t)row * (m.K / GROUP) + at.piece / Piece<kind>::OF_A_GROUP;
#pragma unroll
        for (int j = 0; j < AHEAD; j++) {
            const bool wanted = at.group < at.groups && row < end;
            w[j] = read_once<uint4>(weights, wanted);
            if (kind != FP16) s[j] = wanted ? *scales : 0;
            row += at.groups;
            weights += at.groups * m.row_bytes();
            scales += at.groups * (m.K / GROUP);
        }
    }
};

// Shared memory of a block: the input, then the sums of its rows.
extern __shared__ __align__(16) float memory[];

// The rows begin .. end - 1 of a matrix, which a block computes. The first of them are requested at once, before the input
// can be read. Then `multiply` leaves in shared memory what each warp has added up, and `sum` adds up the warps.
template <int kind> struct Rows {
    const Matrix<kind> m;
    const int begin, end;
    const Place<kind> at;
    const Place<FP16> in;  // of the input, while it is computed
    Batch<kind> batch;

    __device__ __forceinline__ Rows(const Matrix<kind>& m, int begin, int end)
        : m(m), begin(begin), end(end), at(m.K), in(m.K) {
        batch.read(m, at, begin + at.group, end);
    }
    // A block's share of all R rows.
    __device__ __forceinline__ Rows(const Matrix<kind>& m, int R)
        : Rows(m, share(R, blockIdx.x, gridDim.x), share(R, blockIdx.x + 1, gridDim.x)) {}

    __device__ __forceinline__ void multiply(const Values& v) {
        const Input<kind> x(v, in, at, m.K, memory);
        if (at.group < at.groups) multiply_all(x);
        __syncthreads();
    }
    __device__ __forceinline__ float sum(int row) const {
        float total = 0;
        for (int i = 0; i < at.parts; i++) total += sums()[(row - begin) * at.parts + i];
        return total;
    }

  private:
    // [end - begin, parts]
    __device__ __forceinline__ float* sums() const { return memory + m.K; }

    __device__ __forceinline__ void multiply_all(const Input<kind>& x) {
        const int step = AHEAD * at.groups;
        for (int row = begin + at.group; row < end; row += 2 * step) {
            Batch<kind> next;
            next.read(m, at, row + step, end);
            add_up(x, batch, row);
            if (row + step >= end) break;
            batch.read(m, at, row + 2 * step, end);
            add_up(x, next, row + step);
        }
    }
    __device__ __forceinline__ void add_up(const Input<kind>& x, const Batch<kind>& rows, int row) const {
        float v[AHEAD];
#pragma unroll
        for (int j = 0; j < AHEAD; j++) v[j] = x.dot(rows.w[j], rows.s[j]);
        const float sum = sum_of_neighbours<LANES / AHEAD>(transposed_sum<AHEAD, LANES / 2>(v));
        const int mine = row + threadIdx.x % LANES / (LANES / AHEAD) * at.groups;
        if (threadIdx.x % (LANES / AHEAD) == 0 && mine < end) sums()[(mine - begin) * at.parts + at.part] = sum;
    }
};

// The input of rows: u = LN(x), shifted by the shares of `mix` towards the last token's u. What does not depend on the
// previous kernel is read at once, and x once it is there.
struct ShiftedNorm {
    const Values weight, bias, last, mix;
    __device__ __forceinline__ ShiftedNorm(const Place<FP16>& in, const float* weight, const float* bias, const float* last,
                                           const float* mix)
        : weight(in, weight), bias(in, bias), last(in, last), mix(in, mix) {}
    // u goes to `u_out` [K], if that is not null.
    __device__ __forceinline__ Values of(const Place<FP16>& in, int K, const float* x, float* u_out) const {
        Values v(in, x);
        v.normalise(in, K, weight, bias);
        if (u_out) v.write(in, u_out);
        v.shift(last, mix);
        return v;
    }
};
