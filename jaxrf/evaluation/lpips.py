"""LPIPS: how different two pictures look to a network trained on natural images.

Zhang, Isola, Efros, Shechtman, Wang: The unreasonable effectiveness of deep features as a
perceptual metric (CVPR 2018), version 0.1 with linear weights, on AlexNet or VGG16. The weights are
not ours to ship: whoever has them gives a file.
"""

from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxrf.core.errors import NUMPY_LOAD_ERRORS, InputError


class Convolution(NamedTuple):
    """One convolution, with a ReLU after it and perhaps a pooling before it.

    layer: its number in torchvision's network, after which its weights are named.
    stride, padding: of the convolution.
    pool: width of the maximum that comes before, of stride 2; 0 for none.
    """

    layer: int
    stride: int = 1
    padding: int = 1
    pool: int = 0


# Each slice ends where its features are compared.
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
# Mean and deviation of the pictures that the networks were trained on, for values in [-1, 1].
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)

Weights = dict[str, Float[Array, "..."]]


def load_weights(path: Path) -> Weights:
    """Weights out of an .npz that holds the state dict of `lpips.LPIPS(net="alex")` or "vgg".

    Whoever has that package makes it so:

        state = lpips.LPIPS(net="alex").state_dict()
        numpy.savez("lpips.npz", **{key: value.numpy() for key, value in state.items()})

    Raises:
      InputError: if it is missing, or not such a file.
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
    """The network that weights belong to; ValueError if it is none that is known."""
    for network in (ALEXNET, VGG16):
        if f"net.slice5.{network[-1][-1].layer}.weight" in weights:
            return network
    raise ValueError("it is of neither AlexNet nor VGG16")


def smallest_side(weights: Weights) -> int:
    """Width and height below which pictures leave nothing to compare."""
    return 31 if find_network(weights) is ALEXNET else 16


def lpips(
    weights: Weights, rendered: Float[Array, "h w 3"], truth: Float[Array, "h w 3"]
) -> Float[Array, ""]:
    """Distance of two pictures in [0, 1]; 0 if they are the same (eq. 1).

    Pictures smaller than `smallest_side` cannot be compared.
    """
    pair = jnp.stack([jnp.clip(rendered, 0.0, 1.0), truth]).transpose(0, 3, 1, 2)
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
    x = jax.lax.conv_general_dilated(
        x,
        weights[f"{name}.weight"],
        (convolution.stride,) * 2,
        [(convolution.padding,) * 2] * 2,
        dimension_numbers=("NCHW", "OIHW", "NCHW"),
    )
    return jax.nn.relu(x + weights[f"{name}.bias"].reshape(1, -1, 1, 1))
