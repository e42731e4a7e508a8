"""Training that refines cameras: gradients through every model, recovery, resuming, shards."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float
from scenes import (
    Recorder,
    change,
    differing_leaves,
    first_state,
    make_scene,
    slow,
    tiny_hashgrid,
    tiny_nerf,
)
from steps import make_spec, train_pixels
from textured import textured_scene

from jaxrf.cameras.base import Cameras
from jaxrf.cameras.refinement import CameraAdjustment, adjust_cameras
from jaxrf.cameras.transforms import fit_pose_similarity, transform_poses
from jaxrf.core.errors import InputError
from jaxrf.data.scene import Scene
from jaxrf.evaluation.camera_renderer import TrainedField
from jaxrf.evaluation.scoring import make_render_fn
from jaxrf.fields.base import Field, FieldContext
from jaxrf.models.base import Model
from jaxrf.models.hierarchical import HierarchicalModel
from jaxrf.models.packed import PackedModel
from jaxrf.models.proposal import ProposalModel
from jaxrf.training import checkpoint, loop, runs, transitions
from jaxrf.training.callbacks import NullCallback
from jaxrf.training.config import OptimizerConfig, TrainConfig
from jaxrf.training.pixels import adjust_rays, sample_batch
from jaxrf.training.scene_metadata import SceneMetadata, refined_frame, refined_poses
from jaxrf.training.step import compute_grads, compute_loss


@dataclasses.dataclass(frozen=True)
class Blob(Field):
    """A ball of fog that is smooth everywhere, so that differences are derivatives."""

    def init(self, key: jax.Array) -> dict[str, Array]:
        del key
        return {"color": jnp.array([0.3, -0.2, 0.5])}

    def density(
        self, params: dict[str, Array], positions: Float[Array, "m 3"], context: FieldContext
    ) -> tuple[Float[Array, "m"], Float[Array, "m 3"]]:
        del context
        wave = jnp.sin(2.0 * positions + params["color"][None])
        return 2.0 * jnp.exp(-jnp.sum(positions**2, axis=-1)), wave

    def color(
        self, params: dict[str, Array], features: Float[Array, "m 3"], directions: Array
    ) -> Float[Array, "m 3"]:
        del params
        return jax.nn.sigmoid(features + directions)


def refining(config: TrainConfig, **changes: Any) -> TrainConfig:
    """A configuration resolved for the tiny scene, whose poses it refines."""
    return transitions.resolve_config(change(config, **{"refine": "poses"} | changes), make_scene())


def blob(model: Model | None = None, **changes: Any) -> TrainConfig:
    """The ball of fog, whose programs compile quickly."""
    model = model or HierarchicalModel(num_coarse_samples=24, num_fine_samples=0)
    return tiny_nerf(field=Blob(), model=model, **changes)


def refined_pixels(config: TrainConfig) -> Any:
    """The pixels as the loop hands them to the steps."""
    return loop.Trainer(config, make_scene(), None, None, None).all_pixels


MODELS = {
    "packed": PackedModel(occupancy_resolution=4, steps_per_diagonal=64),
    "hierarchical": HierarchicalModel(num_coarse_samples=24, num_fine_samples=0),
    "proposal": ProposalModel(
        num_proposal_samples=(8,),
        proposal_resolutions=(16,),
        num_nerf_samples=24,
        # Its value depends on the weights of the field, to which no gradient goes.
        interlevel_weight=0.0,
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_gradients_of_adjustments_against_differences(name: str) -> None:
    """Samples stay at their distances, whatever the rays are."""
    config = refining(blob(MODELS[name], batch_samples=1 << 14), refine="lenses")
    # The box is so large that no ray is clipped to it.
    stage, state = first_state(config, np.array([[-4.0] * 3, [4.0] * 3], np.float32))
    # Flat proposals, whose samples do not follow the rays.
    proposals = jax.tree.map(jnp.zeros_like, state.params.proposals)
    params = state.params._replace(proposals=proposals)
    near_far = (3.2, 4.6)
    spec = dataclasses.replace(make_spec(config, stage), near_far=near_far)
    batch = sample_batch(refined_pixels(config), jax.random.key(0), 64, near_far, "white")
    keys = jax.random.split(jax.random.key(1), 64)
    one = jnp.ones(())

    @jax.jit
    def loss(cameras: CameraAdjustment) -> Array:
        changed = params._replace(cameras=cameras)
        value, (metrics, _) = compute_loss(changed, spec, state.grid, one, batch, keys)
        return value + 0.0 * metrics.overflowed

    assert params.cameras is not None and params.cameras.log_focal is not None
    rng = np.random.default_rng(0)
    start = jax.tree.map(
        lambda x: jnp.asarray(0.02 * rng.normal(size=x.shape), jnp.float32), params.cameras
    )
    gradient = jax.grad(loss)(start)
    for _ in range(4):
        direction = jax.tree.map(
            lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), start
        )
        ends = (
            loss(jax.tree.map(lambda x, d, s=sign: x + s * 2e-3 * d, start, direction))
            for sign in (1.0, -1.0)
        )
        slope = (next(ends) - next(ends)) / 4e-3
        products = jax.tree.map(lambda g, d: jnp.sum(g * d), gradient, direction)
        expected = sum(jax.tree.leaves(products))
        assert float(slope) == pytest.approx(float(expected), rel=0.03, abs=2e-5)
    assert all(np.any(np.asarray(part)) for part in jax.tree.leaves(gradient))


def test_rays_of_a_zero_adjustment_are_those_of_the_batch_to_the_bit() -> None:
    config = refining(blob(supersample=2, num_train_scales=2))
    _, state = first_state(config)
    pixels = refined_pixels(config)

    @jax.jit
    def make() -> Any:
        batch = sample_batch(pixels, jax.random.key(3), 50, (2.0, 6.0), "white", 2)
        return batch, adjust_rays(batch, state.params.cameras, (2.0, 6.0))

    batch, adjusted = make()
    assert differing_leaves(adjusted.rays, batch.rays) == []


def test_without_refinement_nothing_is_carried() -> None:
    _, state = first_state(blob())
    assert state.params.cameras is None
    batch = sample_batch(train_pixels(), jax.random.key(0), 10, (2.0, 6.0), "white")
    assert batch.ray_cameras is None
    paths = [str(path) for path, _ in jax.tree_util.tree_leaves_with_path(state)]
    assert not any("camera" in path for path in paths)


@pytest.mark.parametrize("config", [blob(), slow(tiny_hashgrid())])
def test_microbatches_and_shards_add_up_to_the_gradient_of_the_batch(config: TrainConfig) -> None:
    config = refining(config, batch_rays=64)
    stage, state = first_state(config)
    batch = sample_batch(refined_pixels(config), jax.random.key(0), 64, (2.0, 6.0), "white")
    keys = jax.random.split(jax.random.key(1), 64)
    grads = []
    for shards, microbatches in ((1, 1), (2, 2)):
        parts = dataclasses.replace(stage, num_shards=shards, num_microbatches=microbatches)
        spec = make_spec(dataclasses.replace(config, shards=shards), parts)
        compute = jax.jit(partial(compute_grads, spec))
        accum = compute(state.params, state.grid, jnp.ones(()), batch, keys)
        grads.append(accum.grads.cameras)
    np.testing.assert_allclose(grads[1].pose, grads[0].pose, rtol=1e-3, atol=1e-7)
    assert np.any(np.asarray(grads[0].pose))


def test_a_resumed_refinement_gives_the_same_bits(tmp_path: Path) -> None:
    config = refining(blob(), refine="lenses", num_steps=6)
    ema = dataclasses.replace(config.optimizer, ema_decay=0.9)
    config = dataclasses.replace(config, optimizer=ema)
    _, uninterrupted = loop.fit(config, make_scene(), Recorder())
    stage, state = loop.fit(config, make_scene(), Recorder(3))
    manager = runs.open_checkpoints(tmp_path, config)
    runs.save(manager, SceneMetadata.from_scene(make_scene(), tmp_path), stage, state, 1.0, None)
    manager.wait_until_finished()
    manager.close()
    target = jax.eval_shape(lambda: state)
    manager = runs.open_checkpoints(tmp_path, config)
    restored = jax.tree.map(jnp.asarray, checkpoint.restore(manager, int(state.step), target))
    manager.close()
    _, resumed = loop.fit(config, make_scene(), Recorder(), (stage, restored))
    assert differing_leaves(resumed, uninterrupted) == []
    assert np.any(np.asarray(resumed.params.cameras.pose))


def _photographed(config: TrainConfig) -> Scene:
    """The tiny scene with images of the ball of fog itself."""
    scene, (stage, state) = make_scene(), first_state(config)
    trained = TrainedField(
        config, stage, state.params, state.grid, (2.0, 6.0), np.ones(3, np.float32)
    )
    render, splits = make_render_fn(trained), {}
    for name in ("train", "test"):
        split = scene.splits[name]
        images = np.full((*split.images.shape[:3], 4), 255, np.uint8)
        for index, image in enumerate(images):
            image[..., :3] = np.rint(255.0 * render(split.cameras, index).rgb)
        splits[name] = dataclasses.replace(split, images=images)
    return dataclasses.replace(scene, splits=splits)


def _disturb(cameras: Cameras, degrees: float, distance: float) -> Cameras:
    rng = np.random.default_rng(0)
    moves = rng.normal(size=(2, len(cameras), 3))
    moves /= np.linalg.norm(moves, axis=-1, keepdims=True)
    changes = np.concatenate([np.radians(degrees) * moves[0], distance * moves[1]], axis=-1)
    return adjust_cameras(cameras, CameraAdjustment(changes.astype(np.float32)), np)


def _mean_angle(poses: np.ndarray, exact: np.ndarray) -> float:
    aligned = transform_poses(fit_pose_similarity(poses, exact), poses)
    change = np.einsum("nji,njk->nik", aligned[:, :3, :3], exact[:, :3, :3])
    cosine = (np.trace(change, axis1=1, axis2=2) - 1.0) / 2.0
    return float(np.degrees(np.arccos(np.clip(cosine, -1.0, 1.0))).mean())


def test_a_single_image_cannot_be_refined() -> None:
    scene = make_scene()
    split = scene.splits["train"]
    one = dataclasses.replace(
        split, names=split.names[:1], images=split.images[:1], cameras=split.cameras[0]
    )
    with pytest.raises(InputError, match=r"refine is poses, but there is a single.*\.$"):
        transitions.resolve_config(
            tiny_nerf(refine="poses"), dataclasses.replace(scene, splits={"train": one})
        )


def test_disturbed_cameras_are_recovered_and_test_cameras_aligned() -> None:
    """With the field of the images, which hardly changes, so that only cameras can be wrong."""
    optimizer = OptimizerConfig(
        mlp_lr=1e-6, camera_lr=0.3, camera_lr_final_mult=0.01, camera_pull=0.0
    )
    config = refining(blob(num_steps=300, steps_per_dispatch=100, batch_rays=192))
    config = dataclasses.replace(config, optimizer=optimizer)
    scene = _photographed(change(config, refine="none"))
    train, test = scene.splits["train"], scene.splits["test"]
    exact = np.asarray(train.cameras.T_world_camera, np.float64)
    disturbed = dataclasses.replace(train, cameras=_disturb(train.cameras, 2.0, 0.05))
    given = dataclasses.replace(scene, splits={"train": disturbed})
    stage, state = loop.fit(config, given, Recorder())
    metadata = SceneMetadata.from_scene(given, None)
    before, refined = refined_poses(metadata, state.params.cameras)
    assert _mean_angle(before, exact) > 1.5
    assert _mean_angle(refined, exact) < 0.15
    # All cameras together have not been moved, as the field was not.
    assert refined_frame(metadata, state.params).scale == pytest.approx(1.0, abs=0.02)
    run = runs.Run(Path("unused"), config, metadata, stage, state, 0.0)
    off = dataclasses.replace(test, cameras=_disturb(test.cameras, 1.0, 0.0))
    aligned = runs.align_split(run, off)
    poses = np.asarray(aligned.cameras.T_world_camera, np.float64)
    target = np.asarray(test.cameras.T_world_camera, np.float64)
    assert np.abs(poses - target).max() < 0.02


class NoteTaker(NullCallback):
    """Keeps the sentences."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def on_note(self, sentence: str) -> None:
        self.notes.append(sentence)


@pytest.mark.parametrize("refine_from", ["matches", "given"])
def test_refinement_begins_with_poses_that_fit_matched_points(refine_from: str) -> None:
    scene = textured_scene(24, 240, 180)
    train = scene.splits["train"]
    exact = np.asarray(train.cameras.T_world_camera, np.float64)
    disturbed = dataclasses.replace(train, cameras=_disturb(train.cameras, 2.0, 0.02))
    given = dataclasses.replace(scene, splits={"train": disturbed})
    config = change(
        blob(num_steps=1, steps_per_dispatch=1), refine="poses", refine_from=refine_from
    )
    config = transitions.resolve_config(config, given)
    callback = NoteTaker()
    _, state = loop.fit(config, given, callback)
    metadata = SceneMetadata.from_scene(given, None)
    _, poses = refined_poses(metadata, state.params.cameras)
    # Cameras rest in the first step.
    if refine_from == "given":
        assert callback.notes == [] and not np.any(state.params.cameras.pose)
        return
    (note,) = callback.notes
    assert "24 of 24 poses are corrected" in note
    assert _mean_angle(poses, exact) < 0.3


def test_right_poses_begin_as_they_are() -> None:
    scene = textured_scene(24, 240, 180)
    config = change(blob(num_steps=1, steps_per_dispatch=1), refine="poses")
    callback = NoteTaker()
    _, state = loop.fit(transitions.resolve_config(config, scene), scene, callback)
    assert callback.notes == [] and not np.any(state.params.cameras.pose)
