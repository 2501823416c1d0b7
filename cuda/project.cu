// Decoding, first of five operations of a layer: r, k, v and the first halves of the low-rank maps, of one token.
//
//     u = LN(x; ln1);  each matrix times u + (shift_att - u) * its own mix
#include "rows.cuh"
#include "projected.cuh"

template <int kind>
__device__ __forceinline__ void project_rows(const Matrix<kind>& m, int begin, int end, const float* x, const float* shift,
                                             const float* vectors, const float* mix, float* u, int matrix, float* out) {
    const int C = m.K;
    Rows<kind> rows(m, begin, end);
    const ShiftedNorm norm(rows.in, vectors + LN1_WEIGHT * C, vectors + LN1_BIAS * C, shift, mix);
    wait_for_previous();
    let_next_begin();
    rows.multiply(norm.of(rows.in, C, x, u));
    for (int r = begin + threadIdx.x; r < end; r += blockDim.x) {
        const float total = rows.sum(r);
        out[r] = matrix == W1 ? tanhf(total) : matrix == G1 ? sigmoid(total) : total;
    }
}

extern "C" __global__ void __launch_bounds__(ROW_THREADS)
project(const float* x,         // [C] the residual stream
        const float* shift,     // [C] shift_att of this layer's state
        const float* vectors,   // [.., C] of the layer
        const u8* main,         // [3 C, C] receptance, key, value
        const u16* scales,      // [3 C, C / 64]
        const u8* low,          // [the sum of ranks, C] w1, a1, v1, g1
        const u16* low_scales,  // [the sum of ranks, C / 64]
        float* u,               // [C] the state's next token shift
        float* rkv,             // [3, C]
        float* hidden,          // [the sum of ranks] the inputs of the second halves
        int C,
        int end_r, int end_k, int end_v, int end_w1, int end_a1, int end_v1,  // blocks; g1 has the last ones
        int rank_w, int rank_a, int rank_v, int rank_g) {
    const int ends[MATRICES] = {end_r, end_k, end_v, end_w1, end_a1, end_v1, (int)gridDim.x};
    const int mixes[MATRICES] = {ATT_X_R, ATT_X_K, ATT_X_V, ATT_X_W, ATT_X_A, ATT_X_V, ATT_X_G};
    const Projected mine(C, ends, rank_w, rank_a, rank_v, rank_g);
    int mix = ATT_X_R;
#pragma unroll
    for (int i = 1; i < MATRICES; i++) mix = mine.matrix == i ? mixes[i] : mix;
    const float* my_mix = vectors + mix * C;
    const int matrix = mine.matrix, begin = mine.begin, end = mine.end;
    if (matrix < W1)
        project_rows<KIND>({main, scales, C}, begin, end, x, shift, vectors, my_mix, blockIdx.x == 0 ? u : 0, matrix, rkv);
    else
        project_rows<LOW>({low, low_scales, C}, begin, end, x, shift, vectors, my_mix, 0, matrix, hidden);
}
