// Runs the kernels of cuda/ on a CPU, so that their arithmetic and their barriers are tested without a GPU.
//
// The threads of a block are fibers that take turns, in a different order every time: one runs until it waits for others.
// Blocks run one after another. Memory that a kernel must not read before it is written is filled with NaN.
#pragma once
#include <csetjmp>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <ucontext.h>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __shared__ static
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))

struct float2 { float x, y; };
struct __attribute__((aligned(8))) uint2 { unsigned x, y; };
struct __attribute__((aligned(16))) float4 { float x, y, z, w; };
struct __attribute__((aligned(16))) uint4 { unsigned x, y, z, w; };
struct Dim { unsigned x, y, z; };
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

static Dim threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {

const size_t STACK = 96 << 10, SHARED = 256 << 10;

// Runs one thread of a block after another, and so is made once.
struct Fiber {
    ucontext_t begin;
    jmp_buf place;
    char* stack = nullptr;
    bool begun = false, done;
};

// Releases its threads when all `members` are `here`.
struct Barrier {
    int members, here;
    unsigned generation;  // how many times it has released them
};

alignas(128) static char dynamic_memory[SHARED];
static std::vector<Fiber> fibers;
static std::vector<Barrier> warps;
static std::vector<uint64_t> lanes;  // [2, threads] what lanes exchange, in two generations
static Barrier block;
static jmp_buf scheduler;
static unsigned current;
static void (*entry)(void*);
static void* entry_argument;

inline void yield() {
    if (!_setjmp(fibers[current].place)) _longjmp(scheduler, 1);
}

inline void release(Barrier& barrier) {
    barrier.here = 0;
    barrier.generation++;
}

inline void leave(Barrier& barrier) {
    barrier.members--;
    if (barrier.here && barrier.here == barrier.members) release(barrier);
}

inline void wait(Barrier& barrier) {
    const unsigned generation = barrier.generation;
    barrier.here++;
    if (barrier.here == barrier.members) release(barrier);
    else while (barrier.generation == generation) yield();
}

inline void run_fiber() {
    for (;;) {
        entry(entry_argument);
        leave(block);
        leave(warps[current / 32]);
        fibers[current].done = true;
        yield();
    }
}

inline void make_fiber(Fiber& fiber) {
    fiber.stack = new char[STACK];
    getcontext(&fiber.begin);
    fiber.begin.uc_stack.ss_sp = fiber.stack;
    fiber.begin.uc_stack.ss_size = STACK;
    fiber.begin.uc_link = nullptr;
    makecontext(&fiber.begin, run_fiber, 0);
}

static volatile unsigned turn, left, begin_of_round, step_of_round;
static unsigned random_number = 1;

// Chooses a different order for every round, so that a missing barrier is noticed: from anywhere on, forward or backward,
// by ones or by sevens, which no number of threads here is a multiple of; and half of the warps rest.
inline void choose_order(unsigned threads) {
    random_number = random_number * 1664525 + 1013904223;
    begin_of_round = (random_number >> 8) % threads;
    const unsigned steps[4] = {1, 7, threads - 1, threads - 7};
    step_of_round = steps[random_number >> 30];
}

inline void run_block(unsigned threads) {
    block = {(int)threads, 0, 0};
    warps.assign((threads + 31) / 32, {32, 0, 0});
    memset(dynamic_memory, 0xff, SHARED);
    for (unsigned i = 0; i < threads; i++) fibers[i].done = false;
    for (left = threads; left;) {
        choose_order(threads);
        for (turn = 0; turn < threads; turn = turn + 1) {
            const unsigned next = (begin_of_round + turn * step_of_round) % threads;
            Fiber& fiber = fibers[next];
            if (fiber.done || random_number >> (10 + next / 32) % 32 & 1) continue;
            current = next;
            threadIdx = {current, 0, 0};
            if (!_setjmp(scheduler)) {
                if (fiber.begun) _longjmp(fiber.place, 1);
                make_fiber(fiber);
                fiber.begun = true;
                setcontext(&fiber.begin);
            }
            if (fibers[current].done) left = left - 1;
        }
    }
}

template <class... Types, size_t... i>
void call(void (*kernel)(Types...), const long long* arguments, std::index_sequence<i...>) {
    kernel((Types)arguments[i]...);
}

template <class... Types> void launch(void (*kernel)(Types...), const long long* arguments, const unsigned* grid, unsigned threads) {
    static void (*the_kernel)(Types...);
    the_kernel = kernel;
    entry_argument = (void*)arguments;
    entry = [](void* a) { call(the_kernel, (const long long*)a, std::index_sequence_for<Types...>()); };
    if (fibers.size() < threads) fibers.resize(threads);
    lanes.resize(2 * 2048);
    blockDim = {threads, 1, 1};
    gridDim = {grid[0], grid[1], grid[2]};
    for (unsigned z = 0; z < grid[2]; z++)
        for (unsigned y = 0; y < grid[1]; y++)
            for (unsigned x = 0; x < grid[0]; x++) {
                blockIdx = {x, y, z};
                run_block(threads);
            }
}

// The values of all lanes of the warp, each of which offers its own.
template <class T> void offer(T mine, T* theirs) {
    unsigned warp = current / 32;
    uint64_t* offered = lanes.data() + warps[warp].generation % 2 * 2048 + warp * 32;
    memcpy(offered + current % 32, &mine, sizeof(T));
    wait(warps[warp]);
    for (int i = 0; i < 32; i++) memcpy(theirs + i, offered + i, sizeof(T));
}

// The value of lane `from`.
template <class T> T exchange(T mine, unsigned from) {
    T theirs[32];
    offer(mine, theirs);
    return theirs[from];
}

}  // namespace emulator

inline void __syncthreads() { emulator::wait(emulator::block); }
inline void __syncwarp() { emulator::wait(emulator::warps[emulator::current / 32]); }
inline void __threadfence() {}
template <class T> T __shfl_xor_sync(unsigned, T v, int mask) {
    return emulator::exchange(v, (emulator::current % 32) ^ mask);
}
inline unsigned __ballot_sync(unsigned, bool v) {
    bool theirs[32];
    emulator::offer(v, theirs);
    unsigned bits = 0;
    for (int i = 0; i < 32; i++) bits |= (unsigned)theirs[i] << i;
    return bits;
}
inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
    uint64_t both = (uint64_t)b << 32 | a;
    unsigned v = 0;
    for (int i = 0; i < 4; i++) v |= (unsigned)(both >> (selector >> 4 * i & 7) * 8 & 255) << 8 * i;
    return v;
}
inline float __uint_as_float(unsigned v) {
    float f;
    memcpy(&f, &v, 4);
    return f;
}
inline unsigned __float_as_uint(float f) {
    unsigned v;
    memcpy(&v, &f, 4);
    return v;
}
template <class T> T __ldcg(const T* p) { return *p; }
template <class T> T atomicAdd(T* p, T v) { return (*p += v) - v; }
inline void atomicMin(unsigned* p, unsigned v) { *p = v < *p ? v : *p; }
inline void atomicMax(unsigned* p, unsigned v) { *p = v > *p ? v : *p; }
inline float rsqrtf(float v) { return 1.f / sqrtf(v); }
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
