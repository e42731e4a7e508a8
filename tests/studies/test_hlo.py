"""Texts of compiled programs: shapes, instructions, loops, and operations of products."""

import jax
import jax.numpy as jnp
import pytest

from jaxrf.studies import hlo

# A loop of 5 rounds whose number XLA says, one that compares its counter, and one that is open.
TEXT = """HloModule jit_f, is_scheduled=true

%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p = (s32[], f32[8]{0}) parameter(0)
  ROOT %t = (s32[], f32[8]{0}) tuple(%p)
}

%counted (q: (s32[], f32[8])) -> pred[] {
  %q = (s32[], /*index=1*/f32[8]{0}) parameter(0)
  %i = s32[] get-tuple-element(%q), index=0
  %n = s32[]{:T(128)} constant(16)
  ROOT %lt = pred[] compare(%i, %n), direction=LT, metadata={op_name="jit(f)/while/cond/lt"}
}

%data (r: (s32[], f32[8])) -> pred[] {
  %r = (s32[], f32[8]{0}) parameter(0)
  ROOT %any = pred[] get-tuple-element(%r), index=1
}

ENTRY %main (a: f32[8]) -> f32[8] {
  %a = f32[8]{0} parameter(0)
  %w.1 = (s32[], f32[8]{0}) while(%a), condition=%data, body=%body, KNOWN
  %w.2 = (s32[], f32[8]{0}) while(%w.1), condition=%counted, body=%body
  %w.3 = (s32[], f32[8]{0}) while(%w.2), condition=%data, body=%body
  ROOT %b = f32[8]{0} negate(%a)
}
""".replace("KNOWN", 'backend_config={"known_trip_count":{"n":"5"}}')


def test_parse_program_reads_computations_operands_and_roots() -> None:
    program = hlo.parse_program(TEXT)
    assert list(program.computations) == ["body", "counted", "data", "main"]
    assert program.entry == "main"
    main = program.computations["main"]
    assert main.root == "b"
    assert [i.opcode for i in main] == ["parameter", "while", "while", "while", "negate"]
    assert main.operand(main.instructions["b"], 0).name == "a"
    assert main.instructions["w.3"].called("body") == "body"


def test_trip_count_is_that_of_the_text_or_of_the_condition() -> None:
    program = hlo.parse_program(TEXT)
    loops = [i for i in program.computations["main"] if i.opcode == "while"]
    assert [program.trip_count(loop) for loop in loops] == [5, 16, None]


def test_parse_program_rejects_a_text_without_an_entry() -> None:
    with pytest.raises(ValueError, match="no ENTRY"):
        hlo.parse_program("HloModule empty\n")


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("f32[4,2]{1,0}", 32.0),
        ("pred[]", 1.0),
        ("bf16[3]{0}", 6.0),
        ("(f32[2]{0}, /*index=1*/s8[5]{0}, token[])", 13.0),
        # Tiles of 8 x 128 pad a table of two columns 64-fold, unless rows are the fast axis.
        ("f32[1024,2]{1,0:T(8,128)}", 1024 * 128 * 4.0),
        ("f32[1024,2]{0,1:T(8,128)}", 1024 * 8 * 4.0),
        ("bf16[16,128]{1,0:T(8,128)(2,1)}", 16 * 128 * 2.0),
    ],
)
def test_bytes_of_shapes(text: str, size: float) -> None:
    assert sum(shape.num_bytes for shape in hlo.parse_shapes(text)) == size


def test_arrays_in_other_memories_are_on_chip() -> None:
    shapes = hlo.parse_shapes("(f32[8]{0:T(128)S(1)}, f32[8]{0:T(128)}, f32[8]{0})")
    assert [shape.is_on_chip for shape in shapes] == [True, False, False]


@pytest.mark.parametrize(
    ("line", "flops"),
    [
        ("f32[8,3]{1,0} dot(%l, %r), lhs_contracting_dims={1}, rhs_contracting_dims={0}", 192.0),
        (
            '(f32[8,3]{1,0}, s8[64]{0}) custom-call(%l, %r), custom_call_target="__cublas$gemm", '
            'backend_config={"gemm_backend_config":{"lhs_contracting_dimensions":["1"]}}',
            192.0,
        ),
        ("f32[8,3]{1,0} convolution(%l, %r), dim_labels=bf_io->bf", 192.0),
        ("f32[8,3]{1,0} add(%l, %r)", 0.0),
    ],
)
def test_matmul_flops_are_twice_the_products(line: str, flops: float) -> None:
    left = hlo.parse_instruction("l", "f32[8,4]{1,0} parameter(0)")
    right = hlo.parse_instruction("r", "f32[4,3]{1,0} parameter(1)")
    product = hlo.parse_instruction("d", line)
    computation = hlo.Computation("c", {"l": left, "r": right, "d": product}, "d")
    assert hlo.matmul_flops(product, computation) == flops


def test_a_compiled_program_is_read() -> None:
    fn = jax.jit(lambda x: jax.lax.fori_loop(0, 3, lambda i, y: jnp.sin(y @ y), x))
    compiled = fn.lower(jax.ShapeDtypeStruct((16, 16), jnp.float32)).compile()
    program = hlo.parse_program(compiled.as_text())
    pairs = [(i, c) for c in program.computations.values() for i in c]
    assert {program.trip_count(i) for i, _ in pairs if i.opcode == "while"} <= {3}
    assert sum(hlo.matmul_flops(i, c) for i, c in pairs) == 2 * 16**3
