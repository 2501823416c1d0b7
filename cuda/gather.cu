// Many tokens: the rows of sequences' last tokens, which are all that the head needs.
#include "common.cuh"

extern "C" __global__ void gather(const float* __restrict__ from,  // [T, C]
                                  const int* __restrict__ ends,    // [rows] one after each sequence's last token
                                  float* __restrict__ to,          // [rows, C]
                                  int C) {
    const float* row = from + (size_t)(ends[blockIdx.x] - 1) * C;
    for (int c = threadIdx.x; c < C; c += blockDim.x) to[(size_t)blockIdx.x * C + c] = row[c];
}
