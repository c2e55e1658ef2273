"""`LanguageModel`: its forward pass against one in NumPy, gradients, dtypes, and what it refuses.

Planted bugs, run every time in `test_planted_*`: rotary pairs side by side instead of half a head apart; query heads
dealt to key heads in turn; a query that sees its successor; norms without their scale.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from probinf.models import lm
from probinf.models.lm import LanguageModel, _attention, _layer
from tests.models.lm._tiny import CONFIG, reference, tiny, tokens

ONE_LAYER = dataclasses.replace(CONFIG, num_layers=1)
SEQUENCES = tokens(0, 2, 9)

run = jax.jit(LanguageModel.__call__)


def furthest(model, run=run):
    """The largest difference from the reference, relative to the largest logit."""
    out = run(model, SEQUENCES)
    expected = [reference(model, sequence) for sequence in np.asarray(SEQUENCES)]
    logits = np.stack([one for one, _ in expected])
    worst = np.abs(out.logits - logits).max()
    if out.values is not None:
        worst = max(worst, *(np.abs(one - values).max() for one, (_, values) in zip(out.values, expected, strict=True)))
    return worst / np.abs(logits).max()


# --- the numbers ---


def test_forward_is_the_reference():
    assert furthest(tiny()) < 1e-5


@pytest.mark.usefixtures("x64")
def test_forward_is_the_reference_in_double_precision():
    assert furthest(tiny(jnp.float64)) < 1e-13


@pytest.mark.parametrize(
    "change",
    [{"num_kv_heads": 6}, {"num_kv_heads": 1}, {"tie_embeddings": False, "value_head": False}],
    ids=["a head each", "one for all", "untied"],
)
def test_forward_is_the_reference_in_other_shapes(change):
    model = tiny(config=dataclasses.replace(ONE_LAYER, **change))
    assert (model.value is None) == ("value_head" in change)
    assert furthest(model) < 1e-5


def _side_by_side(x, rotation):
    cosine, sine = (jnp.repeat(part[..., : x.shape[-1] // 2], 2, axis=-1) for part in rotation)
    turned = jnp.stack([-x[..., 1::2], x[..., ::2]], -1).reshape(x.shape)
    return x * cosine + turned * sine


def _in_turn(attend):
    def planted(queries, keys, *others):
        order = np.arange(queries.shape[2]).reshape(-1, keys.shape[1]).T.ravel()
        return attend(queries[:, :, order], keys, *others)

    return planted


def _one_ahead(attend):
    return lambda q, k, v, visible, shared: attend(q, k, v, jnp.roll(visible, 1, axis=1).at[:, 0].set(True), shared)


PLANTS = {
    "side by side": (_layer, "rotate", lambda _: _side_by_side),
    "in turn": (_layer, "attend", _in_turn),
    "one ahead": (_layer, "attend", _one_ahead),
    "no scale": (_layer, "rms_norm", lambda norm: lambda x, scale, eps: norm(x, jnp.ones_like(scale), eps)),
}


@pytest.mark.parametrize("name", PLANTS)
def test_planted_bugs_are_seen(monkeypatch, name):
    module, function, plant = PLANTS[name]
    monkeypatch.setattr(module, function, plant(getattr(module, function)))
    # A new function, so that it is traced with the plant.
    assert furthest(tiny(config=ONE_LAYER), jax.jit(lambda *a: LanguageModel.__call__(*a))) > 1e-2


def test_leading_axes_are_carried_along():
    model = tiny()
    shapes = jax.eval_shape(LanguageModel.__call__, model, jnp.zeros((2, 3, 5), jnp.int32))
    assert (shapes.logits.shape, shapes.values.shape) == ((2, 3, 5, 11), (2, 3, 5))
    single, both = run(model, SEQUENCES[0]), run(model, SEQUENCES)
    np.testing.assert_allclose(single.logits, both.logits[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(single.values, both.values[0], rtol=1e-5, atol=1e-5)


# --- gradients ---


@pytest.mark.usefixtures("x64")
def test_gradient_of_cross_entropy_is_its_slope():
    leaves, structure = jax.tree.flatten(tiny(jnp.float64, config=ONE_LAYER))
    along = jax.tree.leaves(tiny(jnp.float64, config=ONE_LAYER, seed=1))
    sequences = tokens(2, 2, 8)
    # Padding, as training has it: one sequence ends early.
    counted = jnp.asarray(np.arange(7)[None] < np.array([[7], [3]]), jnp.float64)

    def loss(model):
        out = model(sequences[:, :-1])
        log_probs = jax.nn.log_softmax(out.logits)
        of_next = jnp.take_along_axis(log_probs, sequences[:, 1:, None], axis=-1)[..., 0]
        return -jnp.sum(of_next * counted) + jnp.sum(out.values**2 * counted)

    @jax.jit
    @jax.value_and_grad
    def at(leaves):
        return loss(jax.tree.unflatten(structure, leaves))

    _, gradient = at(leaves)
    assert all(np.isfinite(leaf).all() for leaf in gradient)
    slope = sum(np.vdot(one, other) for one, other in zip(gradient, along, strict=True))
    ahead, behind = (at([leaf + step * a for leaf, a in zip(leaves, along, strict=True)])[0] for step in (1e-6, -1e-6))
    np.testing.assert_allclose(slope, (ahead - behind) / 2e-6, rtol=1e-7)


# --- dtypes ---


def test_weights_in_bfloat16_are_cast_where_they_are_used():
    narrow = tiny(jnp.bfloat16)
    assert narrow.compute_dtype == "float32"
    assert run(narrow, SEQUENCES).logits.dtype == jnp.float32
    assert furthest(narrow) < 1e-5  # of a reference with these weights in double precision
    small = tiny(jnp.bfloat16, config=ONE_LAYER)
    gradient = jax.jit(jax.grad(lambda model: jnp.sum(jax.nn.logsumexp(model(SEQUENCES).logits, axis=-1))))(small)
    for one, weight in zip(jax.tree.leaves(gradient), jax.tree.leaves(small), strict=True):
        assert one.dtype == weight.dtype
        assert np.isfinite(np.asarray(one, np.float32)).all()


def test_computation_in_bfloat16_is_close_and_gives_logits_in_single_precision():
    model = tiny(jnp.bfloat16, "bfloat16")
    out = run(model, SEQUENCES)
    assert out.logits.dtype == out.values.dtype == jnp.float32
    assert model.empty_cache(2, 3).keys[0].dtype == jnp.bfloat16
    # A mantissa of 8 bits through two layers; an error of layout gives differences of order one.
    assert 1e-4 < furthest(model) < 0.05


def test_new_weights_recompile_nothing():
    traced = []

    @jax.jit
    def count(model, sequences):
        traced.append(1)
        return jnp.sum(model.embed[sequences])

    for seed in (0, 1):
        count(tiny(seed=seed), SEQUENCES)
    assert len(traced) == 1


# --- bad input ---


@pytest.mark.parametrize("bad", [-1, 11])
def test_an_unknown_token_makes_its_sequence_nan_and_no_other(bad):
    out = run(tiny(), SEQUENCES.at[0, 2].set(bad))
    assert np.isnan(out.logits[0, 2:]).all()
    assert np.isfinite(out.logits[1]).all()


def test_lengths_out_of_the_context_are_refused():
    model = tiny()
    with pytest.raises(ValueError, match=r"33 tokens .* `max_length` = 32 .* shorten"):
        model(tokens(0, 33))
    with pytest.raises(ValueError, match=r"a prompt of 40 tokens .* `max_length` = 32 .* shorten"):
        model.prefill(tokens(0, 40), 4)
    with pytest.raises(ValueError, match=r"`max_length` = 32"):
        model.empty_cache(2, 33)
    for length in (0, 9):
        with pytest.raises(ValueError, match=f"`length` is {length}, but the prompt has 8 tokens"):
            model.prefill(tokens(0, 8), length)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"num_kv_heads": 4}, ValueError, "not a multiple of `num_kv_heads` = 4"),
        ({"head_dim": 5}, ValueError, "`head_dim` is 5"),
        ({"num_layers": 0}, ValueError, "`num_layers` is 0"),
        ({"norm_eps": 0.0}, ValueError, "`norm_eps` is 0"),
        # The checker of types may speak first.
        ({"dim": 2.5}, TypeError, "dim"),
        ({"rope_theta": "big"}, TypeError, "rope_theta"),
        ({"value_head": 1}, TypeError, "value_head"),
    ],
)
def test_impossible_configurations_are_refused(change, error, text):
    with pytest.raises(error, match=text):
        dataclasses.replace(CONFIG, **change)


def test_fresh_weights_have_the_stated_scales(key):
    config = dataclasses.replace(ONE_LAYER, dim=64, hidden_dim=256, num_heads=16, tie_embeddings=False)
    model = jax.jit(lm.init_language_model, static_argnums=1)(key, config)
    (layer,) = model.layers
    residual = 2**-0.5
    for matrix, scale in (
        (model.embed, 0.02),
        (model.output, 0.02),
        (layer.query, 64**-0.5),
        (layer.gate, 64**-0.5),
        (layer.output, residual * 64**-0.5),
        (layer.down, residual * 256**-0.5),
    ):
        # Six standard errors of a standard deviation, of at least 704 entries: false alarm below 1e-8 each.
        assert abs(np.std(matrix) / scale - 1) < 6 / np.sqrt(2 * matrix.size)
    matrices = [leaf for leaf in jax.tree.leaves(model) if leaf.ndim == 2]
    assert len({float(leaf[0, 0]) for leaf in matrices}) == len(matrices)  # each from a key of its own
    assert (np.asarray(layer.mlp_norm) == 1).all()
    assert (np.asarray(model.value) == 0).all()


def test_dtypes_that_cannot_be_had_are_refused(key):
    with pytest.raises(ValueError, match=r'`dtype` is "float64", but JAX computes in single precision'):
        lm.init_language_model(key, CONFIG, "float64")
    with pytest.raises(ValueError, match="weights are floats"):
        lm.init_language_model(key, CONFIG, "int32")
    with pytest.raises(ValueError, match="`compute_dtype` is 'int8'"):
        lm.init_language_model(key, CONFIG, compute_dtype="int8")


def test_double_precision_is_refused_where_it_would_be_single():
    with pytest.raises(ValueError, match='`compute_dtype` is "float64"'):
        tiny(compute_dtype="float64")(tokens(0, 3))


def test_a_query_that_sees_nothing_gives_a_finite_number():
    keys, values = jnp.ones((1, 2, 4, 3)), jnp.ones((1, 2, 3, 4))
    shared = _attention.Shared(keys[0], values[0], jnp.zeros(3, bool))

    def mixed(queries):
        return _attention.attend(queries, keys, values, jnp.zeros((1, 2, 3), bool), shared)

    value, gradient = jax.jit(jax.value_and_grad(lambda q: jnp.sum(mixed(q))))(jnp.ones((1, 2, 4, 4)))
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
