"""Tables of records for Numba: an address and a NumPy type of records, indexed like an array."""

import operator

from llvmlite import ir
from numba import from_dtype, types
from numba.extending import models, overload, register_model

from cpu_kernels.simd import intrinsic_of, pointer

_BYTE, _ADDRESS = ir.IntType(8), ir.IntType(64)


class _Table(types.Type):
    """The address of an array of records, as a Numba type."""

    def __init__(self, record):
        super().__init__(name=f"Table({record})")


@register_model(_Table)
class _TableModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, _ADDRESS)


def table(dtype):
    """A function that makes a table of records of an address: `table(dtype)(address)[i]` is record i, by reference."""
    record = from_dtype(dtype)
    kind = _Table(record)

    @intrinsic_of(kind, types.int64)
    def table_at(_builder, address):
        return address

    @intrinsic_of(record, kind, types.int64)
    def record_of(builder, address, i):
        offset = builder.mul(i, _ADDRESS(dtype.itemsize))
        return pointer(builder, builder.add(address, offset), ir.ArrayType(_BYTE, dtype.itemsize))

    @overload(operator.getitem)
    def typed(table, i):
        return (lambda table, i: record_of(table, i)) if table is kind else None

    return table_at
