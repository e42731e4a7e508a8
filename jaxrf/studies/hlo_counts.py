"""Kernels of a training step, counted in the text of its compiled program.

The program loops over steps; counted is the body of that loop, with the loops in it. Only what the
text says is counted, so that a device that is not there can be counted for.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping

from jaxrf.studies import hlo
from jaxrf.studies.hlo import Computation, Instruction, Program

COLLECTIVES = (
    "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute",
    "collective-broadcast",
)  # fmt: skip
# Instructions of a fusion that compute nothing per element.
_MOVES = hlo.FREE | {"broadcast", "iota", "slice", "concatenate", "reshape", "transpose", "copy"}
# Custom calls by which XLA tells itself something.
MARKERS = frozenset({
    "AllocateBuffer", "AssumeGatherIndicesInBound", "ConcatBitcast", "Sharding",
    "GatherScatterIndicesBitpacked", "SPMDFullToShardShape", "SPMDShardToFullShape",
})  # fmt: skip
# Through these, an array stays where it is.
_VIEWS = frozenset({"bitcast", "reshape"})


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A kernel, library call or collective of a step.

    Attributes:
      name: of the instruction.
      opcode: of it; that of a collective without "-start".
      repeats: a step.
      read_bytes, written_bytes: in one run, of the device's large memory, without look-ups.
      rows: looked up in tables or added to, in one run.
      row_bytes: of all these rows, without the bytes around them that move with them.
      matmul_flops: in one run.
      element_ops: operations on single numbers, in one run.
      is_half: whether the factors of its products have 16 bits.
    """

    name: str
    opcode: str
    repeats: float
    read_bytes: float = 0.0
    written_bytes: float = 0.0
    rows: float = 0.0
    row_bytes: float = 0.0
    matmul_flops: float = 0.0
    element_ops: float = 0.0
    is_half: bool = False

    @property
    def is_collective(self) -> bool:
        """Whether devices exchange data."""
        return self.opcode in COLLECTIVES

    def moved_bytes(self, granule: int) -> float:
        """Bytes to and from memory in one run, a row taking at least `granule` bytes."""
        lookups = max(self.row_bytes, self.rows * granule)
        return self.read_bytes + self.written_bytes + lookups


@dataclasses.dataclass(frozen=True)
class StepCount:
    """Kernels of a training step, and how often the host has to wait for it.

    Attributes:
      kernels: in the order of the text.
      host_reads: numbers a step that the host reads before it can go on: conditions of loops whose
        rounds are not known, and branches. They cost time only where the host drives loops.
      open_loops: names of the loops whose number of rounds is not in the program.
    """

    kernels: tuple[Kernel, ...]
    host_reads: float
    open_loops: tuple[str, ...]

    @property
    def launches(self) -> float:
        """Kernels a step, those in loops as often as they run."""
        return sum((kernel.repeats for kernel in self.kernels), 0.0)

    def collectives(self) -> dict[str, tuple[float, float]]:
        """Number and bytes a step of the collectives of each kind."""
        totals: dict[str, tuple[float, float]] = {}
        for kernel in self.kernels:
            if kernel.is_collective:
                count, size = totals.get(kernel.opcode, (0.0, 0.0))
                size += kernel.repeats * kernel.written_bytes
                totals[kernel.opcode] = (count + kernel.repeats, size)
        return totals


def count_step(program: Program, rounds: Mapping[str, float]) -> StepCount:
    """Counts the kernels of a training step.

    Args:
      program: of `train_steps`; without a loop over steps, all of it is one step.
      rounds: of the loops whose number of rounds is not in the program, by name; others are counted
        as one round.
    """
    kernels: list[Kernel] = []
    open_loops: list[str] = []
    step = _find_step_loop(program)
    if step is None:
        reads = _count(program, program.entry, 1.0, rounds, kernels, open_loops)
    else:
        reads = 1.0
        for part in ("body", "condition"):
            reads += _count(program, step.called(part) or "", 1.0, rounds, kernels, open_loops)
    return StepCount(tuple(kernels), reads, tuple(open_loops))


def _find_step_loop(program: Program) -> Instruction | None:
    """The largest loop of the entry whose rounds are not known."""
    entry = program.computations[program.entry]
    loops = [i for i in entry if i.opcode == "while" and program.trip_count(i) is None]
    sizes = [len(program.computations[loop.called("body") or ""].instructions) for loop in loops]
    return loops[sizes.index(max(sizes))] if loops else None


def _count(
    program: Program,
    name: str,
    repeats: float,
    rounds: Mapping[str, float],
    kernels: list[Kernel],
    open_loops: list[str],
) -> float:
    """Appends the kernels of a computation that runs so often; the host's reads."""
    computation, reads = program.computations[name], 0.0

    def descend(called: str, times: float) -> float:
        return _count(program, called, times, rounds, kernels, open_loops)

    for instruction in computation:
        match instruction.opcode:
            case "while":
                known = program.trip_count(instruction)
                if known is None:
                    open_loops.append(instruction.name)
                times = repeats * (rounds.get(instruction.name, 1.0) if known is None else known)
                reads += times + repeats if known is None else 0.0
                reads += descend(instruction.called("body") or "", times)
                reads += descend(instruction.called("condition") or "", times + repeats)
            case "conditional":
                # The branch that has most to do, as the text does not say which is taken.
                largest = max(instruction.branches(), key=lambda b: _size(program, b))
                reads += repeats + descend(largest, repeats)
            case "call" | "async-start":
                called = instruction.called("to_apply") or instruction.called("calls") or ""
                reads += descend(called, repeats)
            case _ if is_free(instruction):
                pass
            case _:
                kernels.append(measure_kernel(program, computation, instruction, repeats))
    return reads


def is_free(instruction: Instruction) -> bool:
    """Whether an instruction of a loop's body is no kernel.

    It only names data, ends what another began, marks something for the compiler, or is arithmetic
    with a single number, which a TPU does on the side; a GPU has such only in fusions.
    """
    opcode = instruction.opcode
    if opcode in hlo.FREE or opcode.endswith(("-done", "-update")):
        return True
    if opcode == "custom-call":
        return instruction.target in MARKERS
    is_fusion = opcode in ("fusion", "copy") or opcode.startswith(COLLECTIVES)
    return not is_fusion and all(shape.size <= 1 for shape in instruction.shapes)


def _size(program: Program, name: str) -> int:
    return len(program.computations[name].instructions)


def measure_kernel(
    program: Program, computation: Computation, instruction: Instruction, repeats: float = 1.0
) -> Kernel:
    """The kernel that an instruction of a computation is: bytes, rows and operations."""
    opcode = instruction.opcode.removesuffix("-start")
    called = instruction.called("calls") if opcode == "fusion" else None
    if called is None:
        moved = _move(instruction, computation.operands(instruction))
        nested = [(computation, instruction)]
    else:
        fused = program.computations[called]
        moved = _move_fused(computation, instruction, fused)
        nested = list(_all_instructions(program, fused))
    products = [(c, i) for c, i in nested if hlo.matmul_flops(i, c)]
    return Kernel(
        instruction.name,
        opcode,
        repeats,
        *moved,
        matmul_flops=sum((hlo.matmul_flops(i, c) for c, i in products), 0.0),
        element_ops=sum((_element_ops(i) for _, i in nested), 0.0),
        is_half=bool(products) and all(_is_half(c.operand(i, 0)) for c, i in products),
    )


def _is_half(factor: Instruction) -> bool:
    return all(hlo.ELEMENT_BYTES.get(shape.dtype) == 2.0 for shape in factor.shapes)


def _all_instructions(
    program: Program, computation: Computation
) -> Iterator[tuple[Computation, Instruction]]:
    """Instructions of a fusion and of the fusions in it."""
    for instruction in computation:
        called = instruction.called("calls") if instruction.opcode == "fusion" else None
        if called is None:
            yield computation, instruction
        else:
            yield from _all_instructions(program, program.computations[called])


def _element_ops(instruction: Instruction) -> float:
    if instruction.opcode in _MOVES or instruction.opcode in ("dot", "convolution", "fusion"):
        return 0.0
    return float(sum(shape.size for shape in instruction.shapes))


def _large(instruction: Instruction) -> float:
    """Bytes of a result in the device's large memory."""
    sizes = (shape.num_bytes for shape in instruction.shapes if not shape.is_on_chip)
    return sum(sizes, 0.0)


def _move(
    instruction: Instruction, operands: list[Instruction]
) -> tuple[float, float, float, float]:
    """Bytes read and written, and rows and their bytes, of an instruction by itself."""
    match instruction.opcode:
        case "gather" | "dynamic-slice":
            others = sum((_large(operand) for operand in operands[1:]), 0.0)
            return (others, _large(instruction), *_looked_up(instruction, operands))
        case "scatter" | "dynamic-update-slice":
            others = sum((_large(operand) for operand in operands[1:]), 0.0)
            return (others, 0.0, *_added(instruction, operands))
        case _:
            read = sum((_large(operand) for operand in operands), 0.0)
            written = _large(instruction)
            if instruction.opcode.endswith("-start"):
                # Their results may hold the operands as well as the arrays that are made of them.
                written = max(read, written - read)
            return read, written, 0.0, 0.0


def _looked_up(instruction: Instruction, operands: list[Instruction]) -> tuple[float, float]:
    """Rows that a gather or slice reads, and their bytes."""
    shape = instruction.shapes[0]
    if all(array.is_on_chip for array in operands[0].shapes):
        return 0.0, 0.0
    if instruction.opcode == "dynamic-slice":
        # A slice is one block, of which no more moves than it has.
        return 0.0, shape.data_bytes
    width = math.prod(instruction.numbers("slice_sizes"))
    return shape.size / max(width, 1), shape.data_bytes


def _added(instruction: Instruction, operands: list[Instruction]) -> tuple[float, float]:
    """Rows that a scatter or update reads and writes, and their bytes."""
    if all(array.is_on_chip for array in operands[0].shapes):
        return 0.0, 0.0
    if instruction.opcode == "dynamic-update-slice":
        return 0.0, operands[1].shapes[0].data_bytes
    updates = operands[-1].shapes[0]
    width = math.prod(updates.dims[axis] for axis in instruction.numbers("update_window_dims"))
    return 2.0 * updates.size / max(width, 1), 2.0 * updates.data_bytes


def _move_fused(
    outer: Computation, fusion: Instruction, fused: Computation
) -> tuple[float, float, float, float]:
    """Bytes read and written, and rows and their bytes, of a fusion.

    Of a table that only look-ups read, these count. What a scatter or an update in place changes
    counts instead of the whole result.
    """
    users = _find_users(fused)
    read = rows = row_bytes = 0.0
    for parameter in (i for i in fused if i.opcode == "parameter"):
        lookups = [_as_lookup(fused, *use) for use in users(parameter.name)]
        known = [lookup for lookup in lookups if lookup is not None]
        if lookups and len(known) == len(lookups):
            rows += sum(lookup[0] for lookup in known)
            row_bytes += sum(lookup[1] for lookup in known)
        else:
            read += _large(outer.operand(fusion, int(parameter.operands[0])))
    updated = [i for i in _roots(fused) if i.opcode in ("scatter", "dynamic-update-slice")]
    written = _large(fusion) - sum(_large(root) for root in updated)
    return read, max(written, 0.0), rows, row_bytes


def _find_users(fused: Computation) -> Callable[[str], list[tuple[Instruction, str]]]:
    """A function from a name to pairs of an instruction and the name by which it reads that."""
    direct: dict[str, list[Instruction]] = {}
    for instruction in fused:
        if instruction.opcode not in ("parameter", "constant"):
            for operand in dict.fromkeys(instruction.operands):
                direct.setdefault(operand, []).append(instruction)

    def users(name: str) -> list[tuple[Instruction, str]]:
        pairs: list[tuple[Instruction, str]] = []
        for user in direct.get(name, []):
            pairs += users(user.name) if user.opcode in _VIEWS else [(user, name)]
        return pairs

    return users


def _as_lookup(fused: Computation, user: Instruction, name: str) -> tuple[float, float] | None:
    """Rows and bytes of a table that an instruction looks up or adds to; None if it reads all."""
    if user.operands[0] != name or name in user.operands[1:]:
        return None
    if user.opcode in ("gather", "dynamic-slice"):
        return _looked_up(user, fused.operands(user))
    if user.opcode in ("scatter", "dynamic-update-slice"):
        return _added(user, fused.operands(user))
    return None


def _roots(fused: Computation) -> list[Instruction]:
    """The instructions that make a fusion's results, looking through views."""

    def resolve(instruction: Instruction) -> Instruction:
        while instruction.opcode in _VIEWS:
            instruction = fused.operand(instruction, 0)
        return instruction

    root = resolve(fused.instructions[fused.root])
    if root.opcode != "tuple":
        return [root]
    return [resolve(operand) for operand in fused.operands(root)]
