"""Call frames of XLA's foreign function interface, and work shared by its threads.

Offsets are those of XLA's `c_api.h` (xla/ffi/api), version 0.3 of the interface. Where a structure
grows, XLA appends to it, so they stay.
"""

from typing import Any, no_type_check

from llvmlite import ir
from numba import cfunc, njit, types
from numba.core import config
from numba.extending import intrinsic

FLOATS = types.CPointer(types.float32)
INTS = types.CPointer(types.int32)
BYTES = types.CPointer(types.uint8)
WORDS = types.CPointer(types.int64)
ADDRESS = types.intp

# Version of the interface that the offsets below belong to.
VERSION_MAJOR, VERSION_MINOR = 0, 3
# XLA_FFI_CallFrame.
EXTENSION, API, CONTEXT, OPERANDS, RESULTS = 8, 16, 24, 64, 104
# XLA_FFI_Buffer.
DATA, RANK, SIZES = 24, 32, 40
# XLA_FFI_Metadata, reached from its extension.
METADATA, METADATA_VERSION, METADATA_TRAITS = 24, 24, 32
# XLA_FFI_Api: its functions, and the numbers of two of them.
FUNCTIONS, SCHEDULE, COUNT_THREADS = 48, 11, 12
SCHEDULE_BYTES, COUNT_THREADS_BYTES = 40, 32
# Shared by the threads that work on one call.
NEXT, DONE, USERS, FRAME, PARTS, BODY = 0, 1, 2, 3, 4, 5


def kernel(function: Any) -> Any:
    """Compiles a handler of XLA's calls, or takes it from numba's cache, if there is a folder."""
    settings: Any = config
    return cfunc(ADDRESS(ADDRESS), cache=bool(settings.CACHE_DIR))(function)


def _load(builder: Any, address: Any, offset: int = 0) -> Any:
    """The word at an address."""
    word = ir.IntType(64)
    address = builder.add(address, ir.Constant(word, offset))
    return builder.load(builder.inttoptr(address, word.as_pointer()))


def _load_numbered(builder: Any, addresses: Any, number: Any) -> Any:
    """The word of this number at an address."""
    return _load(builder, builder.add(addresses, builder.mul(number, ir.Constant(number.type, 8))))


def _buffer_reader(buffers: int) -> tuple[Any, Any]:
    """Intrinsics for the address of a buffer's numbers, and its size along an axis."""

    @intrinsic
    @no_type_check
    def address_of(typing_context, frame, number):
        def generate(context, builder, signature, arguments):
            listed = _load(builder, arguments[0], buffers + 8)
            return _load(builder, _load_numbered(builder, listed, arguments[1]), DATA)

        return ADDRESS(ADDRESS, types.intp), generate

    @intrinsic
    @no_type_check
    def size_of(typing_context, frame, number, axis):
        def generate(context, builder, signature, arguments):
            listed = _load(builder, arguments[0], buffers + 8)
            sizes = _load(builder, _load_numbered(builder, listed, arguments[1]), SIZES)
            return _load_numbered(builder, sizes, arguments[2])

        return types.intp(ADDRESS, types.intp, types.intp), generate

    return address_of, size_of


@intrinsic
@no_type_check
def _operand_rank(typing_context, frame, number):
    def generate(context, builder, signature, arguments):
        listed = _load(builder, arguments[0], OPERANDS + 8)
        return _load(builder, _load_numbered(builder, listed, arguments[1]), RANK)

    return types.intp(ADDRESS, types.intp), generate


def _reader(pointer: Any) -> Any:
    """An intrinsic that takes an address for a pointer of this type."""

    @intrinsic
    @no_type_check
    def read(typing_context, address):
        def generate(context, builder, signature, arguments):
            return builder.inttoptr(arguments[0], context.get_value_type(pointer))

        return pointer(ADDRESS), generate

    return read


floats_at, ints_at, bytes_at, words_at = (_reader(p) for p in (FLOATS, INTS, BYTES, WORDS))

# Address of an operand's or a result's numbers in a call frame, and its size along an axis.
operand, operand_size = _buffer_reader(OPERANDS)
result, result_size = _buffer_reader(RESULTS)

allocate = types.ExternalFunction("malloc", ADDRESS(ADDRESS))
release = types.ExternalFunction("free", types.void(ADDRESS))


@intrinsic
@no_type_check
def _fetch_add(typing_context, words, index, value):
    """Adds to a word in one indivisible operation; returns what it was."""

    def generate(context, builder, signature, arguments):
        word = builder.gep(arguments[0], [arguments[1]])
        return builder.atomic_rmw("add", word, arguments[2], "seq_cst")

    return types.int64(WORDS, types.intp, types.int64), generate


@intrinsic
@no_type_check
def _load_atomically(typing_context, words, index):
    def generate(context, builder, signature, arguments):
        return builder.load_atomic(builder.gep(arguments[0], [arguments[1]]), "seq_cst", 8)

    return types.int64(WORDS, types.intp), generate


@intrinsic
@no_type_check
def _call(typing_context, function, argument):
    """Calls the C function at an address with one address."""

    def generate(context, builder, signature, arguments):
        word = ir.IntType(64)
        function = ir.FunctionType(word, [word]).as_pointer()
        return builder.call(builder.inttoptr(arguments[0], function), [arguments[1]])

    return ADDRESS(ADDRESS, ADDRESS), generate


@intrinsic
@no_type_check
def _call_body(typing_context, body, frame, part, parts):
    """Calls the body at an address."""

    def generate(context, builder, signature, arguments):
        function = ir.FunctionType(ir.VoidType(), [ir.IntType(64)] * 3).as_pointer()
        builder.call(builder.inttoptr(arguments[0], function), arguments[1:])
        return context.get_dummy_value()

    return types.void(ADDRESS, ADDRESS, types.intp, types.intp), generate


def _c_function(num_arguments: int) -> Any:
    """An intrinsic for the address of a compiled function of so many words, called as C calls."""

    @intrinsic
    @no_type_check
    def address_of(typing_context, function):
        signature = types.void(*(types.intp,) * num_arguments)

        def generate(context, builder, _, arguments):
            function.dispatcher.compile(signature.args)
            compiled = function.dispatcher.get_compile_result(signature)
            context.active_code_library.add_linking_library(compiled.library)
            called = ir.Function(
                builder.module,
                ir.FunctionType(ir.VoidType(), [ir.IntType(64)] * num_arguments),
                name=builder.module.get_unique_name("jaxrf_called"),
            )
            called.linkage = "internal"
            entry = ir.IRBuilder(called.append_basic_block("entry"))
            # An error has nobody to go to: kernels raise none.
            context.call_internal_no_propagate(entry, compiled.fndesc, signature, called.args)
            entry.ret_void()
            return builder.ptrtoint(called, ir.IntType(64))

        return ADDRESS(function), generate

    return address_of


address_of_body, _address_of_task = _c_function(3), _c_function(1)


@no_type_check
@njit(error_model="numpy")
def asks_for_version(frame):
    """Whether XLA only asks which version of its interface a kernel was written for; answers it."""
    extension = words_at(frame + EXTENSION)[0]
    if extension == 0:
        return False
    metadata = words_at(extension + METADATA)[0]
    version = ints_at(metadata + METADATA_VERSION)
    version[0] = VERSION_MAJOR
    version[1] = VERSION_MINOR
    ints_at(metadata + METADATA_TRAITS)[0] = 0
    return True


@no_type_check
@njit(error_model="numpy")
def _take_parts(state):
    """Works on parts until none is left. The last to leave releases the state."""
    words = words_at(state)
    parts, frame, body = words[PARTS], words[FRAME], words[BODY]
    while True:
        part = _fetch_add(words, NEXT, 1)
        if part >= parts:
            break
        _call_body(body, frame, part, parts)
        _fetch_add(words, DONE, 1)
    # A thread may come when all is done.
    if _fetch_add(words, USERS, -1) == 1:
        release(state)


@no_type_check
@njit(error_model="numpy")
def run_parts(frame, body, parts, per_thread):
    """Runs the body for all parts, shared by XLA's threads.

    The calling thread takes parts like the others, and at last waits only for those that are being
    worked on, so it never waits for a thread that is not there.

    Args:
      frame: of the call.
      body: its address (`address_of_body`).
      parts: their number; 0 for `per_thread` for each of XLA's threads.
      per_thread: see parts.
    """
    memory = allocate(64)
    arguments = words_at(memory)
    functions = words_at(words_at(frame + API)[0] + FUNCTIONS)
    arguments[0] = COUNT_THREADS_BYTES
    arguments[1] = 0
    arguments[2] = words_at(frame + CONTEXT)[0]
    arguments[3] = memory + COUNT_THREADS_BYTES
    arguments[4] = 1
    # XLA may have none to lend.
    threads = arguments[4] if _call(functions[COUNT_THREADS], memory) == 0 else 1
    parts = parts if parts > 0 else per_thread * max(threads, 1)
    helpers = min(threads, parts) - 1
    state = allocate(64)
    words = words_at(state)
    words[NEXT] = 0
    words[DONE] = 0
    words[USERS] = 2 + max(helpers, 0)
    words[FRAME] = frame
    words[PARTS] = parts
    words[BODY] = body
    arguments[0] = SCHEDULE_BYTES
    arguments[3] = _address_of_task(_take_parts)
    arguments[4] = state
    for _ in range(helpers):
        if _call(functions[SCHEDULE], memory) != 0:
            _fetch_add(words, USERS, -1)
    release(memory)
    _take_parts(state)
    while _load_atomically(words, DONE) < parts:
        pass
    if _fetch_add(words, USERS, -1) == 1:
        release(state)


@no_type_check
@njit(error_model="numpy")
def part_of(count, part, parts):
    """The elements of a part: first, and one past the last."""
    return count * part // parts, count * (part + 1) // parts


@no_type_check
@njit(error_model="numpy")
def operand_count(frame, number):
    """How many numbers an operand has."""
    count = 1
    for axis in range(_operand_rank(frame, number)):
        count *= operand_size(frame, number, axis)
    return count
