"""The table of `Generations.summary`."""

import io
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from probinf.core import explain

WIDTH = 100
SHOWN_TEXT = 160
# Settings that say what was run, in the order in which they are shown; those of the method follow.
_SETTINGS = ("model", "scorer", "potential", "temperature", "top_k", "top_p", "min_p", "step", "base")
_NOT_SHOWN = ("max_tokens", "step_tokens", "num_particles")


def summarise(generations: Any) -> str:
    """Evidence with its standard error, ESS, resampling, cost, the text of the largest weight, and flags."""
    table = Table(title=generations.method, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows(generations):
        table.add_row(name, escape(value))
    text = io.StringIO()
    Console(file=text, width=WIDTH, no_color=True).print(table)
    return text.getvalue()


def rows(generations: Any) -> list[tuple[str, str]]:
    """Name and words of each line of the table."""
    found = [("prompt", shorten(generations.prompt))]
    own = (name for name in generations.settings if name not in (*_SETTINGS, *_NOT_SHOWN))
    settings = [f"{name} {generations.settings[name]}" for name in (*_SETTINGS, *own) if _told(generations, name)]
    if settings:
        found.append(("settings", ", ".join(settings)))
    ended = int(np.sum(generations.finished))
    found.append(("texts", f"{generations.num_particles}, of which {ended} finished"))
    if not np.isnan(generations.log_evidence):
        found.append(("log evidence", f"{generations.log_evidence:.4f}"))
        error = f"{generations.log_evidence_se:.3g}"
        found.append(("standard error", generations.standard_error_note or error))
    else:
        found.append(("log evidence", generations.standard_error_note or "none"))
    ess = generations.ess
    if ess.size:
        found.append(("steps", str(ess.size)))
        found.append(("ESS min / median / last", f"{ess.min():.1f} / {np.median(ess):.1f} / {ess[-1]:.1f}"))
        scheme = f" ({generations.scheme})" if generations.scheme else ""
        found.append(("resampled", f"{int(np.sum(generations.resampled))} times{scheme}"))
    found.append(("tokens", f"{generations.tokens_used:,}, scorer {generations.scorer_tokens_used:,}"))
    if generations.seconds > 0:
        pace = generations.tokens_used / generations.seconds
        found.append(("seconds", f"{generations.seconds:.2f} ({pace:,.0f} tokens a second)"))
    if generations.num_failed:
        causes = "; ".join(f"{cause} ({times} times)" for cause, times in generations.causes.items())
        found.append(
            ("failed scores", f"{generations.num_failed}: {causes}" if causes else str(generations.num_failed))
        )
    weights = generations.weights
    if np.any(weights > 0):
        best = int(np.argmax(weights))
        found.append((f"text {best}, weight {weights[best]:.3f}", shorten(generations.texts[best])))
    found.append(("status", explain(generations.status, counts=generations.flag_words()) or "OK"))
    return found


def shorten(text: str, limit: int = SHOWN_TEXT) -> str:
    """One line of at most `limit` characters; the middle of a longer text is left out."""
    line = text.replace("\n", "⏎")
    if len(line) <= limit:
        return line
    half = (limit - 3) // 2
    return f"{line[:half]} … {line[-half:]}"


def _told(generations: Any, name: str) -> bool:
    return generations.settings.get(name) is not None
