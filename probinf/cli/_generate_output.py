"""How `probinf generate` shows a result: the posterior of the answers as a table, or everything as JSON."""

import dataclasses
import json
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from probinf import llm
from probinf.cli._generate_request import Extract
from probinf.core import Status, explain
from probinf.experiments._page import plain
from probinf.llm._generations_table import shorten
from probinf.llm._selectors import answers_of

MOST_ROWS = 20


def print_posterior(
    console: Console, found: llm.Generations, extract: Extract | None, rule: str | None, chosen: llm.Selection | None
) -> None:
    """A table of answers, the most probable first, the text that was chosen, and a line of numbers.

    Args:
        console: where to.
        found: the result.
        extract: text -> answer, or None for the whole text.
        rule: by which a text was chosen.
        chosen: that text, or None.
    """
    posterior, groups = found.posterior(extract), _groups(found, extract)
    weights = found.weights
    table = Table(title="Answers", title_justify="left", title_style="bold", show_lines=False, pad_edge=False)
    if extract is not None:
        table.add_column("answer", style="bold cyan")
    table.add_column("probability", justify="right")
    table.add_column("texts", justify="right")
    table.add_column("heaviest text", overflow="fold")
    for answer, probability in list(posterior.items())[:MOST_ROWS]:
        members = groups[answer]
        text = shorten(found.texts[max(members, key=lambda i: (weights[i], -i))])
        first = [] if extract is None else ["(none)" if answer is None else str(answer)]
        words = (*first, _share(probability), str(len(members)), text or "(empty)")
        table.add_row(*(escape(word) for word in words))
    console.print(table)
    if len(posterior) > MOST_ROWS:
        console.print(f"and {len(posterior) - MOST_ROWS} more", style="dim")
    if chosen is not None:
        answer = "" if extract is None else f"{'(none)' if chosen.answer is None else chosen.answer}   "
        console.print(f"[bold]{rule}[/bold]  {escape(answer + shorten(chosen.text))}", highlight=False, soft_wrap=True)
    console.print(escape(numbers(found)), style="dim", highlight=False, soft_wrap=True)


def numbers(found: llm.Generations) -> str:
    """Evidence, ESS and cost in one line."""
    parts = []
    if not np.isnan(found.log_evidence):
        error = "" if np.isnan(found.log_evidence_se) else f" ± {found.log_evidence_se:.2g}"
        parts.append(f"log evidence {found.log_evidence:.4g}{error}")
    if found.ess.size:
        count = found.settings.get("num_particles", found.log_weight_path.shape[1])
        parts.append(f"ESS {found.ess[-1]:.1f} of {count}")
        parts.append(f"{found.ess.size} steps, resampled {int(np.sum(found.resampled))} times")
    parts.append(f"{found.tokens_used:,} tokens, scorer {found.scorer_tokens_used:,}")
    parts.append(f"{found.seconds:.1f} s")
    return "; ".join(parts)


def as_json(found: llm.Generations, extract: Extract | None, rule: str | None, chosen: llm.Selection | None) -> str:
    """Everything that the table shows and more; numbers that are not finite are null. Arguments as above."""
    weights = found.weights
    answers = answers_of(found.texts, extract, found.finished)
    order = np.argsort(-weights, kind="stable")
    data: dict[str, Any] = {
        "method": found.method,
        "prompt": found.prompt,
        "settings": {name: _simple(value) for name, value in found.settings.items()},
        "posterior": [
            {"answer": answer, "probability": probability, "texts": len(_groups(found, extract)[answer])}
            for answer, probability in found.posterior(extract).items()
        ],
        "selected": None if chosen is None else {"rule": rule, **dataclasses.asdict(chosen)},
        "log_evidence": found.log_evidence,
        "log_evidence_se": found.log_evidence_se,
        "standard_error_note": found.standard_error_note,
        "ess": found.ess,
        "resampled": found.resampled,
        "tokens_used": found.tokens_used,
        "scorer_tokens_used": found.scorer_tokens_used,
        "seconds": found.seconds,
        "status": [bit.name for bit in Status if bit and found.status & bit],
        "failed_scores": found.num_failed,
        "causes": found.causes,
        "texts": [
            {
                "text": found.texts[i],
                "answer": answers[i],
                "weight": weights[i],
                "finished": found.finished[i],
                "log_prob": found.log_prob[i],
            }
            for i in order
        ],
    }
    return json.dumps(plain(data), indent=2, ensure_ascii=False, allow_nan=False)


def flag_text(found: llm.Generations) -> str:
    """What went wrong, empty if nothing did."""
    return explain(found.status, counts=found.flag_words())


def _groups(found: llm.Generations, extract: Extract | None) -> dict[Any, list[int]]:
    """The particles of every answer that have a weight."""
    groups: dict[Any, list[int]] = {}
    for i, answer in enumerate(answers_of(found.texts, extract, found.finished)):
        if found.weights[i] > 0:
            groups.setdefault(answer, []).append(i)
    return groups


def _share(probability: float) -> str:
    """Three digits, of which none says that something is impossible, or certain, that is not."""
    if 0 < probability < 0.0005:
        return "<0.001"
    return ">0.999" if 0.9995 <= probability < 1 else f"{probability:.3f}"


def _simple(value: Any) -> Any:
    return value if value is None or isinstance(value, str | bool | int | float | list | tuple | dict) else str(value)
