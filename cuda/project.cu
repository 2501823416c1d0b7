// Decoding, first of five operations of a layer: r, k, v and the first halves of the low-rank maps, of one token.
//
//     u = LN(x; ln1);  each matrix times u + (shift_att - u) * its own mix
//
// The first `main_blocks` blocks compute the rows of receptance, key and value, the others those of w1, a1, v1 and g1,
// which are float16 in every file: the host shares the blocks out by the bytes they read.
#include "rows.cuh"

#define MIX_V 2
#define MIX_W 3
#define MIX_A 4
#define MIX_G 5

// Which rows are of which low-rank map, and what it takes and does.
struct LowRank {
    int end_w, end_a, end_v, end_g;  // w1 has the rows up to end_w, a1 those up to end_a, ..
    __device__ __forceinline__ int end(int row) const {
        return row < end_w ? end_w : row < end_a ? end_a : row < end_v ? end_v : end_g;
    }
    __device__ __forceinline__ int mix(int row) const {
        return row < end_w ? MIX_W : row < end_a ? MIX_A : row < end_v ? MIX_V : MIX_G;
    }
    __device__ __forceinline__ float activated(int row, float v) const {
        return row < end_w ? tanhf(v) : row < end_v ? v : sigmoid(v);
    }
};

template <int kind, bool low>
__device__ __forceinline__ void project_rows(const Matrix<kind>& m, int begin, int end, const LowRank& ranks,
                                             const float* x, const float* shift, const float* weight, const float* bias,
                                             const float* mixes, float* u_out, float* out) {
    __shared__ float sums[2 * LANES];
    const int C = m.K;
    Place<kind> at(C);
    Place<FP16> in(C);
    Batch<kind> batch;
    int stop = min(end, low ? ranks.end(begin) : begin / C * C + C);
    batch.read(m, at, begin + at.group, stop);
    prefetch_all(m.weights + begin * m.row_bytes(), (end - begin) * m.row_bytes());
    prefetch_all(shift, C * 4), prefetch_all(weight, C * 4), prefetch_all(bias, C * 4);
    prefetch_all(mixes + (low ? ranks.mix(begin) : begin / C) * C, C * 4);
    wait_for_previous();
    let_next_begin();
    Values u;
    u.read(in, x);
    u.normalise(in, C, weight, bias, sums);
    if (u_out) u.write(in, u_out);
    for (int row = begin; row < end; row = stop) {
        stop = min(end, low ? ranks.end(row) : row / C * C + C);
        Values mixed = u;
        mixed.shift(in, shift, mixes + (low ? ranks.mix(row) : row / C) * C);
        if (row != begin) batch.read(m, at, row + at.group, stop);
        multiply(m, at, Input<kind>(mixed, in, at, C, memory), batch, row, stop, row_sums(C));
        __syncthreads();
        for (int r = row + threadIdx.x; r < stop; r += blockDim.x) {
            float v = row_sum(row_sums(C), at, r - row);
            out[r] = low ? ranks.activated(r, v) : v;
        }
        __syncthreads();
    }
}

extern "C" __global__ void __launch_bounds__(MOST_THREADS)
project(const float* x,         // [C] the residual stream
                                   const float* shift,     // [C] shift_att of this layer's state
                                   const float* weight,    // [C] of ln1
                                   const float* bias,      // [C]
                                   const float* mixes,     // [6, C] x_r, x_k, x_v, x_w, x_a, x_g
                                   const u8* main,         // [3 C, C] receptance, key, value
                                   const u16* main_scales, // [3 C, C / 64]
                                   const u8* low,          // [end_g, C] float16: w1, a1, v1, g1
                                   int end_w, int end_a, int end_v, int end_g,
                                   float* u,               // [C] the state's next token shift
                                   float* rkv,             // [3, C]
                                   float* hidden,          // [end_g] what the second halves take
                                   int C, int main_blocks) {
    LowRank ranks = {end_w, end_a, end_v, end_g};
    int block = blockIdx.x, blocks = gridDim.x - main_blocks;
    if (block < main_blocks)
        project_rows<KIND, false>({main, main_scales, C}, share(3 * C, block, main_blocks),
                                  share(3 * C, block + 1, main_blocks), ranks, x, shift, weight, bias, mixes,
                                  block == 0 ? u : 0, rkv);
    else
        project_rows<FP16, true>({low, 0, C}, share(end_g, block - main_blocks, blocks),
                                 share(end_g, block - main_blocks + 1, blocks), ranks, x, shift, weight, bias, mixes, 0,
                                 hidden);
}
