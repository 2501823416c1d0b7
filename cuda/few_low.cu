// One token each of 2 to 16 sequences: the second halves of the low-rank maps. A warp has 8 rows of one map. See few.cuh.
#include "few.cuh"

#define LOW_THREADS 128
#define COLUMNS Chunk<FP16>::COLUMNS
#define LOW_AHEAD 12  // chunks that are requested together: all of most maps

enum { W2, A2, V2, G2, MAPS };

extern "C" __global__ void __launch_bounds__(LOW_THREADS)
few_low(const u16* hidden,  // [T, the sum of ranks] float16
        const u16* w2, const u16* a2, const u16* v2, const u16* g2,  // [C, rank] float16
        float* second,      // [MAPS, T, C]
        int T, int C, int rank_w, int rank_a, int rank_v, int rank_g) {
    const int tiles = C / TILE, task = (blockIdx.x * blockDim.x + threadIdx.x) / LANES, lane = threadIdx.x % LANES;
    const int map = MAPS - 1 - task / tiles, row = task % tiles * TILE;  // the largest map first
    const u16* maps[MAPS] = {w2, a2, v2, g2};
    const int ranks[MAPS] = {rank_w, rank_a, rank_v, rank_g};
    const u16* weights = w2;
    int first = 0, rank = rank_w;
#pragma unroll
    for (int i = 1; i < MAPS; i++)
        if (map >= i) {
            first += rank;
            weights = maps[i];
            rank = ranks[i];
        }
    weights += (size_t)(row + lane / 4) * rank + lane % 4 * 8;
    const bool active = map >= 0;
    // A rank is a multiple of 16, so the last chunk may have columns beyond it: zeros.
    auto part = [&](int column) { return active && column + lane % 4 * 8 < rank; };
    auto read = [&](int column) {
        const uint4 w = read_once<uint4>(weights + column, part(column));
        return part(column) ? w : make_uint4(0, 0, 0, 0);
    };
    uint4 w[LOW_AHEAD];
#pragma unroll
    for (int i = 0; i < LOW_AHEAD; i++) w[i] = read(i * COLUMNS);
    wait_for_previous();
    let_next_begin();
    if (!active) return;
    const int stride = rank_w + rank_a + rank_v + rank_g;
    float4 sum = zeros4();
    for (int begin = 0; begin < rank; begin += LOW_AHEAD * COLUMNS) {
#pragma unroll
        for (int i = 0; i < LOW_AHEAD; i++) {
            const int column = begin + i * COLUMNS;
            if (column >= rank) continue;
            // Columns beyond the rank are read from what follows in `hidden`, and their weights are zeros.
            const int at = part(column) ? column : 0;
            Inputs(hidden, stride, T, first + at + lane % 4 * 8).multiply(sum, w[i].x, w[i].y, w[i].z, w[i].w);
        }
#pragma unroll
        for (int i = 0; i < LOW_AHEAD; i++)
            if (begin + (LOW_AHEAD + i) * COLUMNS < rank) w[i] = read(begin + (LOW_AHEAD + i) * COLUMNS);
    }
    each_sum(sum, T, [&](int token, int r, float v) { second[((size_t)map * T + token) * C + row + r] = v; });
}
