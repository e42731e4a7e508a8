"""LPIPS against the same network in PyTorch, with random weights, as real ones are not included."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from scenes import slow

from jaxrf.core.errors import InputError
from jaxrf.evaluation.lpips import ALEXNET, VGG16, Convolution, load_weights, lpips, smallest_side

# Shapes of the convolutions' weights, with fewer channels than the real networks have.
SHAPES = {
    "alex": (ALEXNET, {0: (5, 3, 11), 3: (6, 5, 5), 6: (7, 6, 3), 8: (4, 7, 3), 10: (4, 4, 3)}),
    "vgg": (
        VGG16,
        {
            0: (4, 3, 3), 2: (4, 4, 3), 5: (5, 4, 3), 7: (5, 5, 3), 10: (6, 5, 3), 12: (6, 6, 3),
            14: (6, 6, 3), 17: (3, 6, 3), 19: (3, 3, 3), 21: (3, 3, 3), 24: (3, 3, 3),
            26: (3, 3, 3), 28: (3, 3, 3),
        },
    ),
}  # fmt: skip


def random_weights(name: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    network, shapes = SHAPES[name]
    weights = {}
    for number, convolutions in enumerate(network):
        for convolution in convolutions:
            outputs, inputs, side = shapes[convolution.layer]
            size = (outputs, inputs, side, side)
            key = f"net.slice{number + 1}.{convolution.layer}"
            weights[f"{key}.weight"] = rng.normal(0, inputs**-0.5 / side, size)
            weights[f"{key}.bias"] = rng.normal(0, 0.1, outputs)
        last = shapes[convolutions[-1].layer][0]
        weights[f"lin{number}.model.1.weight"] = rng.uniform(0, 1, (1, last, 1, 1))
    return {key: value.astype(np.float32) for key, value in weights.items()}


def lpips_in_torch(
    network: tuple[tuple[Convolution, ...], ...],
    weights: dict[str, np.ndarray],
    images: list[np.ndarray],
) -> float:
    tensors = {key: torch.from_numpy(value) for key, value in weights.items()}
    shift = torch.tensor([-0.030, -0.088, -0.188])[None, :, None, None]
    scale = torch.tensor([0.458, 0.448, 0.450])[None, :, None, None]
    features = []
    for image in images:
        x = torch.from_numpy(image).permute(2, 0, 1)[None] * 2 - 1
        x, normalized = (x - shift) / scale, []
        for number, convolutions in enumerate(network):
            for c in convolutions:
                if c.pool:
                    x = torch.nn.functional.max_pool2d(x, c.pool, 2)
                key = f"net.slice{number + 1}.{c.layer}"
                kernel, bias = tensors[f"{key}.weight"], tensors[f"{key}.bias"]
                x = torch.relu(torch.nn.functional.conv2d(x, kernel, bias, c.stride, c.padding))
            normalized.append(x / (x.pow(2).sum(1, keepdim=True).sqrt() + 1e-10))
        features.append(normalized)
    total = 0.0
    for number, (a, b) in enumerate(zip(*features, strict=True)):
        linear = tensors[f"lin{number}.model.1.weight"]
        total += float(torch.nn.functional.conv2d((a - b) ** 2, linear).mean())
    return total


def two_images(height: int = 67, width: int = 90) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [rng.uniform(0, 1, (height, width, 3)).astype(np.float32) for _ in range(2)]


@pytest.mark.parametrize("name", ["alex", "vgg"])
def test_lpips_equals_the_same_network_in_torch(name: str) -> None:
    weights, (first, second) = random_weights(name), two_images()
    expected = lpips_in_torch(SHAPES[name][0], weights, [first, second])
    arrays = {key: jnp.asarray(value) for key, value in weights.items()}
    assert float(lpips(arrays, jnp.asarray(first), jnp.asarray(second))) == pytest.approx(
        expected, rel=1e-4
    )
    assert float(lpips(arrays, jnp.asarray(first), jnp.asarray(first))) == 0.0
    # The rendering is clipped; the target is in [0, 1] already.
    beyond = jnp.where(first > 0.5, first + 1.0, first)
    clipped = jnp.clip(beyond, 0.0, 1.0)
    np.testing.assert_allclose(
        lpips(arrays, beyond, jnp.asarray(second)), lpips(arrays, clipped, jnp.asarray(second))
    )


def test_load_weights_reads_a_state_dict(tmp_path: Path) -> None:
    weights = random_weights("alex")
    np.savez(tmp_path / "lpips.npz", **weights, **{"scaling_layer.shift": np.zeros(3)})
    loaded = load_weights(tmp_path / "lpips.npz")
    assert all(np.array_equal(loaded[key], value) for key, value in weights.items())


@pytest.mark.parametrize(
    ("keep", "message"),
    [(lambda key: "slice5" not in key, "neither AlexNet nor VGG16"),
     (lambda key: "lin3" not in key, "it has no lin3"),
     (lambda key: key != "net.slice2.3.bias", "it has no net.slice2.3")],
)  # fmt: skip
def test_load_weights_rejects_incomplete_or_unknown_networks(
    tmp_path: Path, keep: object, message: str
) -> None:
    assert callable(keep)
    weights = {key: value for key, value in random_weights("alex").items() if keep(key)}
    np.savez(tmp_path / "weights.npz", **weights)
    with pytest.raises(InputError, match=message):
        load_weights(tmp_path / "weights.npz")


def test_load_weights_rejects_missing_and_invalid_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="There is no file"):
        load_weights(tmp_path / "missing.npz")
    (tmp_path / "text.npz").write_text("weights")
    with pytest.raises(InputError, match="does not hold the weights of LPIPS"):
        load_weights(tmp_path / "text.npz")


@pytest.mark.parametrize("name", ["alex", slow("vgg")])
def test_smallest_side_is_the_smallest_image_that_can_be_compared(name: str) -> None:
    weights = {key: jnp.asarray(value) for key, value in random_weights(name).items()}
    side = smallest_side(weights)
    first, second = (jnp.asarray(p) for p in two_images(side, side + 3))
    assert float(lpips(weights, first, second)) > 0.0
    assert not np.isfinite(float(lpips(weights, first[:-1], second[:-1])))
