// Everything that needs PTX, and nothing else.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

// Two float16 in a word, the first in the lower half, as floats.
__device__ __forceinline__ float2 halves(u32 v) {
    float2 f;
    asm("{.reg .f16 a, b; mov.b32 {a, b}, %2; cvt.f32.f16 %0, a; cvt.f32.f16 %1, b;}" : "=f"(f.x), "=f"(f.y) : "r"(v));
    return f;
}

// Two floats, rounded to float16, in a word.
__device__ __forceinline__ u32 to_halves(float first, float second) {
    u32 v;
    asm("{.reg .f16 a, b; cvt.rn.f16.f32 a, %1; cvt.rn.f16.f32 b, %2; mov.b32 %0, {a, b};}"
        : "=r"(v) : "f"(first), "f"(second));
    return v;
}

// Differences and products of two float16 each.
__device__ __forceinline__ u32 subtract_halves(u32 a, u32 b) {
    u32 v;
    asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(v) : "r"(a), "r"(b));
    return v;
}
__device__ __forceinline__ u32 multiply_halves(u32 a, u32 b) {
    u32 v;
    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(v) : "r"(a), "r"(b));
    return v;
}

// c + the dot product of four signed bytes and four signed bytes.
__device__ __forceinline__ int dot4(u32 a, u32 b, int c) {
    int d;
    asm("dp4a.s32.s32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}

// c + the dot product of four unsigned bytes and four signed bytes.
__device__ __forceinline__ int dot4_unsigned(u32 a, u32 b, int c) {
    int d;
    asm("dp4a.u32.s32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}

// c [16, 8] += a [16, 16] b [16, 8], by a warp, in float16 with float32 sums. With g = lane / 4 and q = lane % 4, a lane has
//
//     a0, a2    row g, columns 2q and 2q + 1, and those 8 further; a1, a3 the same of row g + 8
//     b0, b1    column g, rows 2q and 2q + 1, and those 8 further
//     c.x, c.y  row g, columns 2q and 2q + 1; c.z, c.w the same of row g + 8
__device__ __forceinline__ void multiply_add(float4& c, u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
#if __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c.x), "+f"(c.y), "+f"(c.z), "+f"(c.w) : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
#else
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
        : "+f"(c.x), "+f"(c.y), "+f"(c.z), "+f"(c.w) : "r"(a0), "r"(a1), "r"(b0));
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
        : "+f"(c.x), "+f"(c.y), "+f"(c.z), "+f"(c.w) : "r"(a2), "r"(a3), "r"(b1));
#endif
}

// 16 or 8 bytes that are read once per token, and so not kept in the first-level cache. Undefined if they are not `wanted`,
// which takes no branch.
template <typename Words> __device__ __forceinline__ Words read_once(const void* p, bool wanted);
template <> __device__ __forceinline__ uint4 read_once<uint4>(const void* p, bool wanted) {
    uint4 v;
    asm volatile("{.reg .pred q; setp.ne.u32 q, %5, 0; @q ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];}"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p), "r"((u32)wanted));
    return v;
}
template <> __device__ __forceinline__ uint2 read_once<uint2>(const void* p, bool wanted) {
    uint2 v;
    asm volatile("{.reg .pred q; setp.ne.u32 q, %3, 0; @q ld.global.nc.L1::no_allocate.v2.u32 {%0,%1}, [%2];}"
                 : "=r"(v.x), "=r"(v.y) : "l"(p), "r"((u32)wanted));
    return v;
}

// Programmatic dependent launch: a kernel may begin before the previous one has ended. Until `wait_for_previous` it may
// read weights, and what was written at least two kernels earlier; nothing else, and it may write nothing.
__device__ __forceinline__ void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Lets the next kernel begin, up to its own `wait_for_previous`. To be called after this kernel's own.
__device__ __forceinline__ void let_next_begin() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Starts an asynchronous copy of 16 bytes from global to shared memory.
__device__ __forceinline__ void copy_in_background(void* to, const void* from) {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"((u32)__cvta_generic_to_shared(to)), "l"(from)
                 : "memory");
#else
    *(uint4*)to = *(const uint4*)from;
#endif
}

// The same of 4 or 8 bytes.
template <int bytes> __device__ __forceinline__ void copy_little_in_background(void* to, const void* from) {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"((u32)__cvta_generic_to_shared(to)), "l"(from), "n"(bytes)
                 : "memory");
#else
#pragma unroll
    for (int i = 0; i < bytes / 4; i++) ((u32*)to)[i] = ((const u32*)from)[i];
#endif
}

// Makes the copies that this thread has started since the last `end_of_copies` one group.
__device__ __forceinline__ void end_of_copies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Blocks until all copies of this thread are done, except for those of the last `n` groups.
template <int n> __device__ __forceinline__ void wait_for_copies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(n) : "memory");
#endif
}
