// Many tokens: the rows of sequences' last tokens, which are all that the head needs.
#include "common.cuh"

extern "C" __global__ void gather(const float* from,  // [T, C]
                                  const int* ends,    // [rows] behind each sequence's last token
                                  float* to,          // [rows, C]
                                  int C) {
    const float* row = from + (size_t)(ends[blockIdx.x] - 1) * C;
    for (int c = threadIdx.x; c < C; c += blockDim.x) to[(size_t)blockIdx.x * C + c] = row[c];
}
