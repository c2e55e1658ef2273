"""What the training of the chains models shows: text, figures and tables from its metrics."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from probinf.experiments._figures import BLUE, INK, MUTED, ORANGE, TEAL, canvas
from probinf.experiments._page import Figure, Section, Table
from probinf.experiments._workspace import Workspace

INTRODUCTION = (
    "A problem is a digit and twelve operations, as in 7+5*3-8...>; a solution is the running result mod 10 after each "
    "of them, 2;6;8;... Factors are 1, 3, 7 or 9, so that no error is ever forgotten. A transformer of the Llama "
    "family with {weights:,} weights learns it from problems that are drawn afresh at every step.",
    "The solution of a problem is unique, so the probability that the model writes it is known without drawing: that "
    "is pass@1 in the figure. When its moving average reaches {target:.0%} the weak proposer is kept; the end of the "
    "run is the strong judge.",
)
REWARD_TEXT = (
    "A reward model says after each step how likely it is that all is right so far. To judge a sum one must be able "
    "to do it: small reward models from scratch learn how often the t-th step is wrong, and nothing else. So this one "
    "starts from the judge, with layers on top that change nothing at first and a head that says one half.",
    "It first learns on made-up solutions, half of whose results are drawn blindly, to carry the right result on to "
    "where something has been written, and to compare. Then the labels become what is wanted, all right so far, on "
    "solutions that checkpoints of the proposer wrote at several temperatures; an exact verifier labels each step.",
)


def language_section(workspace: Workspace, found: Mapping[str, Any], config: Any) -> Section:
    """Loss and accuracy of the language model."""
    marks = [
        (int(step), float(target))
        for step, target, there in zip(found["found_at"], found["targets"], found["found"], strict=True)
        if there
    ]
    with canvas(columns=2, height=3.1) as (figure, (left, right)):
        _curve(left, found["loss"], BLUE, None)
        left.set(xlabel="step", ylabel="loss, nats a token", yscale="log")
        for name, colour, label in (
            ("step_accuracy", MUTED, "steps right, likeliest digit"),
            ("chain_accuracy", BLUE, "solutions right, likeliest digits"),
            ("pass_at_1", ORANGE, "pass@1, sampled"),
        ):
            _curve(right, found[name], colour, label)
        for step, target in marks:
            right.plot(step, target, "o", color=INK, markersize=4)
        right.set(xlabel="step", ylabel="share", ylim=(-0.02, 1.02))
        right.legend(loc="center right")
        drawn = workspace.figure(
            "train-chains-language",
            figure,
            caption="Training of the language model, each point a batch of fresh problems before the update. Dots: "
            "the checkpoints that are kept.",
            alt="A loss that falls by steps, and accuracies that rise steeply to one.",
        )
    paragraphs = tuple(text.format(weights=found["num_weights"], target=found["targets"][1]) for text in INTRODUCTION)
    if not config.complete:
        paragraphs += (
            "The quick scale takes the first steps only; `--scale full` trains to the end, in a few minutes, and keeps "
            "the models.",
        )
    return Section("A model that learns to calculate", paragraphs, (drawn,))


def reward_section(workspace: Workspace, found: Mapping[str, Any], config: Any) -> Section:
    """Loss and accuracy of the reward model."""
    with canvas(columns=2, height=3.1) as (figure, (left, right)):
        _curve(left, found["sums"], MUTED, "right results, nats a result")
        _curve(left, found["loss"], TEAL, "judgement, nats a token")
        left.axhline(found["prior_loss"], color=INK, linewidth=0.9, linestyle=(0, (4, 3)))
        left.set(xlabel="step", ylabel="loss", ylim=(0, 1))
        left.legend(loc="upper right")
        _curve(right, found["accuracy"], TEAL, None)
        right.set(xlabel="step", ylabel="steps judged rightly", ylim=(None, 1.02))
        drawn = workspace.figure(
            "train-chains-reward",
            figure,
            caption="Training of the reward model: on single steps of made-up solutions first, then on whether all is "
            "right so far in solutions of the proposers. Dashed: a reward that knows the number of the step only.",
            alt="Two losses that fall one after the other, and an accuracy that rises, dips and rises again.",
        )
    paragraphs = REWARD_TEXT
    if not config.complete:
        paragraphs += ("The quick scale starts from the shipped judge and takes the first steps only.",)
    return Section("A model that learns to judge", paragraphs, (drawn,))


def measured_section(workspace: Workspace, title: str, name: str, found: Mapping[str, Any]) -> Section:
    """Accuracies of the proposer and the judge, and how good the reward is."""
    weak, strong, reward = found["chains"], found["chains-strong"], found["chains-reward"]
    rows = tuple(
        (
            model,
            f"{100 * one['greedy_steps']:.2f}",
            f"{100 * one['greedy_chains']:.2f}",
            *(f"{100 * value:.1f}" for value in one["coverage"]),
        )
        for model, one in (("chains (weak)", weak), ("chains-strong", strong))
    )
    columns = ("%", "steps, greedy", "solutions, greedy", "pass@1", *(f"at {n}" for n in (2, 4, 8, 16, 32)))
    accuracy = Table(
        f"Whole solutions right among N drawn at temperature 1, by exact probabilities on {weak['num_problems']:,} "
        "fresh problems; greedy takes the likeliest token.",
        columns,
        rows,
    )
    summary = Table(
        f"The reward model on {reward['num_solutions']:,} fresh solutions of the weak proposer; beside it a reward "
        "that knows the number of the step only.",
        ("", "reward model", "number of the step only"),
        (
            ("area under the curve within steps", f"{reward['auc_mean']:.4f}", "0.5"),
            ("area under the curve, all steps", f"{reward['auc_pooled']:.4f}", f"{reward['prior_auc_pooled']:.4f}"),
            ("Brier score", f"{reward['brier']:.4f}", f"{reward['prior_brier']:.4f}"),
            ("steps judged rightly, %", f"{100 * reward['accuracy']:.2f}", ""),
            ("calibration error", f"{reward['calibration_error']:.4f}", ""),
        ),
    )
    paragraphs = (
        "Step by step the weak proposer is mostly right; twelve steps in a row it rarely is. That is where particles "
        "help. The judge and the reward model see the errors as they happen.",
    )
    return Section(title, paragraphs, (_reward_figure(workspace, name, reward), accuracy, summary))


def with_installation(section: Section, folder: Path, names: Sequence[str]) -> Section:
    """The section with a word on how to ship what was made."""
    listed = " ".join(f"{folder.name}/{name}" for name in names)
    text = (
        f"To install these models, copy them over the shipped ones: in {folder.parent}, "
        f"`cp -r {listed} .../probinf/llm/checkpoints/`. Any of the folders also loads as it is: "
        f"`llm.load({str(folder / names[0])!r})`, and transformers reads them as LlamaForCausalLM.",
    )
    return Section(section.title, section.paragraphs + text, section.items)


def _reward_figure(workspace: Workspace, name: str, reward: Mapping[str, Any]) -> Figure:
    bins = np.asarray(reward["bins"])
    filled = bins[bins[:, 2] > 0]
    with canvas(columns=2, height=3.1) as (figure, (left, right)):
        steps = np.arange(1, len(reward["auc"]) + 1)
        left.plot(steps, reward["auc"], "o-", color=TEAL, markersize=4, label="area under the curve")
        left.plot(steps, reward["share_right"], "o-", color=MUTED, markersize=4, label="share of prefixes right")
        left.set(xlabel="step", ylim=(0, 1.02), xlim=(0.5, steps[-1] + 0.5))
        left.legend(loc="lower left")
        right.plot([0, 1], [0, 1], color=INK, linewidth=0.9, linestyle=(0, (4, 3)))
        right.scatter(filled[:, 0], filled[:, 1], s=15 + 400 * filled[:, 2], color=TEAL, alpha=0.8, linewidth=0)
        right.set(xlabel="stated probability", ylabel="true frequency")
        return workspace.figure(
            f"train-chains-{name}",
            figure,
            caption="The reward model. Left: how well it tells right prefixes from wrong ones at each step. Right: "
            "stated probability and true frequency; the size of a dot is the share of the steps.",
            alt="A curve near one, and dots near the diagonal.",
        )


def _curve(axes: Any, values: Any, colour: str, label: str | None) -> None:
    """A curve of many noisy values: all of them faintly, and their moving mean."""
    values = np.asarray(values, float)
    width = max(1, values.size // 60)
    steps = np.arange(values.size)
    axes.plot(steps, values, color=colour, linewidth=0.6, alpha=0.3)
    mean = np.convolve(values, np.ones(width) / width, mode="valid")
    axes.plot(steps[width - 1 :] - (width - 1) / 2, mean, color=colour, label=label)
