// The logits of one token.
//
//     logits = head LN(x; ln_out)
#include "rows.cuh"

extern "C" __global__ void __launch_bounds__(ROW_THREADS)
head(const float* x,       // [C]
     const float* weight,  // [C] of ln_out
     const float* bias,    // [C]
     const u8* weights,    // [V, C]
     const u16* scales,    // [V, C / 64]
     float* logits,        // [V]
     int C, int V) {
    Rows<KIND> rows({weights, scales, C}, V);
    const Values w(rows.in, weight), b(rows.in, bias);
    wait_for_previous();
    let_next_begin();
    Values v(rows.in, x);
    v.normalise(rows.in, C, w, b);
    rows.multiply(v);
    for (int r = rows.begin + threadIdx.x; r < rows.end; r += blockDim.x) logits[r] = rows.sum(r);
}
