"""Features of images: crops of two pictures that ship with matplotlib, through a fixed convolutional net.

The net is not trained; its random weights are the same in every run. Its three layers have 16 x 16 x 128, 8 x 8 x 128
and 4 x 4 x 128 numbers a crop: features in 32768, 8192 and 2048 dimensions.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.cbook
import matplotlib.image
import numpy as np
from jaxtyping import Array, Float

SIDE, STRIDE = 64, 32
CHANNELS = 128
LAYERS = ((7, 4, 3), (3, 2, CHANNELS), (3, 2, CHANNELS))  # width, stride and channels in
DIMENSIONS = (2048, 8192, 32768)


class Crops(NamedTuple):
    """[n, 64, 64, 3] of mean 0 and variance 1 each: from the left half of a picture, and from the right."""

    left: np.ndarray
    right: np.ndarray


def pictures() -> dict[str, np.ndarray]:
    """A photograph and a map of heights, [height, width, 3]."""
    photograph = matplotlib.image.imread(_shipped("grace_hopper.jpg"))
    with np.load(_shipped("jacksboro_fault_dem.npz")) as data:
        heights = np.asarray(data["elevation"], np.float64)
    return {"photograph": photograph.astype(np.float64), "terrain": np.repeat(heights[..., None], 3, axis=-1)}


def _shipped(name: str) -> str:
    return str(matplotlib.cbook.get_sample_data(name, asfileobj=False))


def cut(picture: np.ndarray) -> Crops:
    """Overlapping crops; those of the two halves have no pixel in common."""
    height, width, _ = picture.shape

    def half(first: int, last: int) -> np.ndarray:
        rows, columns = range(0, height - SIDE + 1, STRIDE), range(first, last - SIDE + 1, STRIDE)
        crops = np.stack([picture[i : i + SIDE, j : j + SIDE] for i in rows for j in columns])
        centred = crops - crops.mean(axis=(1, 2, 3), keepdims=True)
        return (centred / (centred.std(axis=(1, 2, 3), keepdims=True) + 1e-6)).astype(np.float32)

    return Crops(half(0, width // 2), half(width // 2, width))


def features(crops: np.ndarray) -> dict[int, np.ndarray]:
    """Unit vectors, [n, dimension] in float64, by dimension."""
    layers = [np.asarray(layer, np.float64) for layer in _net(jnp.asarray(crops))]
    return {layer.shape[1]: layer / np.linalg.norm(layer, axis=1, keepdims=True) for layer in layers}


@jax.jit
def _net(images: Float[Array, "n 64 64 3"]) -> list[Array]:
    layers, x = [], images
    for number, (width, stride, channels) in enumerate(LAYERS):
        key = jax.random.fold_in(jax.random.key(0), number)
        scale = math.sqrt(2 / (width * width * channels))
        weights = scale * jax.random.normal(key, (width, width, channels, CHANNELS), x.dtype)
        x = jax.lax.conv_general_dilated(
            x, weights, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = jax.nn.relu(x)
        layers.append(x.reshape(x.shape[0], -1))
    return layers
