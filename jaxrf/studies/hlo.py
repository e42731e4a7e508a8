"""Compiled programs, read from the text that XLA writes of them (HLO).

A program consists of computations, and a computation of instructions, each of which names its
result, the shape of that, an opcode and the operands.
"""

import dataclasses
import json
import math
import re
from collections.abc import Iterator, Mapping

# Bytes of an element; names that are not listed, such as tokens, have no data.
ELEMENT_BYTES: Mapping[str, float] = {
    **dict.fromkeys(("pred", "s8", "u8"), 1.0),
    **dict.fromkeys(("s4", "u4"), 0.5),
    **dict.fromkeys(("s16", "u16", "f16", "bf16"), 2.0),
    **dict.fromkeys(("s32", "u32", "f32"), 4.0),
    **dict.fromkeys(("s64", "u64", "f64", "c64"), 8.0),
    "c128": 16.0,
}
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,<=]*)\](?:\{([\d,]*)(?::([^{}]*))?\})?")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_RESULT = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
# Opcodes that name parts of other arrays and do nothing at run time.
FREE = frozenset({
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "opt-barrier",
    "optimization-barrier", "partition-id", "replica-id", "domain", "add-dependency",
})  # fmt: skip


@dataclasses.dataclass(frozen=True)
class ArrayShape:
    """An array of a program.

    Attributes:
      dtype: as XLA writes it, such as "f32".
      dims: sizes of the axes.
      order: axes from the fastest to the slowest in memory; empty if the text has no layout.
      tiling: such as "T(8,128)", with the number of the memory, such as "S(1)"; empty if linear.
    """

    dtype: str
    dims: tuple[int, ...]
    order: tuple[int, ...] = ()
    tiling: str = ""

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.dims)

    @property
    def is_on_chip(self) -> bool:
        """Whether it lies in another memory than the device's large one."""
        return bool(re.search(r"S\([1-9]", self.tiling))

    @property
    def data_bytes(self) -> float:
        """Bytes of its elements."""
        return self.size * ELEMENT_BYTES.get(self.dtype, 0.0)

    @property
    def num_bytes(self) -> float:
        """Bytes in memory, with the padding of its tiles."""
        dims = list(self.dims)
        tile = re.match(r"T\(([\d,]+)\)", self.tiling)
        if tile and self.order:
            sides = [int(side) for side in tile[1].split(",")]
            for axis, side in zip(self.order, reversed(sides), strict=False):
                dims[axis] = -(-dims[axis] // side) * side
        return math.prod(dims) * ELEMENT_BYTES.get(self.dtype, 0.0)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """An instruction of a computation.

    Attributes:
      name: of its result.
      opcode: such as "fusion".
      shapes: arrays of its result.
      operands: names of the results that it reads; for a parameter its number, for a constant its
        value.
      attributes: the text after the operands.
    """

    name: str
    opcode: str
    shapes: tuple[ArrayShape, ...]
    operands: tuple[str, ...]
    attributes: str

    @property
    def num_bytes(self) -> float:
        """Bytes of its result."""
        return sum((shape.num_bytes for shape in self.shapes), 0.0)

    @property
    def target(self) -> str:
        """The function that a custom call calls; empty for others."""
        match = re.search(r'custom_call_target="([^"]*)"', self.attributes)
        return match[1] if match else ""

    def called(self, attribute: str) -> str | None:
        """Name of the computation that an attribute such as `body` names."""
        match = re.search(rf"\b{attribute}=%?([\w.\-]+)", self.attributes)
        return match[1] if match else None

    def branches(self) -> list[str]:
        """Names of the computations that a conditional chooses from."""
        match = re.search(r"branch_computations=\{([^}]*)\}", self.attributes)
        if match:
            return [name.strip().lstrip("%") for name in match[1].split(",")]
        names = (self.called(f"{value}_computation") for value in ("true", "false"))
        return [name for name in names if name]

    def numbers(self, attribute: str) -> tuple[int, ...]:
        """Numbers of an attribute such as `lhs_contracting_dims={1}`; none if there is none."""
        match = re.search(rf"\b{attribute}=\{{([\d,]*)\}}", self.attributes)
        return tuple(int(number) for number in match[1].split(",") if number) if match else ()


@dataclasses.dataclass(frozen=True)
class Computation:
    """Instructions in the order of the text, by name, and the name of the last one's result."""

    name: str
    instructions: Mapping[str, Instruction]
    root: str

    def operand(self, instruction: Instruction, index: int) -> Instruction:
        """The instruction that makes an operand."""
        return self.instructions[instruction.operands[index]]

    def operands(self, instruction: Instruction) -> list[Instruction]:
        """The instructions that make the operands."""
        return [self.instructions[name] for name in instruction.operands]

    def __iter__(self) -> Iterator[Instruction]:
        return iter(self.instructions.values())


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program: its computations by name, and the one it begins with."""

    computations: Mapping[str, Computation]
    entry: str

    def trip_count(self, loop: Instruction) -> int | None:
        """Rounds of a loop; None if the program finds out as it runs.

        Where XLA does not say so, they are what the condition compares its counter with, which JAX
        begins at 0.
        """
        known = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.attributes)
        if known:
            return int(known[1])
        condition = self.computations[loop.called("condition") or ""]
        root = condition.instructions[condition.root]
        if root.opcode != "compare" or "direction=LT" not in root.attributes:
            return None
        counter, limit = condition.operand(root, 0), condition.operand(root, 1)
        is_static = counter.opcode == "get-tuple-element" and limit.opcode == "constant"
        return int(limit.operands[0]) if is_static else None


def parse_program(text: str) -> Program:
    """Reads the text of a compiled program, as `jax.stages.Compiled.as_text` returns it.

    Raises:
      ValueError: there is no entry.
    """
    computations, entry = {}, ""
    name, root = "", ""
    instructions: dict[str, Instruction] = {}
    for line in text.splitlines():
        header = _HEADER.match(line)
        if header:
            name, root, instructions = header[2], "", {}
            entry = name if header[1] else entry
        elif line.startswith("}") and name:
            computations[name] = Computation(name, instructions, root)
            name = ""
        elif name and (result := _RESULT.match(line)):
            instruction = parse_instruction(result[2], line[result.end() :])
            instructions[instruction.name] = instruction
            root = instruction.name if result[1] else root
    if not entry:
        raise ValueError("the text has no ENTRY computation")
    return Program(computations, entry)


def parse_instruction(name: str, text: str) -> Instruction:
    """An instruction from the text after the equals sign."""
    text = re.sub(r"/\*.*?\*/", "", text)
    end = _closing(text, 0) if text.startswith("(") else text.index(" ")
    shapes, text = parse_shapes(text[:end]), text[end:].lstrip()
    opcode, _, _ = text.partition("(")
    end = _closing(text, len(opcode))
    content = text[len(opcode) + 1 : end - 1]
    if opcode in ("parameter", "constant"):
        operands: tuple[str, ...] = (content,)
    else:
        operands = tuple(re.findall(r"%([\w.\-]+)", content))
    return Instruction(name, opcode, shapes, operands, text[end:])


def _closing(text: str, start: int) -> int:
    """Where the parenthesis that opens at `start` has closed."""
    depth = 0
    for match in re.compile(r"[()]").finditer(text, start):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.end()
    return len(text)


def parse_shapes(text: str) -> tuple[ArrayShape, ...]:
    """The arrays of a shape such as "(f32[8,2]{1,0}, s32[])"."""
    return tuple(
        ArrayShape(
            dtype,
            tuple(int(n.lstrip("<=")) for n in dims.split(",") if n),
            tuple(int(n) for n in order.split(",") if n),
            tiling,
        )
        for dtype, dims, order, tiling in _ARRAY.findall(text)
    )


def matmul_flops(instruction: Instruction, computation: Computation) -> float:
    """Floating-point operations of a matrix product or convolution; 0 for other instructions.

    2 n k for a result of n numbers, each of which is a sum of k products.
    """
    size = instruction.shapes[0].size if instruction.shapes else 0
    if instruction.opcode == "dot":
        contracted = instruction.numbers("lhs_contracting_dims")
    elif instruction.opcode == "custom-call" and "gemm" in instruction.target:
        match = re.search(r'"lhs_contracting_dimensions":(\[[^\]]*\])', instruction.attributes)
        contracted = tuple(int(axis) for axis in json.loads(match[1])) if match else ()
    elif instruction.opcode == "convolution":
        labels = re.search(r"dim_labels=\w+_(\w+)->", instruction.attributes)
        kernel = computation.operand(instruction, 1).shapes[0]
        outputs = kernel.dims[labels[1].index("o")] if labels else 1
        return 2.0 * size * kernel.size / max(outputs, 1)
    else:
        return 0.0
    left = computation.operand(instruction, 0).shapes[0]
    return 2.0 * size * math.prod(left.dims[axis] for axis in contracted)
