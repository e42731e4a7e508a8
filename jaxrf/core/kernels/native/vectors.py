"""Several numbers at once: rows of tables are read, mixed and written as vectors of 8 or 4."""

from typing import Any, no_type_check

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.datamodel import PrimitiveModel
from numba.extending import intrinsic, register_model

from jaxrf.core.kernels.native.frames import FLOATS

LANES, FEW_LANES = 8, 4


class Vector(types.Type):
    """Numba's type of so many numbers of single precision."""

    def __init__(self, lanes: int) -> None:
        super().__init__(name=f"float32x{lanes}")
        self.lanes = lanes
        self.in_llvm = ir.VectorType(ir.FloatType(), lanes)


VECTOR, SHORT_VECTOR = Vector(LANES), Vector(FEW_LANES)


@register_model(Vector)
class VectorModel(PrimitiveModel):
    """A vector is one value of LLVM."""

    def __init__(self, manager: Any, numba_type: Any) -> None:
        super().__init__(manager, numba_type, numba_type.in_llvm)


def _vector_at(builder: Any, vector: Vector, floats: Any, index: Any) -> Any:
    return builder.bitcast(builder.gep(floats, [index]), vector.in_llvm.as_pointer())


def _zeros(vector: Vector) -> Any:
    return ir.Constant(vector.in_llvm, [0.0] * vector.lanes)


def _repeat(builder: Any, vector: Vector, number: Any) -> Any:
    undefined = ir.Constant(vector.in_llvm, ir.Undefined)
    first = builder.insert_element(undefined, number, ir.Constant(ir.IntType(32), 0))
    order = ir.Constant(ir.VectorType(ir.IntType(32), vector.lanes), [0] * vector.lanes)
    return builder.shuffle_vector(first, undefined, order)


def _call_llvm(builder: Any, name: str, vector: Vector, arguments: list[Any]) -> Any:
    """Calls a function of LLVM that takes and returns vectors."""
    function = cgutils.get_or_insert_function(
        builder.module,
        ir.FunctionType(vector.in_llvm, [vector.in_llvm] * len(arguments)),
        f"llvm.{name}.v{vector.lanes}f32",
    )
    return builder.call(function, arguments)


def _loader(vector: Vector) -> Any:
    """An intrinsic that reads a vector from an index on."""

    @intrinsic
    @no_type_check
    def read(typing_context, floats, index):
        def generate(context, builder, signature, arguments):
            value = builder.load(_vector_at(builder, vector, *arguments))
            value.align = 4
            return value

        return vector(FLOATS, types.intp), generate

    return read


def _zero_maker(vector: Vector) -> Any:
    """An intrinsic that makes a vector of zeros."""

    @intrinsic
    @no_type_check
    def make(typing_context):
        return vector(), lambda context, builder, signature, arguments: _zeros(vector)

    return make


load, load_few = _loader(VECTOR), _loader(SHORT_VECTOR)
zeros, few_zeros = _zero_maker(VECTOR), _zero_maker(SHORT_VECTOR)


@intrinsic
@no_type_check
def store(typing_context, floats, index, vector):
    """Writes a vector from an index on."""

    def generate(context, builder, signature, arguments):
        floats, index, value = arguments
        builder.store(value, _vector_at(builder, vector, floats, index)).align = 4
        return context.get_dummy_value()

    return types.void(FLOATS, types.intp, vector), generate


@intrinsic
@no_type_check
def prefetch(typing_context, pointer, index):
    """Asks for the memory of an index, which will be read soon."""

    def generate(context, builder, signature, arguments):
        byte, word = ir.IntType(8).as_pointer(), ir.IntType(32)
        function = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(ir.VoidType(), [byte, word, word, word]),
            "llvm.prefetch.p0i8",
        )
        address = builder.bitcast(builder.gep(arguments[0], [arguments[1]]), byte)
        read, often, data = (ir.Constant(word, number) for number in (0, 3, 1))
        builder.call(function, [address, read, often, data])
        return context.get_dummy_value()

    return types.void(pointer, types.intp), generate


@intrinsic
@no_type_check
def add_scaled(typing_context, total, factor, vector):
    """total + factor vector, rounded once."""

    def generate(context, builder, signature, arguments):
        total, factor, value = arguments
        factors = _repeat(builder, vector, factor)
        return _call_llvm(builder, "fma", vector, [factors, value, total])

    return vector(vector, types.float32, vector), generate


def _operation(instruction: str) -> Any:
    """An intrinsic that applies an instruction of LLVM to the numbers of two vectors."""

    @intrinsic
    @no_type_check
    def apply(typing_context, a, b):
        def generate(context, builder, signature, arguments):
            return getattr(builder, instruction)(*arguments)

        return a(a, a), generate

    return apply


plus, minus, times, over = (_operation(name) for name in ("fadd", "fsub", "fmul", "fdiv"))


@intrinsic
@no_type_check
def square_root(typing_context, vector):
    """Square roots."""

    def generate(context, builder, signature, arguments):
        return _call_llvm(builder, "sqrt", vector, list(arguments))

    return vector(vector), generate


@intrinsic
@no_type_check
def repeat(typing_context, number):
    """One number eight times."""

    def generate(context, builder, signature, arguments):
        return _repeat(builder, VECTOR, arguments[0])

    return VECTOR(types.float32), generate


@intrinsic
@no_type_check
def where_zero(typing_context, vector, a, b):
    """Numbers of one vector where another one is 0, and of a third elsewhere."""

    def generate(context, builder, signature, arguments):
        value, zero, otherwise = arguments
        return builder.select(builder.fcmp_ordered("==", value, _zeros(vector)), zero, otherwise)

    return vector(vector, vector, vector), generate


@intrinsic
@no_type_check
def is_zero(typing_context, vector):
    """Whether all numbers are 0."""

    def generate(context, builder, signature, arguments):
        different = builder.fcmp_unordered("!=", arguments[0], _zeros(vector))
        bits = builder.bitcast(different, ir.IntType(vector.lanes))
        return builder.icmp_unsigned("==", bits, ir.Constant(ir.IntType(vector.lanes), 0))

    return types.boolean(vector), generate


@intrinsic
@no_type_check
def lane(typing_context, vector, index):
    """One of the numbers."""

    def generate(context, builder, signature, arguments):
        return builder.extract_element(*arguments)

    return types.float32(vector, types.intp), generate


@intrinsic
@no_type_check
def with_lane(typing_context, vector, index, number):
    """The vector with one of its numbers replaced."""

    def generate(context, builder, signature, arguments):
        value, index, number = arguments
        return builder.insert_element(value, number, index)

    return vector(vector, types.intp, types.float32), generate
