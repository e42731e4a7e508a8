"""LPIPS: perceptual distance of two images, from features of a network for natural images.

Zhang, Isola, Efros, Shechtman, Wang: The unreasonable effectiveness of deep features as a
perceptual metric (CVPR 2018), version 0.1 with linear weights, on AlexNet or VGG16. The weights are
not distributed with this library; users supply them as a file.
"""

from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxrf.core.errors import NUMPY_LOAD_ERRORS, InputError


class Convolution(NamedTuple):
    """A convolution followed by a ReLU, with optional max pooling before it.

    Attributes:
      layer: its number in torchvision's network, which is part of its weights' names.
      stride, padding: of the convolution, in pixels.
      pool: width of the max pooling before it, of stride 2; 0 for none.
    """

    layer: int
    stride: int = 1
    padding: int = 1
    pool: int = 0


# Convolutions in slices; the features at the end of each slice are compared.
ALEXNET = (
    (Convolution(0, stride=4, padding=2),),
    (Convolution(3, padding=2, pool=3),),
    (Convolution(6, pool=3),),
    (Convolution(8),),
    (Convolution(10),),
)
VGG16 = (
    (Convolution(0), Convolution(2)),
    (Convolution(5, pool=2), Convolution(7)),
    (Convolution(10, pool=2), Convolution(12), Convolution(14)),
    (Convolution(17, pool=2), Convolution(19), Convolution(21)),
    (Convolution(24, pool=2), Convolution(26), Convolution(28)),
)
# Mean and standard deviation of the networks' training images, for values in [-1, 1].
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)

Weights = dict[str, Float[Array, "..."]]


def load_weights(path: Path) -> Weights:
    """Loads weights from an .npz file with the state dict of `lpips.LPIPS(net="alex")` or "vgg".

    With the package lpips installed, such a file is written by

        state = lpips.LPIPS(net="alex").state_dict()
        numpy.savez("lpips.npz", **{key: value.numpy() for key, value in state.items()})

    Raises:
      InputError: if the file is missing or does not hold such a state dict.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            weights = {key: jnp.asarray(arrays[key], jnp.float32) for key in arrays.files}
        for number, convolutions in enumerate(find_network(weights)):
            names = [f"net.slice{number + 1}.{c.layer}" for c in convolutions]
            missing = [
                n for n in names if f"{n}.weight" not in weights or f"{n}.bias" not in weights
            ]
            missing += [] if f"lin{number}.model.1.weight" in weights else [f"lin{number}"]
            if missing:
                raise ValueError(f"it has no {missing[0]}")
    except FileNotFoundError as error:
        raise InputError(f"There is no file {path}: name the weights of LPIPS.") from error
    except NUMPY_LOAD_ERRORS as error:
        reason = str(error).split("\n", 1)[0]
        raise InputError(
            f"{path} does not hold the weights of LPIPS ({reason}): save the state dict of "
            "lpips.LPIPS as .npz."
        ) from error
    return weights


def find_network(weights: Weights) -> tuple[tuple[Convolution, ...], ...]:
    """The network that the weights belong to.

    Raises:
      ValueError: if it is neither AlexNet nor VGG16.
    """
    for network in (ALEXNET, VGG16):
        if f"net.slice5.{network[-1][-1].layer}.weight" in weights:
            return network
    raise ValueError("it is of neither AlexNet nor VGG16")


def smallest_side(weights: Weights) -> int:
    """Minimum width and height of images, in pixels: smaller ones have no features to compare."""
    return 31 if find_network(weights) is ALEXNET else 16


def lpips(
    weights: Weights, rgb: Float[Array, "h w 3"], target_rgb: Float[Array, "h w 3"]
) -> Float[Array, ""]:
    """Perceptual distance of two images; 0 if they are equal (eq. 1).

    Args:
      weights: see `load_weights`.
      rgb: rendered image, at least `smallest_side` high and wide; clipped to [0, 1].
      target_rgb: image in [0, 1] to compare with.
    """
    pair = jnp.stack([jnp.clip(rgb, 0.0, 1.0), target_rgb]).transpose(0, 3, 1, 2)
    shift, scale = (jnp.asarray(v).reshape(1, 3, 1, 1) for v in (SHIFT, SCALE))
    x = (2.0 * pair - 1.0 - shift) / scale
    total = jnp.zeros(())
    for number, convolutions in enumerate(find_network(weights)):
        for convolution in convolutions:
            x = _convolve(weights, f"net.slice{number + 1}.{convolution.layer}", convolution, x)
        norm = jnp.sqrt(jnp.sum(jnp.square(x), axis=1, keepdims=True))
        unit = x / (norm + 1e-10)
        squared = jnp.square(unit[0] - unit[1])
        linear = weights[f"lin{number}.model.1.weight"].reshape(-1, 1, 1)
        total = total + jnp.mean(jnp.sum(linear * squared, axis=0))
    return total


def _convolve(
    weights: Weights, name: str, convolution: Convolution, x: Float[Array, "2 c h w"]
) -> Float[Array, "2 d y x"]:
    if width := convolution.pool:
        window, strides = (1, 1, width, width), (1, 1, 2, 2)
        x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, strides, "VALID")

    def convolve_image(image: Float[Array, "c h w"]) -> Float[Array, "d y x"]:
        return jax.lax.conv_general_dilated(
            image[None],
            weights[f"{name}.weight"],
            (convolution.stride,) * 2,
            [(convolution.padding,) * 2] * 2,
            dimension_numbers=("NCHW", "OIHW", "NCHW"),
        )[0]

    # One image after the other: in a batch they may be rounded differently, and equal images would
    # have a distance.
    x = jax.lax.map(convolve_image, x)
    return jax.nn.relu(x + weights[f"{name}.bias"].reshape(1, -1, 1, 1))
