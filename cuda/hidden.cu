// Decoding, fourth of five: the hidden units of the channel mix, of one token.
//
//     u = LN(x; ln2);  h = relu(key (u + (shift_ffn - u) * x_k))^2
#include "rows.cuh"
#include "vectors.cuh"

extern "C" __global__ void __launch_bounds__(ROW_THREADS)
hidden(const float* x,        // [C]
       const float* shift,    // [C] shift_ffn of this layer's state
       const float* vectors,  // [.., C] of the layer
       const u8* weights,     // [F, C]
       const u16* scales,     // [F, C / 64]
       float* u,              // [C] the state's next token shift
       float* h,              // [F]
       int C, int F) {
    Rows<KIND> rows({weights, scales, C}, F);
    const ShiftedNorm norm(rows.in, vectors + LN2_WEIGHT * C, vectors + LN2_BIAS * C, shift, vectors + FFN_X_K * C);
    wait_for_previous();
    let_next_begin();
    rows.multiply(norm.of(rows.in, C, x, blockIdx.x == 0 ? u : 0));
    for (int r = rows.begin + threadIdx.x; r < rows.end; r += blockDim.x) {
        const float up = fmaxf(rows.sum(r), 0.f);
        h[r] = up * up;
    }
}
