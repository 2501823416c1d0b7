// r, k, v and the first halves of the low-rank maps: which block has rows of which matrix.
#pragma once
#include "vectors.cuh"

enum { RECEPTANCE, KEY, VALUE, W1, A1, V1, G1, MATRICES };

// A block has rows of one matrix; the host gives each matrix blocks in proportion to the time that its rows take.
struct Projected {
    int matrix, begin, end;  // rows, counted from the first of r for r, k and v, from the first of w1 for the others
    __device__ __forceinline__ Projected(int C, const int* ends, int rank_w, int rank_a, int rank_v, int rank_g) {
        const int rows[MATRICES] = {C, C, C, rank_w, rank_a, rank_v, rank_g};
        int first_block = 0, first_row = 0, n = C, last_block = ends[0];
        matrix = RECEPTANCE;
#pragma unroll
        for (int i = 1; i < MATRICES; i++)
            if ((int)blockIdx.x >= ends[i - 1]) {
                first_row = i == W1 ? 0 : first_row + n;  // the low-rank maps are a matrix of their own
                matrix = i;
                first_block = ends[i - 1];
                last_block = ends[i];
                n = rows[i];
            }
        const int block = blockIdx.x - first_block, blocks = last_block - first_block;
        begin = first_row + share(n, block, blocks);
        end = first_row + share(n, block + 1, blocks);
    }
};
