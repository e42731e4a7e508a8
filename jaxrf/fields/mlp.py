"""The small multilayer perceptron that fields share."""

import flax.linen as nn
from jaxtyping import Array, Float


class MLP(nn.Module):
    """Hidden layers of one width with ReLU, then a linear layer.

    Attributes:
      width: of every hidden layer.
      layers: number of hidden layers.
      outputs: channels that come out, without activation.
      bias: whether layers add one.
    """

    width: int
    layers: int
    outputs: int
    bias: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "*batch c"]) -> Float[Array, "*batch outputs"]:
        for _ in range(self.layers):
            layer = nn.Dense(self.width, self.bias, kernel_init=nn.initializers.he_uniform())
            x = nn.relu(layer(x))
        return nn.Dense(self.outputs, self.bias)(x)
