"""Kernels of a step, counted in small programs by hand and in compiled ones."""

import jax
import jax.numpy as jnp
import pytest

from jaxrf.studies import hlo, hlo_counts

STEP = """HloModule jit_train_steps, is_scheduled=true

%look_up (t: f32[1000,2], i: s32[50,1], x: f32[50,2]) -> f32[50,2] {
  %t = f32[1000,2]{1,0} parameter(0)
  %i = s32[50,1]{1,0} parameter(1)
  %x = f32[50,2]{1,0} parameter(2)
  %g = f32[50,1,2]{2,1,0} gather(%t, %i), offset_dims={1,2}, start_index_map={0}, slice_sizes={1,2}
  %v = f32[50,2]{1,0} bitcast(%g)
  ROOT %s = f32[50,2]{1,0} add(%v, %x)
}

%add_rows (t.1: f32[1000,2], i.1: s32[50,1], x.1: f32[50,2]) -> f32[1000,2] {
  %t.1 = f32[1000,2]{1,0} parameter(0)
  %i.1 = s32[50,1]{1,0} parameter(1)
  %x.1 = f32[50,2]{1,0} parameter(2)
  %u = f32[50,1,2]{2,1,0} bitcast(%x.1)
  ROOT %sc = f32[1000,2]{1,0} scatter(%t.1, %i.1, %u), update_window_dims={1,2}, to_apply=%sum
}

%inner_body (p.2: (s32[], f32[50,2])) -> (s32[], f32[50,2]) {
  %p.2 = (s32[], f32[50,2]{1,0}) parameter(0)
  %y = f32[50,2]{1,0} get-tuple-element(%p.2), index=1
  %c.2 = f32[50,2]{1,0} copy(%y)
  ROOT %t.2 = (s32[], f32[50,2]{1,0}) tuple(%y, %c.2)
}

%inner_condition (p.3: (s32[], f32[50,2])) -> pred[] {
  %p.3 = (s32[], f32[50,2]{1,0}) parameter(0)
  ROOT %b.3 = pred[] get-tuple-element(%p.3), index=0
}

%step_body (p.4: (s32[], f32[1000,2], s32[50,1], f32[50,2])) -> (s32[], f32[1000,2]) {
  %p.4 = (s32[], f32[1000,2]{1,0}, s32[50,1]{1,0}, f32[50,2]{1,0}) parameter(0)
  %table = f32[1000,2]{1,0} get-tuple-element(%p.4), index=1
  %index = s32[50,1]{1,0} get-tuple-element(%p.4), index=2
  %rows = f32[50,2]{1,0} get-tuple-element(%p.4), index=3
  %f.1 = f32[50,2]{1,0} fusion(%table, %index, %rows), kind=kLoop, calls=%look_up
  %w.4 = (s32[], f32[50,2]{1,0}) while(%f.1), condition=%inner_condition, body=%inner_body
  %w.5 = (s32[], f32[50,2]{1,0}) while(%f.1), condition=%inner_condition, body=%inner_body, KNOWN
  %f.2 = f32[1000,2]{1,0} fusion(%table, %index, %f.1), kind=kInput, calls=%add_rows
  %r = f32[1000,2]{1,0} all-reduce-start(%f.2), replica_groups={{0,1}}, to_apply=%sum
  %r.1 = f32[1000,2]{1,0} all-reduce-done(%r)
  ROOT %t.4 = (s32[], f32[1000,2]{1,0}) tuple(%r.1)
}

%step_condition (p.5: (s32[], f32[1000,2])) -> pred[] {
  %p.5 = (s32[], f32[1000,2]{1,0}) parameter(0)
  %i.5 = s32[] get-tuple-element(%p.5), index=0
  %n.5 = s32[] get-tuple-element(%p.5), index=0
  ROOT %f.5 = pred[] compare(%i.5, %n.5), direction=LT
}

ENTRY %main (a: f32[1000,2]) -> f32[1000,2] {
  %a = f32[1000,2]{1,0} parameter(0)
  %before = f32[1000,2]{1,0} copy(%a)
  ROOT %w.6 = (s32[], f32[1000,2]{1,0}) while(%before), condition=%step_condition, body=%step_body
}
""".replace("KNOWN", 'backend_config={"known_trip_count":{"n":"4"}}')


@pytest.fixture
def count() -> hlo_counts.StepCount:
    return hlo_counts.count_step(hlo.parse_program(STEP), {"w.4": 3.0})


def test_only_the_loop_over_steps_counts(count: hlo_counts.StepCount) -> None:
    assert [kernel.name for kernel in count.kernels] == ["f.1", "c.2", "c.2", "f.2", "r"]
    # Both fusions, the all-reduce, and copies of three and of four rounds.
    assert count.launches == 3 + 3 + 4


def test_the_host_reads_the_conditions_of_open_loops(count: hlo_counts.StepCount) -> None:
    # Of the loop over steps once, and of the open one before each round and at its end.
    assert count.host_reads == 1 + 3 + 1
    assert count.open_loops == ("w.4",)


def test_a_lookup_counts_its_rows_and_not_the_table(count: hlo_counts.StepCount) -> None:
    kernel = count.kernels[0]
    assert kernel.rows == 50
    assert kernel.row_bytes == 50 * 8
    assert kernel.read_bytes == 50 * 4 + 50 * 8
    assert kernel.written_bytes == 50 * 8
    assert kernel.moved_bytes(32) == 50 * 4 + 50 * 8 + 50 * 8 + 50 * 32
    assert kernel.moved_bytes(4) == 50 * 4 + 50 * 8 + 50 * 8 + 50 * 8


def test_a_scatter_counts_the_rows_that_it_changes(count: hlo_counts.StepCount) -> None:
    kernel = count.kernels[3]
    assert (kernel.rows, kernel.row_bytes) == (100, 100 * 8)
    assert kernel.read_bytes == 50 * 4 + 50 * 8
    assert kernel.written_bytes == 0


def test_collectives_count_once_by_kind(count: hlo_counts.StepCount) -> None:
    assert count.collectives() == {"all-reduce": (1.0, 8000.0)}


def test_a_conditional_counts_its_largest_branch() -> None:
    text = """HloModule f

%small (p: f32[8]) -> f32[8] {
  ROOT %p = f32[8]{0} parameter(0)
}

%large (q: f32[8]) -> f32[8] {
  %q = f32[8]{0} parameter(0)
  %n = f32[8]{0} negate(%q)
  ROOT %m = f32[8]{0} negate(%n)
}

ENTRY %main (i: s32[], a: f32[8]) -> f32[8] {
  %i = s32[] parameter(0)
  %a = f32[8]{0} parameter(1)
  ROOT %c = f32[8]{0} conditional(%i, %a, %a), branch_computations={%small, %large}
}
"""
    counted = hlo_counts.count_step(hlo.parse_program(text), {})
    assert (counted.launches, counted.host_reads) == (2, 1)


def test_arithmetic_with_a_single_number_is_no_kernel() -> None:
    add = hlo.parse_instruction("a", "s32[]{:T(128)} add(%x, %y)")
    fusion = hlo.parse_instruction("f", "s32[] fusion(%x), kind=kLoop, calls=%g")
    marker = hlo.parse_instruction("m", 's32[9]{0} custom-call(), custom_call_target="Sharding"')
    call = hlo.parse_instruction("c", 's32[9]{0} custom-call(), custom_call_target="gemm"')
    assert [hlo_counts.is_free(i) for i in (add, fusion, marker, call)] == [
        True, False, True, False,
    ]  # fmt: skip


def test_a_compiled_loop_over_steps_is_counted() -> None:
    def steps(x: jax.Array, count: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, count, lambda i, y: jnp.tanh(y @ y), x)

    shapes = jax.ShapeDtypeStruct((64, 64), jnp.float32), jax.ShapeDtypeStruct((), jnp.int32)
    text = jax.jit(steps).lower(*shapes).compile().as_text()
    counted = hlo_counts.count_step(hlo.parse_program(text), {})
    assert sum(k.repeats * k.matmul_flops for k in counted.kernels) == 2 * 64**3
    # The matrix is read and written at least once, and hardly moved more than a few times.
    moved = sum(k.repeats * k.moved_bytes(32) for k in counted.kernels)
    assert 2 * 64**2 * 4 <= moved <= 10 * 64**2 * 4
