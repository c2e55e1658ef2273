"""The list of experiments, and how one is run.

An experiment is one module with

- `Config`, a frozen dataclass with a field `seed`, and `SCALES`, its `"quick"` and `"full"` values;
- `run(config, workspace) -> dict[str, Part]`, whose parts come from `workspace.part`, so that each is stored when
  done and a second call goes on where the first one ended;
- `claims(metrics) -> tuple[Claim, ...]`, a pure function of the measured numbers, by part.
"""

import dataclasses
import datetime
import difflib
import importlib
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax

from probinf.experiments._claims import Claim
from probinf.experiments._environment import environment, source_digest, versions
from probinf.experiments._page import Part
from probinf.experiments._report import write_report
from probinf.experiments._workspace import METRICS, Workspace, open_workspace, write_json


class ExperimentModule(Protocol):
    """What the module of an experiment offers."""

    SCALES: Mapping[str, Any]

    def run(self, config: Any, workspace: Workspace) -> dict[str, Part]:
        """Runs every part in turn; they appear in the report in this order."""
        ...

    def claims(self, metrics: Mapping[str, Any]) -> tuple[Claim, ...]:
        """Judges the measured numbers."""
        ...


class Experiment(NamedTuple):
    """A line of `probinf list`.

    Attributes:
        name: what `probinf run` takes.
        claim: what it shows, one sentence.
        paper: where that is claimed or derived.
        module: import path, loaded only when the experiment runs.
    """

    name: str
    claim: str
    paper: str
    module: str

    def load(self) -> Any:
        """The module; see `ExperimentModule`."""
        return importlib.import_module(self.module)


class Outcome(NamedTuple):
    """What `run_experiment` returns: where things are, the verdicts, and which parts were taken from disk."""

    folder: Path
    report: Path
    claims: tuple[Claim, ...]
    reused: tuple[str, ...]


_ALL = (
    Experiment(
        "tour",
        "On real data, HMC and the particle filter give the exact answers within their stated Monte Carlo errors.",
        "Efron et al. 2004; Durbin and Koopman 2012",
        "probinf.experiments._tour",
    ),
    Experiment(
        "rare-events",
        "Splitting by a particle filter gives the persistence exponents of four Gaussian processes, 3/16 and 1/4 "
        "among them.",
        "Poplavskyi and Schehr 2018; Sinai 1992; Majumdar et al. 1996",
        "probinf.experiments._rare_events",
    ),
    Experiment(
        "smc-samplers",
        "Tempered SMC gives the evidence and the weights of modes that single chains cannot.",
        "Del Moral, Doucet and Jasra 2006; Chopin 2002; Dau and Chopin 2022",
        "probinf.experiments._smc_samplers",
    ),
    Experiment(
        "reversible-jump",
        "Reversible jump, 64 chains at once, gives the exact probabilities of variables, change points and components.",
        "Green 1995; Richardson and Green 1997; Liang et al. 2008; Fearnhead 2006",
        "probinf.experiments._reversible_jump",
    ),
    Experiment(
        "mcmc-shootout",
        "Markov chain kernels side by side: exact means, effective draws for an evaluation and a second, and waiting.",
        "Hoffman and Gelman 2014; Hoffman, Radul and Sountsov 2021; Robnik et al. 2023; Phan et al. 2019",
        "probinf.experiments._mcmc_shootout",
    ),
    Experiment(
        "particle-inference",
        "Generation as particle inference: an exact toy, and models that do sums, by every method at equal cost.",
        "Puri, Sudalairaj, Xu, Xu, Srivastava 2025",
        "probinf.experiments._particle_inference",
    ),
    Experiment(
        "log-bessel",
        "Log-Bessel functions right to the last digits, and von Mises-Fisher fits in 2048 to 32768 dimensions.",
        "Plesner, Sørensen, Hauberg 2024",
        "probinf.experiments._log_bessel",
    ),
    Experiment(
        "train-chains",
        "The three tiny language models of `llm.load`, trained from the seed; how often they are right.",
        "the chains task of this library; Vaswani et al. 2017, Touvron et al. 2023",
        "probinf.experiments._train_chains",
    ),
    Experiment(
        "sg-mcmc",
        "Stochastic gradient samplers have the bias that is computed for them: of the step, the batch and the "
        "temperature.",
        "Welling and Teh 2011; Chen, Fox and Guestrin 2014; Li et al. 2016; Baker et al. 2019",
        "probinf.experiments._sg_mcmc",
    ),
    Experiment(
        "denotational-validation",
        "The blocks of the library keep their laws, and faults planted in its source are caught.",
        "Scibior et al. 2018; Tierney 1998; Green 1995",
        "probinf.experiments._denotational_validation",
    ),
)
_BY_NAME = {experiment.name: experiment for experiment in _ALL}
EXPERIMENTS: Mapping[str, Experiment] = types.MappingProxyType(_BY_NAME)


def find(name: str) -> Experiment:
    """The experiment called `name`.

    Raises:
        ValueError: there is none; the message offers close matches.
    """
    if name in EXPERIMENTS:
        return EXPERIMENTS[name]
    close = difflib.get_close_matches(name.lower(), EXPERIMENTS, cutoff=0.5)
    hint = f"did you mean {' or '.join(map(repr, close))}?" if close else f"choose one of: {', '.join(EXPERIMENTS)}."
    raise ValueError(f"no experiment is called {name!r}: {hint} `probinf list` shows all")


def configure(experiment: Experiment, *, scale: str = "quick", seed: int = 0) -> Any:
    """The configuration of an experiment at a scale.

    Raises:
        ValueError: no such scale, or a negative seed.
    """
    scales = experiment.load().SCALES
    if scale not in scales:
        raise ValueError(f"`scale` must be one of {sorted(scales)}, got {scale!r}")
    if not 0 <= seed < 2**32:
        raise ValueError(f"`seed` must lie between 0 and 2**32 - 1, got {seed}")
    return dataclasses.replace(scales[scale], seed=seed)


def run_experiment(
    name: str,
    *,
    scale: str = "quick",
    seed: int = 0,
    out: str | Path | None = None,
    overwrite: bool = False,
    say: Callable[[str], None] = lambda text: None,
    progress: bool = False,
) -> Outcome:
    """Runs an experiment, or goes on with it, and writes its folder.

    The folder gets `metrics.json` (claims, numbers, configuration, versions, timings), `figures/`, `draws/`, and a
    self-contained `report.html`. The same run into the same folder takes up what is finished there; a different run
    is refused. Ctrl-C leaves the finished parts and the checkpoint of the one under way.

    Args:
        name: one of `EXPERIMENTS`.
        scale: `"quick"` (at most 2 minutes on 2 cores) or `"full"` (the honest reproduction).
        seed: of every random number of the run.
        out: the folder; `results/NAME` by default.
        overwrite: replace a different run that the folder holds.
        say: receives one line for each thing worth telling.
        progress: show a bar for long loops.

    Returns:
        The folder, the report and the claims.

    Raises:
        ValueError: no such experiment or scale, or the folder cannot be used.
    """
    experiment = find(name)
    module = experiment.load()
    config = configure(experiment, scale=scale, seed=seed)
    folder = Path(out) if out is not None else Path("results") / name
    identity = _identity(name, scale, config)
    with open_workspace(folder, identity, overwrite=overwrite, say=say, progress=progress) as workspace:
        parts = module.run(config, workspace)
        metrics = {key: part.metrics for key, part in parts.items()}
        claims = module.claims(metrics)
        if len(workspace.reused) < len(parts) or not (folder / METRICS).is_file():  # else all is as it was
            summary = _summary(experiment, scale, config, workspace, claims)
            write_json(folder / METRICS, summary | {"metrics": metrics})
        report = write_report(folder)
    return Outcome(folder, report, claims, tuple(workspace.reused))


def _identity(name: str, scale: str, config: Any) -> dict[str, Any]:
    known = versions()
    return {
        "experiment": name,
        "scale": scale,
        **dataclasses.asdict(config),
        "probinf": known["probinf"],
        "source": source_digest(),
        "jax": known["jax"],
        "device": jax.default_backend(),
        "float64": bool(jax.config.jax_enable_x64),  # pyright: ignore[reportAttributeAccessIssue]
    }


def _summary(
    experiment: Experiment, scale: str, config: Any, workspace: Workspace, claims: tuple[Claim, ...]
) -> dict[str, Any]:
    return {
        "experiment": experiment.name,
        "claim": experiment.claim,
        "paper": experiment.paper,
        "scale": scale,
        "config": dataclasses.asdict(config),
        "holds": all(claim.holds for claim in claims),
        "claims": [claim._asdict() for claim in claims],
        "seconds": workspace.seconds,
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "environment": environment(),
    }
