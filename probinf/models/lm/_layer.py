r"""`Layer`: one block of a Llama transformer: attention, then a gated feed-forward, each on a normalised input.

$x \leftarrow x + W_o\,\mathrm{attend}(\mathrm{norm}(x))$, then
$x \leftarrow x + W_d(\mathrm{silu}(W_g u) \odot W_u u)$ with $u = \mathrm{norm}(x)$. Touvron et al. (2023),
"LLaMA"; RMSNorm: Zhang and Sennrich (2019); gated units: Shazeer (2020).
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from probinf.models.lm._attention import Rotation, Shared, attend, rotate
from probinf.models.lm._config import LanguageModelConfig
from probinf.models.lm._precision import at_least_single, cast_weight, contract

Keep = Callable[[Array, Array], tuple[Array, Array]]


class Layer(eqx.Module):
    """The weights of one block; matrices are [out, in], as in the checkpoints.

    Attributes:
        attention_norm, mlp_norm: scales [D].
        query: [heads * hd, D].
        key, value: [kv * hd, D].
        output: [D, heads * hd].
        gate, up: [hidden, D].
        down: [D, hidden].
    """

    attention_norm: Float[Array, " d"]
    query: Float[Array, "qd d"]
    key: Float[Array, "kd d"]
    value: Float[Array, "kd d"]
    output: Float[Array, "d qd"]
    mlp_norm: Float[Array, " d"]
    gate: Float[Array, "f d"]
    up: Float[Array, "f d"]
    down: Float[Array, "d f"]

    def __call__(
        self,
        x: Float[Array, "n s d"],
        config: LanguageModelConfig,
        rotation: Rotation,
        keep: Keep,
        visible: Bool[Array, "#n s t"],
        shared: Shared | None,
    ) -> tuple[Float[Array, "n s d"], tuple[Array, Array]]:
        """Applies the block.

        Args:
            x: residual stream, in the dtype of the computation; weights are cast to it here, where they are used.
            config: the model's.
            rotation: angles of the positions of x.
            keep: takes the new keys and values [n, s, kv, hd] to those that queries look at, [n, kv, t, hd].
            visible: which of those each query sees.
            shared: keys of the prompt, or None.

        Returns:
            The residual stream, and what `keep` returned.
        """
        inputs = rms_norm(x, self.attention_norm, config.norm_eps)
        queries = _heads(linear(inputs, self.query), config.head_dim)
        new_keys = _heads(linear(inputs, self.key), config.head_dim)
        new_values = _heads(linear(inputs, self.value), config.head_dim)
        keys, values = keep(rotate(new_keys, rotation), new_values)
        x = x + linear(attend(rotate(queries, rotation), keys, values, visible, shared), self.output)
        inputs = rms_norm(x, self.mlp_norm, config.norm_eps)
        x = x + linear(jax.nn.silu(linear(inputs, self.gate)) * linear(inputs, self.up), self.down)
        return x, (keys, values)


def linear(x: Float[Array, "... i"], weight: Float[Array, "o i"]) -> Float[Array, "... o"]:
    """`weight` times x in the dtype of x."""
    weight, x = cast_weight(weight, x)
    return contract("...i,oi->...o", x, weight).astype(x.dtype)


def rms_norm(x: Float[Array, "*b d"], scale: Float[Array, " d"], eps: float) -> Float[Array, "*b d"]:
    """Divides x by its root mean square and multiplies by `scale`; the mean is taken in at least single precision."""
    wide = x.astype(at_least_single(x.dtype))
    normed = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + eps)
    return normed.astype(x.dtype) * scale.astype(x.dtype).reshape((1,) * (x.ndim - 1) + scale.shape)


def _heads(x: Array, head_dim: int) -> Array:
    return x.reshape(*x.shape[:-1], -1, head_dim)
