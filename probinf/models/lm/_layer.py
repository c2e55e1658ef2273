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

    Matrices that have the same input are one array, one below the other: the product of few rows costs its start, and
    one large product starts once. The other orientation, [in, out], is a tenth faster on CPU, but the products of XLA
    then round differently for other numbers of rows, and results would depend on the number of devices.

    Attributes:
        attention_norm, mlp_norm: scales [D].
        query_key_value: [(heads + 2 * kv) * hd, D], in this order.
        output: [D, heads * hd].
        gate_up: [2 * hidden, D], in this order.
        down: [D, hidden].
    """

    attention_norm: Float[Array, " d"]
    query_key_value: Float[Array, "qkv d"]
    output: Float[Array, "d qd"]
    mlp_norm: Float[Array, " d"]
    gate_up: Float[Array, "two_f d"]
    down: Float[Array, "d f"]

    @property
    def query(self) -> Float[Array, "qd d"]:
        """Its rows of `query_key_value`."""
        return self.query_key_value[: self.output.shape[1]]

    @property
    def key(self) -> Float[Array, "kd d"]:
        """Its rows of `query_key_value`."""
        start, end = self.output.shape[1], self.query_key_value.shape[0]
        return self.query_key_value[start : (start + end) // 2]

    @property
    def value(self) -> Float[Array, "kd d"]:
        """Its rows of `query_key_value`."""
        start, end = self.output.shape[1], self.query_key_value.shape[0]
        return self.query_key_value[(start + end) // 2 :]

    @property
    def gate(self) -> Float[Array, "f d"]:
        """Its rows of `gate_up`."""
        return self.gate_up[: self.down.shape[1]]

    @property
    def up(self) -> Float[Array, "f d"]:
        """Its rows of `gate_up`."""
        return self.gate_up[self.down.shape[1] :]

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
            keep: takes the new keys and values [n, s, kv, hd] to those that queries look at, [n, kv, hd, t] and
                [n, kv, t, hd].
            visible: which of those each query sees.
            shared: keys of the prompt, or None.

        Returns:
            The residual stream, and what `keep` returned.
        """
        inputs = rms_norm(x, self.attention_norm, config.norm_eps)
        heads = linear(inputs, self.query_key_value)
        heads = heads.reshape(*heads.shape[:-1], -1, config.head_dim)
        turned, new_values = jnp.split(heads, [config.num_heads + config.num_kv_heads], axis=2)
        queries, new_keys = jnp.split(rotate(turned, rotation), [config.num_heads], axis=2)
        keys, values = keep(new_keys, new_values)
        x = x + linear(attend(queries, keys, values, visible, shared), self.output)
        inputs = rms_norm(x, self.mlp_norm, config.norm_eps)
        gate, up = jnp.split(linear(inputs, self.gate_up), 2, axis=-1)
        x = x + linear(jax.nn.silu(gate) * up, self.down)
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
