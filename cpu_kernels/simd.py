"""Vectors for Numba: sixteen lanes of 32 bits, or sixty-four of 8, as values that kernels compute with.

Numba has no vector type, and its loop vectoriser does not find a CPU's dot-product instructions. These types map to
LLVM's own vectors: LLVM splits them into whatever registers the CPU has, so one kernel text serves AVX-512 (one
register a vector), AVX2 (two) and NEON (four).

    F32   <16 x float>     I32   <16 x i32>     I8   <64 x i8>

An address is an int64; offsets are in bytes. All loads and stores are unaligned. Arithmetic on F32 is written with
the usual operators; every function here is inlined into a few instructions.
"""

import operator

from llvmlite import ir
from numba import types
from numba.extending import intrinsic, models, overload, register_model

from cpu_kernels.abi import CACHE_LINE, LANES
from cpu_kernels.runtime import host
from cpu_kernels.runtime.instructions import call

HAS_HALF_FLOATS = host.cpu().has("f16c") or host.cpu().has("neon")
"""Whether the CPU converts half floats; otherwise LLVM would call a runtime function that is not linked here."""

HAS_FMA = host.cpu().has("fma") or host.cpu().has("neon")
"""Whether the CPU multiplies and adds with one rounding; otherwise LLVM would call C's function sixteen times."""

_i8, _i16, _i32, _i64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_float = ir.FloatType()


class Vector(types.Type):
    """A vector of LLVM's, as a Numba type."""

    def __init__(self, name, llvm_type):
        self.llvm = llvm_type
        super().__init__(name=name)


F32 = Vector("F32", ir.VectorType(_float, LANES))
I32 = Vector("I32", ir.VectorType(_i32, LANES))
I8 = Vector("I8", ir.VectorType(_i8, 4 * LANES))


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, fe_type.llvm)


def intrinsic_of(result, *arguments):
    """A decorator that turns `emit(builder, *values) -> value`, which emits LLVM IR, into a Numba intrinsic.

    `result` and `arguments` are the Numba types of its signature: one to five arguments.
    """

    def decorate(emit):
        def codegen(context, builder, signature, values):
            value = emit(builder, *values)
            return context.get_dummy_value() if value is None else value

        def typed(*_):
            return result(*arguments), codegen

        # Numba counts the arguments in the signature of the function that it is given.
        by_count = (
            None,
            lambda typingctx, a: typed(),
            lambda typingctx, a, b: typed(),
            lambda typingctx, a, b, c: typed(),
            lambda typingctx, a, b, c, d: typed(),
            lambda typingctx, a, b, c, d, e: typed(),
        )
        typer = by_count[len(arguments)]
        typer.__name__, typer.__doc__, typer.__module__ = emit.__name__, emit.__doc__, emit.__module__
        return intrinsic(typer)

    return decorate


def pointer(builder, address, llvm):
    """The address as a pointer to values of the LLVM type `llvm`."""
    return builder.inttoptr(address, llvm.as_pointer())


def stack_memory(n_bytes):
    """A function that takes any integer and gives the address of `n_bytes` on the stack, on a whole cache line.

    They are uninitialised, and belong to the function that calls it until that returns.
    """

    @intrinsic_of(types.int64, types.int64)
    def memory(builder, _unused):
        with builder.goto_entry_block():
            place = builder.alloca(ir.ArrayType(_i8, n_bytes))
            place.align = CACHE_LINE
        return builder.ptrtoint(place, _i64)

    return memory


def splat_of(builder, scalar, lanes=LANES):
    """A vector with `scalar` in every lane."""
    vector = ir.VectorType(scalar.type, lanes)
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, _i32(0))
    return builder.shuffle_vector(first, first, ir.Constant(ir.VectorType(_i32, lanes), [0] * lanes))


def _constant(vector, value):
    """A vector constant with `value` in every lane."""
    return ir.Constant(vector.llvm, [value] * vector.llvm.count)


# --- one float or integer in memory ---------------------------------------------------------------------------------


@intrinsic_of(types.float32, types.int64)
def get_f32(builder, address):
    """The float at an address."""
    return builder.load(pointer(builder, address, _float), align=4)


@intrinsic_of(types.void, types.int64, types.float32)
def put_f32(builder, address, value):
    """Store a float at an address."""
    builder.store(value, pointer(builder, address, _float), align=4)


@intrinsic_of(types.int32, types.int64)
def get_i32(builder, address):
    """The 32-bit integer at an address."""
    return builder.load(pointer(builder, address, _i32), align=4)


@intrinsic_of(types.void, types.int64, types.int32)
def put_i32(builder, address, value):
    """Store a 32-bit integer at an address."""
    builder.store(value, pointer(builder, address, _i32), align=4)


@intrinsic_of(types.float32, types.int64)
def get_bf16(builder, address):
    """The bfloat16 at an address, the upper half of a float, as a float."""
    half = builder.load(pointer(builder, address, _i16), align=2)
    return builder.bitcast(builder.shl(builder.zext(half, _i32), _i32(16)), _float)


@intrinsic_of(types.int64, types.int64)
def get_i64(builder, address):
    """The 64-bit integer at an address."""
    return builder.load(pointer(builder, address, _i64), align=8)


@intrinsic_of(types.float64, types.int64)
def get_f64(builder, address):
    """The 64-bit float at an address."""
    return builder.load(pointer(builder, address, ir.DoubleType()), align=8)


@intrinsic_of(types.int64, types.int64)
def get_u8(builder, address):
    """The byte at an address."""
    return builder.zext(builder.load(pointer(builder, address, _i8), align=1), _i64)


@intrinsic_of(types.int64, types.int64)
def get_i8(builder, address):
    """The signed byte at an address."""
    return builder.sext(builder.load(pointer(builder, address, _i8), align=1), _i64)


@intrinsic_of(types.void, types.int64, types.int64)
def put_u8(builder, address, value):
    """Store the low byte of an integer."""
    builder.store(builder.trunc(value, _i8), pointer(builder, address, _i8), align=1)


@intrinsic_of(types.void, types.int64)
def prefetch(builder, address):
    """Prefetch the cache line at an address into the L2 cache: L1 can have only few requests outstanding."""
    how = (_i32(0), _i32(2), _i32(1))  # to read; second level; data
    call(builder, "llvm.prefetch.p0", ir.VoidType(), pointer(builder, address, _i8), *how)


# --- sixteen floats -------------------------------------------------------------------------------------------------


@intrinsic_of(F32, types.int64)
def load(builder, address):
    """Sixteen floats."""
    return builder.load(pointer(builder, address, F32.llvm), align=4)


@intrinsic_of(types.void, types.int64, F32)
def store(builder, address, vector):
    """Store sixteen floats."""
    builder.store(vector, pointer(builder, address, F32.llvm), align=4)


@intrinsic_of(F32, types.int64)
def load_bf16(builder, address):
    """Sixteen bfloat16, the upper halves of floats, as floats."""
    halves = builder.load(pointer(builder, address, ir.VectorType(_i16, LANES)), align=2)
    return builder.bitcast(builder.shl(builder.zext(halves, I32.llvm), _constant(I32, 16)), F32.llvm)


@intrinsic_of(F32, F32)
def round_to_bf16(builder, a):
    """The nearest bfloat16 of each lane, ties to even, as a float; the lanes must be finite."""
    bits = builder.bitcast(a, I32.llvm)
    odd = builder.and_(builder.lshr(bits, _constant(I32, 16)), _constant(I32, 1))
    bits = builder.add(bits, builder.add(odd, _constant(I32, 0x7FFF)))
    return builder.bitcast(builder.and_(bits, _constant(I32, -0x10000)), F32.llvm)


@intrinsic_of(types.void, types.int64, F32)
def store_bf16(builder, address, vector):
    """Store sixteen floats that are bfloat16, as such."""
    halves = builder.lshr(builder.bitcast(vector, I32.llvm), _constant(I32, 16))
    narrow = ir.VectorType(_i16, LANES)
    builder.store(builder.trunc(halves, narrow), pointer(builder, address, narrow), align=2)


@intrinsic_of(F32, types.int64)
def load_f16(builder, address):
    """Sixteen IEEE half floats (finite) as floats, exactly.

    Where the CPU has no instruction for it, by shifting the bits into a float's place and correcting the exponent with
    a multiplication by 2**112.
    """
    if HAS_HALF_FLOATS:
        halves = builder.load(pointer(builder, address, ir.VectorType(ir.HalfType(), LANES)), align=2)
        return builder.fpext(halves, F32.llvm)
    halves = builder.load(pointer(builder, address, ir.VectorType(_i16, LANES)), align=2)
    bits = builder.zext(halves, I32.llvm)
    magnitude = builder.shl(builder.and_(bits, _constant(I32, 0x7FFF)), _constant(I32, 13))
    scaled = builder.fmul(builder.bitcast(magnitude, F32.llvm), _constant(F32, 2.0**112))
    sign = builder.shl(builder.and_(bits, _constant(I32, 0x8000)), _constant(I32, 16))
    return builder.bitcast(builder.or_(builder.bitcast(scaled, I32.llvm), sign), F32.llvm)


@intrinsic_of(F32, types.int64)
def load_i8_as_f32(builder, address):
    """Sixteen signed bytes as floats."""
    narrow = builder.load(pointer(builder, address, ir.VectorType(_i8, LANES)), align=1)
    return builder.sitofp(builder.sext(narrow, I32.llvm), F32.llvm)


@intrinsic_of(F32, types.int64)
def load_low_halves_as_f32(builder, address):
    """The low four bits of each of sixteen bytes, as floats."""
    bytes_ = builder.load(pointer(builder, address, ir.VectorType(_i8, LANES)), align=1)
    return builder.sitofp(builder.and_(builder.zext(bytes_, I32.llvm), _constant(I32, 0x0F)), F32.llvm)


@intrinsic_of(F32, types.int64)
def load_high_halves_as_f32(builder, address):
    """The high four bits of each of sixteen bytes, as floats."""
    bytes_ = builder.load(pointer(builder, address, ir.VectorType(_i8, LANES)), align=1)
    return builder.sitofp(builder.lshr(builder.zext(bytes_, I32.llvm), _constant(I32, 4)), F32.llvm)


@intrinsic_of(types.void, types.int64, F32)
def store_f32_as_i8(builder, address, vector):
    """Store sixteen floats, rounded to the nearest integer (ties to even), as signed bytes; they must be in range."""
    whole = builder.fptosi(call(builder, "llvm.rint.v16f32", F32.llvm, vector), I32.llvm)
    narrow = ir.VectorType(_i8, LANES)
    builder.store(builder.trunc(whole, narrow), pointer(builder, address, narrow), align=1)


@intrinsic_of(F32, types.float32)
def splat(builder, scalar):
    """A float in every lane."""
    return splat_of(builder, scalar)


@intrinsic_of(F32, F32, F32, F32)
def fma(builder, a, b, c):
    """a * b + c, rounded once."""
    return (_fused if HAS_FMA else _emulated_fma)(builder, a, b, c)


def _fused(builder, a, b, c):
    return call(builder, "llvm.fma.v16f32", F32.llvm, a, b, c)


def _emulated_fma(builder, a, b, c):
    """The same in double precision, which has the product exactly, and the sum rounded to odd (Boldo and Melquiond).

    A sum that is not exact has an odd last bit then, so that rounding it once more decides no tie.
    """
    wide, bits = ir.VectorType(ir.DoubleType(), LANES), ir.VectorType(_i64, LANES)
    a, b, c = (builder.fpext(value, wide) for value in (a, b, c))
    product = builder.fmul(a, b)
    total = builder.fadd(product, c)
    added = builder.fsub(total, product)
    error = builder.fadd(
        builder.fsub(product, builder.fsub(total, added)), builder.fsub(c, added)
    )  # exactly (Knuth)
    zero = ir.Constant(wide, [0.0] * LANES)
    one, minus_one = (ir.Constant(bits, [value] * LANES) for value in (1, -1))
    pattern = builder.bitcast(total, bits)
    is_even = builder.icmp_unsigned("==", builder.and_(pattern, one), ir.Constant(bits, [0] * LANES))
    is_inexact = builder.fcmp_ordered("!=", error, zero)  # false for NaN, after infinity
    is_larger = builder.icmp_unsigned(
        "==", builder.fcmp_ordered(">", error, zero), builder.fcmp_ordered(">", total, zero)
    )
    odd = builder.add(pattern, builder.select(is_larger, one, minus_one))
    chosen = builder.select(builder.and_(is_even, is_inexact), odd, pattern)
    return builder.fptrunc(builder.bitcast(chosen, wide), F32.llvm)


@intrinsic_of(F32, F32)
def absolute(builder, a):
    """|a| in each lane."""
    return call(builder, "llvm.fabs.v16f32", F32.llvm, a)


@intrinsic_of(F32, F32, F32)
def maximum(builder, a, b):
    """The larger of each pair of lanes."""
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


@intrinsic_of(F32, F32, F32)
def minimum(builder, a, b):
    """The smaller of each pair of lanes."""
    return builder.select(builder.fcmp_ordered("<", a, b), a, b)


@intrinsic_of(F32, F32, F32, F32)
def where_at_least(builder, a, bound, b):
    """b in the lanes where a is not below the bound, and 0 in the others."""
    return builder.select(builder.fcmp_ordered(">=", a, bound), b, _constant(F32, 0.0))


@intrinsic_of(F32, F32, F32, F32, F32)
def where_less(builder, a, b, then, otherwise):
    """`then` in the lanes where a < b, and `otherwise` in the others."""
    return builder.select(builder.fcmp_ordered("<", a, b), then, otherwise)


@intrinsic_of(types.float32, F32)
def sum_lanes(builder, a):
    """The sum of the lanes, added as a tree."""
    return _tree(builder, a, builder.fadd)


@intrinsic_of(types.float32, F32)
def max_lanes(builder, a):
    """The largest lane."""
    return _tree(builder, a, lambda x, y: builder.select(builder.fcmp_ordered(">", x, y), x, y))


def _tree(builder, vector, combine):
    """Fold a vector's upper half into its lower half until one lane is left."""
    lanes = LANES
    while lanes > 1:
        lanes //= 2
        low, high = (
            ir.Constant(ir.VectorType(_i32, lanes), list(range(start, start + lanes))) for start in (0, lanes)
        )
        vector = combine(
            builder.shuffle_vector(vector, vector, low), builder.shuffle_vector(vector, vector, high)
        )
    return builder.extract_element(vector, _i32(0))


@intrinsic_of(F32, F32)
def round_f32(builder, a):
    """Each lane rounded to the nearest integer, ties to even."""
    return call(builder, "llvm.rint.v16f32", F32.llvm, a)


@intrinsic_of(F32, F32, F32)
def scale_by_power(builder, a, n):
    """a * 2**n for whole n from -126 to 127: n goes straight into the exponent's bits."""
    exponent = builder.add(builder.fptosi(n, I32.llvm), _constant(I32, 127))
    return builder.fmul(a, builder.bitcast(builder.shl(exponent, _constant(I32, 23)), F32.llvm))


def _operator(python_operator, method):
    """Let the operator work on two F32."""

    @intrinsic_of(F32, F32, F32)
    def lanewise(builder, a, b):
        return getattr(builder, method)(a, b)

    @overload(python_operator)
    def typed(a, b):
        if a is F32 and b is F32:
            return lambda a, b: lanewise(a, b)
        return None


for _python_operator, _method in (
    (operator.add, "fadd"),
    (operator.sub, "fsub"),
    (operator.mul, "fmul"),
    (operator.truediv, "fdiv"),
):
    _operator(_python_operator, _method)


# --- integers -------------------------------------------------------------------------------------------------------


@intrinsic_of(I32, types.int32)
def splat_i32(builder, scalar):
    """An integer in every lane."""
    return splat_of(builder, scalar)


@intrinsic_of(F32, I32)
def to_f32(builder, a):
    """Each integer as a float."""
    return builder.sitofp(a, F32.llvm)


@intrinsic_of(I32, types.int64)
def load_i32(builder, address):
    """Sixteen integers."""
    return builder.load(pointer(builder, address, I32.llvm), align=4)


@intrinsic_of(I8, types.int64)
def load_i8(builder, address):
    """Sixty-four signed bytes."""
    return builder.load(pointer(builder, address, I8.llvm), align=1)


@intrinsic_of(I8, types.int64)
def splat_4i8(builder, address):
    """The four bytes at an address, sixteen times."""
    four = builder.load(pointer(builder, address, _i32), align=1)
    return builder.bitcast(splat_of(builder, four), I8.llvm)


@intrinsic_of(I8, I8)
def low_halves(builder, bytes_):
    """The low four bits of each byte."""
    return builder.and_(bytes_, _constant(I8, 0x0F))


@intrinsic_of(I8, I8)
def high_halves(builder, bytes_):
    """The high four bits of each byte."""
    # By 16 bits, since no CPU shifts bytes.
    wide = ir.VectorType(_i16, 2 * LANES)
    shifted = builder.lshr(builder.bitcast(bytes_, wide), ir.Constant(wide, [4] * 2 * LANES))
    return builder.and_(builder.bitcast(shifted, I8.llvm), _constant(I8, 0x0F))


@intrinsic_of(types.void, types.int64, I8)
def store_i8(builder, address, vector):
    """Store sixty-four bytes."""
    builder.store(vector, pointer(builder, address, I8.llvm), align=1)


@intrinsic_of(I8, types.int64, types.int64)
def interleave(builder, address, stride):
    """Sixteen bytes of each of four rows, `stride` bytes apart, as [16, 4]: the operand of dot4 for four rows."""
    narrow, wide = ir.VectorType(_i8, LANES), ir.VectorType(_i16, LANES)
    rows = []
    for _ in range(4):
        rows.append(builder.load(pointer(builder, address, narrow), align=1))
        address = builder.add(address, stride)

    def zip_lanes(a, b):
        order = [lane for pair in zip(range(LANES), range(LANES, 2 * LANES), strict=True) for lane in pair]
        return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(_i32, 2 * LANES), order))

    low, high = (builder.bitcast(zip_lanes(rows[i], rows[i + 1]), wide) for i in (0, 2))
    return builder.bitcast(zip_lanes(low, high), I8.llvm)
