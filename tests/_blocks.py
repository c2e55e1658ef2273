"""The registry of public compiled blocks: `tests/test_package.py` lowers each of them for CPU, CUDA and TPU.

A new block is one entry: a function without arguments that returns `(function, arguments)`. The arguments are the
arrays (or `jax.ShapeDtypeStruct`s) that are traced; everything static lives in `function`. Blocks are built when
they are tested, so an entry may import and construct what it likes.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

Block = tuple[Callable[..., Any], tuple[Any, ...]]

BLOCKS: dict[str, Callable[[], Block]] = {}

KEY = jax.eval_shape(lambda: jax.random.key(0))  # not a key: the registry must not start a backend when imported


def block(function: Callable[[], Block]) -> Callable[[], Block]:
    """Adds a block to `BLOCKS` under its function's name."""
    if function.__name__ in BLOCKS:
        raise ValueError(f"two blocks are called `{function.__name__}`: rename one")
    BLOCKS[function.__name__] = function
    return function


def vector(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


# --- core ---


@block
def core_population_readings() -> Block:
    from probinf import core

    def read(log_weights):
        weighed = core.weigh(log_weights)
        return weighed.normalised(), weighed.log_mean, weighed.ess

    return read, (vector(64),)


@block
def core_verbs() -> Block:
    import probinf as pb
    from probinf import samplers

    def run(key, ys):
        start, loop = jax.random.split(key)
        resample = pb.resample(samplers.multinomial, when=pb.ess_below(0.5), look_ahead=lambda step, x: -0.1 * x**2)
        drift = pb.propagate(lambda key, y, x: 0.9 * x + jax.random.normal(key))
        weigh = pb.reweight(lambda y, x: -0.5 * (y - x) ** 2)
        body = pb.sequence(resample, drift, weigh, pb.adapt(lambda step, population: population.context))
        return pb.iterate(body, over=ys)(loop, pb.spawn(jax.random.normal, 64)(start))

    return run, (KEY, vector(8))


@block
def core_bounded_loop() -> Block:
    import probinf as pb

    def run(key):
        start, loop = jax.random.split(key)
        shrink = pb.reweight(lambda step, x: -0.1 * x**2)
        return pb.iterate(shrink, until=lambda population: population.ess < 20, max_steps=50)(
            loop, pb.spawn(jax.random.normal, 64)(start)
        )

    return run, (KEY,)


# --- samplers ---


def _resampling(name: str, pinned: bool) -> Callable[[], Block]:
    def build() -> Block:
        from probinf import samplers

        return lambda key, weights: getattr(samplers, name)(key, weights, pinned=pinned), (KEY, vector(64))

    return build


for _name in ("multinomial", "systematic", "stratified", "residual", "ssp"):
    for _pinned in (False, True):
        BLOCKS[f"samplers_{_name}{'_pinned' if _pinned else ''}"] = _resampling(_name, _pinned)


def local_level():
    from probinf import models

    return models.StateSpaceModel(
        initial=lambda: dist.Normal(0.0, 1.0),
        transition=lambda t, x: dist.Normal(x, 0.3),
        observation=lambda t, x: dist.Normal(x, 1.0),
    )


@block
def samplers_particle_filter() -> Block:
    from probinf import samplers

    def run(key, ys):
        out = samplers.particle_filter(key, local_level().bootstrap(ys), num_particles=64, quantiles=(0.05, 0.5, 0.95))
        return out.log_evidence, out.ess, out.mean, out.quantiles, out.status

    return run, (KEY, vector(16))


@block
def samplers_particle_filter_with_replicates_and_history() -> Block:
    from probinf import samplers

    def run(key, ys):
        out = samplers.particle_filter(
            key, local_level().bootstrap(ys), num_particles=64, history=True, num_replicates=3
        )
        return out.log_evidence, out.log_evidence_variance, out.history

    return run, (KEY, vector(16))


def _kernel(make: Callable[[Any], Any]) -> Callable[[], Block]:
    def build() -> Block:
        import probinf as pb
        from probinf import samplers

        def run(key, positions):
            target = pb.Target(lambda x: -jnp.sum(jnp.cosh(x)))
            kernel = make(samplers)
            init_keys, step_keys = jax.random.split(key, (2, 4))
            states = jax.vmap(lambda k, x: kernel.init(k, target, x))(init_keys, positions)
            return jax.vmap(lambda k, state: kernel.step(k, target, state))(step_keys, states)

        return run, (KEY, vector(4, 3))

    return build


BLOCKS["samplers_random_walk"] = _kernel(lambda samplers: samplers.random_walk(scale=0.5))
BLOCKS["samplers_hmc"] = _kernel(lambda samplers: samplers.hmc(step_size=0.1, num_steps=8))
BLOCKS["samplers_nuts"] = _kernel(lambda samplers: samplers.nuts(0.1))
BLOCKS["samplers_slice_sampling"] = _kernel(lambda samplers: samplers.slice_sampling())
BLOCKS["samplers_elliptical_slice"] = _kernel(lambda samplers: samplers.elliptical_slice())
BLOCKS["samplers_barker"] = _kernel(lambda samplers: samplers.barker())
BLOCKS["samplers_adjusted_mclmc"] = _kernel(lambda samplers: samplers.adjusted_mclmc())
BLOCKS["samplers_mclmc"] = _kernel(lambda samplers: samplers.mclmc())
BLOCKS["samplers_chees_hmc"] = _kernel(lambda samplers: samplers.chees_hmc())


def _chunk(warmup: bool) -> Callable[[], Block]:
    """The compiled chunk that `warmup` and `sample` run again and again."""

    def build() -> Block:
        import probinf as pb
        from probinf import samplers
        from probinf.core._chunk import run_chunk
        from probinf.samplers._sample_step import SampleState, SampleStep
        from probinf.samplers._warmup import prepare_warmup

        def run(key, positions):
            target = pb.Target(lambda x: -jnp.sum(jnp.cosh(x)))
            kernel = samplers.hmc(num_steps=4)
            init_key, run_key = jax.random.split(key)
            chains = jax.vmap(lambda k, x: kernel.init(k, target, x))(jax.random.split(init_key, 4), positions)
            if warmup:
                step, state = prepare_warmup(kernel, target, chains, 100, None, None)
            else:
                zeros = jnp.zeros(4, jnp.int32)
                step, state = SampleStep(kernel, target, 1), SampleState(chains, zeros, zeros - 1)
            zero, count = jnp.zeros((), jnp.int32), jnp.full((), 10, jnp.int32)
            return run_chunk(run_key, step, None, zero, count, state, None, True, None)

        return run, (KEY, vector(4, 3))

    return build


BLOCKS["samplers_warmup_chunk"] = _chunk(warmup=True)
BLOCKS["samplers_sample_chunk"] = _chunk(warmup=False)


def _skewed_likelihood(x: jax.Array) -> jax.Array:
    return jnp.sum(-jnp.exp(x))


def _normal_prior(x: jax.Array) -> jax.Array:
    return -0.5 * jnp.sum(x**2)


def _skewed_target() -> Any:
    import probinf as pb

    return pb.Target(_skewed_likelihood, _normal_prior, lambda k: jax.random.normal(k, (2,)))


@block
def samplers_tempered_smc() -> Block:
    from probinf import samplers

    target = _skewed_target()

    def run(key):
        return samplers.tempered_smc(key, target, num_particles=64, max_temperatures=10, throw=False)

    return run, (KEY,)


@block
def samplers_waste_free_smc() -> Block:
    from probinf import samplers

    target = _skewed_target()

    def run(key):
        out = samplers.tempered_smc(key, target, num_particles=64, num_steps=3, waste_free=True, throw=False)
        return out.log_evidence

    return run, (KEY,)


@block
def samplers_persistent_smc() -> Block:
    from probinf import samplers

    target = _skewed_target()

    def run(key):
        return samplers.persistent_smc(key, target, num_particles=32, max_temperatures=6, throw=False)

    return run, (KEY,)


@block
def samplers_path_smc() -> Block:
    import probinf as pb
    from probinf import samplers

    prior = pb.Target(lambda x: jnp.zeros_like(x), lambda x: -0.5 * x**2, jax.random.normal)

    def run(key, data):
        path = samplers.DataPath(prior, lambda x, y: -0.5 * (y - x) ** 2, data)
        return samplers.path_smc(key, path, num_particles=64, throw=False)

    return run, (KEY, vector(6))


@block
def samplers_importance() -> Block:
    import probinf as pb
    from probinf import samplers

    target = pb.Target(lambda x: -jnp.exp(x), lambda x: -0.5 * x**2)

    def run(key):
        return samplers.importance(key, target, dist.Normal(0.0, 1.0), 64, throw=False)

    return run, (KEY,)


def _backward(method: str, **options: Any) -> Block:
    from probinf import samplers

    def run(key, ys):
        filter_key, path_key = jax.random.split(key)
        out = samplers.particle_filter(filter_key, local_level().bootstrap(ys), num_particles=64, history=True)
        return samplers.backward_sample(path_key, out, 16, method, return_info=True, **options)

    return run, (KEY, vector(16))


@block
def samplers_backward_sample() -> Block:
    return _backward("exact")


@block
def samplers_backward_sample_by_rejection() -> Block:
    return _backward("rejection", log_bound=0.3)


@block
def samplers_backward_sample_by_mcmc() -> Block:
    return _backward("mcmc")


@block
def samplers_fixed_lag() -> Block:
    from probinf import samplers

    def run(key, ys):
        out = samplers.particle_filter(key, samplers.fixed_lag(local_level().bootstrap(ys), 4), num_particles=64)
        return samplers.fixed_lag_means(out)

    return run, (KEY, vector(16))


@block
def samplers_two_filter_smoother() -> Block:
    from probinf import samplers

    def run(key, ys):
        keys = jax.random.split(key)
        forward, backward = (
            samplers.particle_filter(k, local_level().bootstrap(data), num_particles=64, history=True)
            for k, data in zip(keys, (ys, ys[::-1]), strict=True)
        )
        return samplers.two_filter_smoother(forward, backward, lambda t, x: -0.01 * x**2)

    return run, (KEY, vector(16))


@block
def samplers_paris() -> Block:
    from probinf import samplers

    def product(t, x_prev, x):
        return x**2 if x_prev is None else x_prev * x

    def run(key, ys):
        out = samplers.paris(key, local_level().bootstrap(ys), product, num_particles=64)
        return out.estimate, out.log_evidence, out.status

    return run, (KEY, vector(16))


# --- models ---


@block
def models_simulate() -> Block:
    return lambda key: local_level().simulate(key, 16), (KEY,)


def _kalman(name: str) -> Callable[[], Block]:
    def build() -> Block:
        from probinf import models

        def run(ys, noise):
            model = models.LinearGaussian(
                jnp.zeros(2), jnp.eye(2), 0.9 * jnp.eye(2), noise * jnp.eye(2), jnp.ones((1, 2)), jnp.eye(1)
            )
            return getattr(models, name)(model, ys)

        return run, (vector(16, 1), vector())

    return build


BLOCKS["models_kalman_filter"] = _kalman("kalman_filter")
BLOCKS["models_kalman_smoother"] = _kalman("kalman_smoother")


@block
def models_hmm_forward_backward() -> Block:
    from probinf import models

    return models.hmm_forward_backward, (vector(3), vector(3, 3), vector(16, 3))


@block
def models_hmm_viterbi() -> Block:
    from probinf import models

    return models.hmm_viterbi, (vector(3), vector(3, 3), vector(16, 3))


@block
def models_conjugate_regression() -> Block:
    from probinf import models

    return models.conjugate_regression, (vector(16, 3), vector(16))


@block
def models_known_noise_regression() -> Block:
    from probinf import models

    return lambda x, y, sd: models.known_noise_regression(x, y, noise_sd=sd), (vector(16, 3), vector(16), vector())


@block
def models_auxiliary_filter() -> Block:
    from probinf import samplers

    def run(key, ys):
        out = samplers.particle_filter(key, local_level().auxiliary(ys), num_particles=64)
        return out.log_evidence, out.mean

    return run, (KEY, vector(16))


@block
def models_rao_blackwellised_filter() -> Block:
    from probinf import models, samplers

    rows = jnp.array([[0.8, 0.2], [0.4, 0.6]])
    switching = models.ConditionallyLinear(
        lambda: dist.Categorical(jnp.array([0.7, 0.3])),
        lambda t, u: dist.Categorical(rows[u]),
        lambda t, u: models.LinearGaussian(0.3, 1.5, jnp.array([0.9, 0.3])[u], 0.5, 1.2, jnp.array([0.2, 2.0])[u]),
    )

    def run(key, ys):
        return samplers.particle_filter(key, switching.rao_blackwellised(ys), num_particles=64).log_evidence

    return run, (KEY, vector(16))


@block
def models_ensemble_kalman_filter() -> Block:
    from probinf import models

    def run(key, ys):
        return tuple(models.ensemble_kalman_filter(key, local_level(), ys, num_particles=64))

    return run, (KEY, vector(16))


# --- models.lm and llm ---


def _language_model(compute_dtype: str = "float32"):
    from functools import partial

    from probinf.models import lm

    config = lm.LanguageModelConfig(16, 32, 2, 4, 2, 8, 64, 64, value_head=True)
    init = partial(lm.init_language_model, config=config, dtype=jnp.bfloat16, compute_dtype=compute_dtype)
    return jax.eval_shape(init, KEY)


@block
def models_lm_sequences() -> Block:
    def run(model, tokens):
        return jax.grad(lambda model: jnp.sum(jax.nn.logsumexp(model(tokens).logits, axis=-1)))(model)

    return run, (_language_model(), vector(2, 12, dtype=jnp.int32))


def _decoding(compute_dtype: str) -> Callable[[], Block]:
    def build() -> Block:
        model = _language_model(compute_dtype)

        def run(model, prompt, length):
            shared, _ = model.prefill(prompt, length)

            def append(_, carry):
                cache, token = carry
                cache, out = model.advance(shared, cache, token[:, None], jnp.ones_like(token))
                return cache, jnp.argmax(out.logits[:, 0], axis=-1).astype(jnp.int32)

            start = model.empty_cache(4, 16), jnp.zeros(4, jnp.int32)
            return jax.lax.fori_loop(0, 10, append, start)

        return run, (model, vector(16, dtype=jnp.int32), vector(dtype=jnp.int32))

    return build


BLOCKS["models_lm_decoding"] = _decoding("float32")
BLOCKS["models_lm_decoding_in_bfloat16"] = _decoding("bfloat16")


@block
def llm_potentials() -> Block:
    from probinf import llm
    from probinf.models.lm import LanguageModelConfig, init_language_model

    config = LanguageModelConfig(
        vocab_size=5, dim=8, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=4, hidden_dim=8, max_length=24,
        value_head=True,
    )  # fmt: skip
    lm = llm.LM(init_language_model(jax.random.key(0), config))
    mask = llm.intersect(llm.automaton([[0, 0, 0, 1, -1], [0, -1, 1, 1, 0]]), llm.ban_tokens([3], 5))

    def run(prompt, tokens, count):
        rows = count > 0
        step = llm.StepView(
            tokens=tokens, count=count, log_prob=-count.astype(jnp.float32), active=rows, finished=~rows,
            all_tokens=tokens, length=count, last=jnp.asarray(True),
        )  # fmt: skip
        said = []
        for potential in (llm.judge(lm, chunk=2), llm.process_reward(lm, "ratio"), llm.self_certainty()):
            bound: Any = potential.bind(llm.Prompt(prompt, jnp.asarray(2, jnp.int32)))
            said.append(bound.update(bound.start(4, 6), step))
        return said, mask.allowed(mask.advance(mask.start(4), tokens[:, 0]))

    ints = jnp.int32
    return run, (vector(3, dtype=ints), vector(4, 6, dtype=ints), vector(4, dtype=ints))


@block
def llm_particle_filter() -> Block:
    from probinf import llm
    from probinf.core import ess_below, resample
    from probinf.llm._task import make_task
    from probinf.models.lm import LanguageModelConfig, init_language_model
    from probinf.samplers import systematic

    config = LanguageModelConfig(
        vocab_size=8, dim=8, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=4, hidden_dim=8, max_length=32
    )

    def run(key, tokens):
        lm, judge = (llm.LM(init_language_model(jax.random.key(seed), config), None, (0,)) for seed in (0, 1))
        task = make_task(lm, [1, 2], scorer=judge, potential="judge", step=llm.delimiter(3, max_tokens=4), max_steps=3)
        model = task.setup.model(llm.Prompt(tokens, jnp.asarray(2, jnp.int32)))
        found = llm.run_steps(key, model, resample(systematic, when=ess_below(0.5)), num_particles=4)
        return found.population.log_evidence, found.population.particles.tokens

    return run, (KEY, vector(16, dtype=jnp.int32))


@block
def distributions_matern() -> Block:
    from probinf.distributions import matern, pairwise_distance

    def covariance(x, smoothness):
        return jax.value_and_grad(lambda v: jnp.sum(matern(pairwise_distance(x, x), v, 1.0)))(smoothness)

    return covariance, (vector(5, 2), vector())


@block
def distributions_generalized_inverse_gaussian() -> Block:
    from probinf.distributions import GeneralizedInverseGaussian

    def draw(key, order, concentration):
        law = GeneralizedInverseGaussian(order, concentration)
        x = law.sample(key, (7,))
        return x, law.log_prob(x), law.mean, law.variance

    return draw, (KEY, vector(), vector())


@block
def distributions_normal_inverse_gaussian() -> Block:
    from probinf.distributions import NormalInverseGaussian

    def draw(key, tailweight, skewness):
        law = NormalInverseGaussian(tailweight, skewness)
        x = law.sample(key, (7,))
        return x, law.log_prob(x), law.mean, law.variance

    return draw, (KEY, vector(), vector())


def _directional(name: str) -> Callable[[], Block]:
    def build() -> Block:
        from probinf import distributions

        family = getattr(distributions, name)

        def use(key: Any, mean: Any, concentration: Any, x: Any) -> Any:
            d = family(mean, concentration)
            return d.sample(key, (3,)), d.log_prob(x), d.entropy(), d.mean, family.fit(x).concentration

        return use, (KEY, vector(5), vector(), vector(7, 5))

    return build


BLOCKS["distributions_von_mises_fisher"] = _directional("VonMisesFisher")
BLOCKS["distributions_power_spherical"] = _directional("PowerSpherical")


@block
def distributions_fit_mixture() -> Block:
    from probinf.distributions import fit_mixture

    return lambda key, x: fit_mixture(key, x, 3).log_likelihood, (KEY, vector(9, 5))


@block
def special_log_bessel() -> Block:
    from probinf import special

    names = ("log_iv", "log_ive", "log_kv", "log_kve", "iv_ratio", "kv_ratio", "log_0f1")
    return lambda v, x: [getattr(special, name)(v, x) for name in names], (vector(8), vector(8))


@block
def special_log_bessel_slopes() -> Block:
    from probinf import special

    def total(v, x):
        return special.log_iv(v, x, reflect=False) + special.log_kv(v, x) + special.iv_ratio(v, x)

    return jax.vmap(jax.grad(total, (0, 1))), (vector(8), vector(8))
