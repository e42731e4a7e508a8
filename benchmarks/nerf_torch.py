"""Samples per second that jaxrf and PyTorch train the original NeRF's 8x256 network on.

python benchmarks/nerf_torch.py            prints a table in Markdown

Both train one network on 1,024 rays of 64 stratified samples per step, in float32 with Adam. Their
steps alternate, so that other load on the machine affects both alike. The last column is the
fraction of the time that the matrix products of the step take in JAX, measured at the same shapes.
"""

import argparse
import dataclasses
import functools
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import torch
from random_scene import make_scene

from jaxrf.models.hierarchical import HierarchicalModel
from jaxrf.parallel import devices
from jaxrf.presets import nerf_original
from jaxrf.training import schedule, transitions
from jaxrf.training.compile_ahead import compile_steps
from jaxrf.training.losses import make_rgb_loss_fn
from jaxrf.training.pixels import to_device
from jaxrf.training.state import init_state
from jaxrf.training.step import StepSpec

RAYS, SAMPLES = 1024, 64


class TorchNeRF(torch.nn.Module):
    """Eight layers of 256 with a skip after the fifth, density, and a color head of 128."""

    def __init__(self) -> None:
        super().__init__()
        widths = [63] + [256] * 4 + [256 + 63] + [256] * 2
        self.trunk = torch.nn.ModuleList(torch.nn.Linear(width, 256) for width in widths)
        self.density = torch.nn.Linear(256, 1)
        self.bottleneck = torch.nn.Linear(256, 256)
        self.view = torch.nn.Linear(256 + 27, 128)
        self.rgb = torch.nn.Linear(128, 3)

    def forward(
        self, position: torch.Tensor, direction: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns raw density and color of encoded positions and directions."""
        hidden = position
        for index, layer in enumerate(self.trunk):
            if index == 5:
                hidden = torch.cat([position, hidden], dim=-1)
            hidden = torch.relu(layer(hidden))
        features = torch.cat([self.bottleneck(hidden), direction], dim=-1)
        return self.density(hidden)[..., 0], self.rgb(torch.relu(self.view(features)))


def encode(x: torch.Tensor, num_frequencies: int) -> torch.Tensor:
    """Returns the values and their sines and cosines at each frequency."""
    scaled = (x[..., None, :] * 2.0 ** torch.arange(num_frequencies)[:, None]).flatten(-2)
    return torch.cat([x, torch.sin(scaled), torch.cos(scaled)], dim=-1)


def make_torch_step() -> Callable[[], object]:
    """Returns a training step in eager PyTorch, with random rays around a box."""
    torch.manual_seed(0)
    network = TorchNeRF()
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-4)

    def step() -> float:
        directions = torch.nn.functional.normalize(torch.randn(RAYS, 3), dim=-1)
        target_rgb = torch.rand(RAYS, 3)
        edges = torch.linspace(2.0, 6.0, SAMPLES + 1).expand(RAYS, -1)
        depth = edges[:, :-1] + (edges[:, 1:] - edges[:, :-1]) * torch.rand(RAYS, SAMPLES)
        positions = -4.0 * directions[:, None] + depth[..., None] * directions[:, None]
        views = encode(directions, 4)[:, None].expand(-1, SAMPLES, -1)
        raw, color = network(encode(positions, 10).flatten(0, 1), views.flatten(0, 1))
        density = torch.nn.functional.softplus(raw).view(RAYS, SAMPLES)
        color = torch.sigmoid(color).view(RAYS, SAMPLES, 3)
        optical = density * (4.0 / SAMPLES)
        before = torch.cumsum(optical, dim=-1) - optical
        weights = torch.exp(-before) * -torch.expm1(-optical)
        rgb = (weights[..., None] * color).sum(1) + (1.0 - weights.sum(1))[:, None]
        loss = torch.mean((rgb - target_rgb) ** 2)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def make_jax_step() -> Callable[[], object]:
    """Returns a training step of jaxrf, sampling of rays included."""
    config = dataclasses.replace(
        nerf_original(),
        model=HierarchicalModel(num_coarse_samples=SAMPLES, num_fine_samples=0),
        batch_rays=RAYS,
    )
    scene = make_scene(views=8, size=64)
    config = transitions.resolve_config(config, scene)
    stage = transitions.first_stage(config, scene.aabb)
    grid = transitions.init_grid(config, stage, scene.aabb)
    state = init_state(config, stage, grid)
    pixels = to_device(scene.splits["train"], config.image_scales())
    near_far, mesh = (scene.near, scene.far), devices.make_mesh(1)
    spec = StepSpec(config, stage, near_far, make_rgb_loss_fn(config.loss), mesh)
    run = compile_steps(spec, state, pixels)
    key, table = schedule.training_key(config), schedule.make_train_schedule(config)

    def step() -> None:
        nonlocal state
        state, _ = jax.block_until_ready(run(state, pixels, key, table, jnp.asarray(1)))

    return step


def product_seconds() -> float:
    """Returns the seconds of all matrix products of a step: values and both gradients."""
    count = RAYS * SAMPLES
    layers = [(63, 256)] + [(256, 256)] * 4 + [(319, 256)] + [(256, 256)] * 2
    layers += [(256, 1), (256, 256), (283, 128), (128, 3)]
    total, measured = 0.0, {}
    for index, (inputs, outputs) in enumerate(layers):
        shapes = [((count, inputs), (inputs, outputs)), ((inputs, count), (count, outputs))]
        # The encoded inputs need no gradient.
        if index > 0:
            shapes.append(((count, outputs), (outputs, inputs)))
        for pair in shapes:
            if pair not in measured:
                a, b = (jnp.ones(shape, jnp.float32) for shape in pair)
                measured[pair] = min(timed(functools.partial(product, a, b)) for _ in range(6))
            total += measured[pair]
    return total


product = jax.jit(jnp.matmul)


def timed(call: Callable[[], object]) -> float:
    """Returns the seconds of a call."""
    started = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    repeats = parser.parse_args().repeats
    steps = {"PyTorch": make_torch_step(), "jaxrf": make_jax_step()}
    times: dict[str, list[float]] = {name: [] for name in steps}
    products = []
    for repeat in range(repeats + 2):
        for name, step in steps.items():
            elapsed = timed(step)
            if repeat >= 2:
                times[name].append(elapsed)
        if repeat % 5 == 2:
            products.append(product_seconds())
    print(f"{jax.devices()[0]}, torch {torch.__version__} on {torch.get_num_threads()} threads\n")
    print("| | step ms, median (best) | samples/s | fraction spent in matrix products |")
    print("|---|---|---|---|")
    for name, values in times.items():
        median = float(np.median(values))
        fraction = f"{min(products) / median:.0%}" if name == "jaxrf" else ""
        rate = RAYS * SAMPLES / median
        print(
            f"| {name} | {1e3 * median:.0f} ({1e3 * min(values):.0f}) | {rate:,.0f} | {fraction} |"
        )
    ratio = np.median(times["PyTorch"]) / np.median(times["jaxrf"])
    print(f"\njaxrf trains on {ratio:.2f} times as many samples per second.")


if __name__ == "__main__":
    main()
