"""The original NeRF's 8x256 network in jaxrf and in PyTorch: samples trained on a second.

python benchmarks/nerf_torch.py            prints a table in Markdown

One network, 1,024 rays of 64 stratified samples a step, float32, Adam; the steps of both alternate,
so that whatever else the machine does troubles both alike. The last column is the share of the time
that the matrix products of the step alone take in JAX, measured at the same shapes.
"""

import argparse
import dataclasses
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import torch
from made_up import make_scene

from jaxrf.training import pixels as batches
from jaxrf.training import train, transitions
from jaxrf.training.config import NeRFConfig, make_preset

RAYS, SAMPLES = 1024, 64


class TorchNeRF(torch.nn.Module):
    """Eight layers of 256 with a skip after the fifth, density, and a colour head of 128."""

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
        """Raw density and colour of encoded positions and directions."""
        hidden = position
        for index, layer in enumerate(self.trunk):
            if index == 5:
                hidden = torch.cat([position, hidden], dim=-1)
            hidden = torch.relu(layer(hidden))
        seen = torch.cat([self.bottleneck(hidden), direction], dim=-1)
        return self.density(hidden)[..., 0], self.rgb(torch.relu(self.view(seen)))


def encode(x: torch.Tensor, octaves: int) -> torch.Tensor:
    """The values and the sines and cosines of their octaves."""
    scaled = (x[..., None, :] * 2.0 ** torch.arange(octaves)[:, None]).flatten(-2)
    return torch.cat([x, torch.sin(scaled), torch.cos(scaled)], dim=-1)


def make_torch_step() -> Callable[[], object]:
    """A step of training in eager PyTorch, rays drawn at random around a box."""
    torch.manual_seed(0)
    network = TorchNeRF()
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-4)

    def step() -> float:
        directions = torch.nn.functional.normalize(torch.randn(RAYS, 3), dim=-1)
        truth = torch.rand(RAYS, 3)
        edges = torch.linspace(2.0, 6.0, SAMPLES + 1).expand(RAYS, -1)
        depth = edges[:, :-1] + (edges[:, 1:] - edges[:, :-1]) * torch.rand(RAYS, SAMPLES)
        positions = -4.0 * directions[:, None] + depth[..., None] * directions[:, None]
        seen = encode(directions, 4)[:, None].expand(-1, SAMPLES, -1)
        raw, color = network(encode(positions, 10).flatten(0, 1), seen.flatten(0, 1))
        density = torch.nn.functional.softplus(raw).view(RAYS, SAMPLES)
        color = torch.sigmoid(color).view(RAYS, SAMPLES, 3)
        optical = density * (4.0 / SAMPLES)
        before = torch.cumsum(optical, dim=-1) - optical
        weights = torch.exp(-before) * -torch.expm1(-optical)
        rgb = (weights[..., None] * color).sum(1) + (1.0 - weights.sum(1))[:, None]
        loss = torch.mean((rgb - truth) ** 2)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def make_jax_step() -> Callable[[], object]:
    """A step of `jaxrf`'s own training, drawing of rays included."""
    config = dataclasses.replace(
        make_preset("nerf-original"),
        field=NeRFConfig(num_coarse_samples=SAMPLES, num_fine_samples=0),
        batch_rays=RAYS,
    )
    scene = make_scene(views=8, size=64)
    config = transitions.resolve_config(config, scene)
    stage = transitions.first_stage(config, scene.aabb)
    grid = transitions.init_grid(config.field, stage, scene.aabb)
    state = train.init_state(config, stage, grid)
    pixels = batches.to_device(scene.splits["train"])
    run = train.compile_step(config, stage, (scene.near, scene.far), state, pixels)
    course, one = train.make_train_schedule(config), jnp.asarray(1, jnp.int32)

    def step() -> None:
        nonlocal state
        state, _ = jax.block_until_ready(run(state, pixels, course, one))

    return step


def product_seconds() -> float:
    """Seconds that the matrix products of a step take, value and both gradients, one by one."""
    count = RAYS * SAMPLES
    layers = [(63, 256)] + [(256, 256)] * 4 + [(319, 256)] + [(256, 256)] * 2
    layers += [(256, 1), (256, 256), (283, 128), (128, 3)]
    total, known = 0.0, {}
    for index, (inputs, outputs) in enumerate(layers):
        shapes = [((count, inputs), (inputs, outputs)), ((inputs, count), (count, outputs))]
        # Nothing before the first layer and the encoded direction asks for a gradient.
        if index > 0:
            shapes.append(((count, outputs), (outputs, inputs)))
        for pair in shapes:
            if pair not in known:
                a, b = (jnp.ones(shape, jnp.float32) for shape in pair)
                known[pair] = min(timed(lambda a=a, b=b: product(a, b)) for _ in range(6))
            total += known[pair]
    return total


product = jax.jit(jnp.matmul)


def timed(call: Callable[[], object]) -> float:
    """Seconds that a call takes."""
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
    print("| | step ms, median (best) | samples/s | share spent in matrix products |")
    print("|---|---|---|---|")
    for name, values in times.items():
        middle = float(np.median(values))
        share = f"{min(products) / middle:.0%}" if name == "jaxrf" else ""
        rate = RAYS * SAMPLES / middle
        print(f"| {name} | {1e3 * middle:.0f} ({1e3 * min(values):.0f}) | {rate:,.0f} | {share} |")
    ratio = np.median(times["PyTorch"]) / np.median(times["jaxrf"])
    print(f"\njaxrf trains on {ratio:.2f} times as many samples a second.")


if __name__ == "__main__":
    main()
