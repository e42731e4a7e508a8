"""A run whose field is an exact ball, so that its geometry is known."""

import dataclasses
from pathlib import Path

import numpy as np
import scenes
from scenes import ball_poses, first_state, make_scene

from jaxrf.models.packed import PackedModel
from jaxrf.training import runs
from jaxrf.training.config import TrainConfig
from jaxrf.training.config_json import make_user_field
from jaxrf.training.scene_metadata import SceneMetadata

FIELD_SOURCE = '''
import dataclasses
import jax
import jax.numpy as jnp
from jaxrf.fields import Field

@dataclasses.dataclass(frozen=True)
class Ball(Field):
    """A ball of radius 0.8 around (0.1, 0, -0.2), colored by its normals."""
    def init(self, key):
        return {"unused": jnp.zeros(1)}
    def density(self, params, positions, context):
        offset = positions - jnp.array([[0.1, 0.0, -0.2]])
        return 400.0 * jax.nn.sigmoid((0.8 - jnp.linalg.norm(offset, axis=-1)) / 0.01), offset
    def features(self, params, latent):
        return latent
    def color(self, params, features, directions):
        length = jnp.maximum(jnp.linalg.norm(features, axis=-1, keepdims=True), 1e-6)
        return 0.5 + 0.5 * features / length
'''
CENTER, RADIUS = np.array([0.1, 0.0, -0.2]), 0.8


def make_run(config: TrainConfig, **changes: object) -> runs.Run:
    """An untrained run in a box that is not a cube."""
    stage, state = first_state(config, np.array([[-1, -1.2, -1.3], [1, 1, 1.1]], np.float32))
    scene = dataclasses.replace(
        SceneMetadata.from_scene(make_scene(), Path("/data/ball")), **changes
    )
    return runs.Run(Path("runs/one"), config, scene, stage, state, 1.0)


def make_ball_run(folder: Path) -> runs.Run:
    """A run of the ball with cameras above and below it; the field's source goes to a folder."""
    path = folder / "ball.py"
    path.write_text(FIELD_SOURCE)
    source = f"{path}:Ball"
    config = scenes.tiny_nerf(
        field=make_user_field(source),
        field_source=source,
        model=PackedModel(occupancy_resolution=8, steps_per_diagonal=96),
        batch_samples=1 << 11,
    )
    run = make_run(config)
    poses = np.concatenate([ball_poses("train", 6), ball_poses("val", 6)])
    poses[6:, :3] *= np.array([[1.0], [1.0], [-1.0]])  # from below
    poses[6:, :3, 0] *= -1.0
    rows = tuple(tuple(map(float, pose[:3].ravel())) for pose in poses)
    scene = dataclasses.replace(
        run.scene, poses=rows, width=32, height=32, focal=run.scene.focal * 2
    )
    return dataclasses.replace(run, scene=scene)
