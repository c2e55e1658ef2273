"""The genealogy: lineages against a slow walk from each final text, and the figure at its largest common size.

Planted bugs, each shown to be caught: a share that is that of the slot and not of its descendants, ancestors read one
step late, a palette that differs from that of the reports.
"""

import io
import itertools
import sys

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from probinf.experiments import _figures as reports
from probinf.llm import _genealogy as genealogy
from probinf.llm._genealogy import trace_lineages
from tests.llm._runs import extract, run, texts


def walked(ancestors, weights):
    """Share and survival of each (step, child), by walking back from every final text."""
    steps, count = ancestors.shape
    shares, lives = np.zeros((steps, count)), np.zeros((steps, count), bool)
    for i in range(count):
        slot = i
        for t in range(steps - 1, -1, -1):
            shares[t, slot] += weights[i]
            lives[t, slot] = True
            slot = ancestors[t, slot]
    return shares, lives


class TestLineages:
    @pytest.mark.parametrize("seed", range(3))
    def test_they_are_those_of_a_walk(self, seed):
        rng = np.random.default_rng(seed)
        ancestors, weights = rng.integers(0, 6, (5, 6)), rng.dirichlet(np.ones(6))
        found = trace_lineages(ancestors, weights, np.zeros((6, 6), bool))
        shares, lives = walked(ancestors, weights)
        np.testing.assert_allclose(found.share.reshape(5, 6), shares, atol=1e-15)
        np.testing.assert_array_equal(found.survives.reshape(5, 6), lives)
        np.testing.assert_array_equal(found.parent.reshape(5, 6), ancestors)
        assert np.ptp(found.share.reshape(5, 6).sum(axis=1)) < 1e-12
        # The planted bugs: neither the weights of the slots nor a shift by a step gives these shares.
        assert not np.allclose(shares[0], weights)
        assert not np.allclose(walked(np.roll(ancestors, 1, axis=0), weights)[0], shares)

    def test_the_heaviest_is_one_path_that_holds_together(self):
        rng = np.random.default_rng(0)
        ancestors, weights = rng.integers(0, 6, (5, 6)), rng.dirichlet(np.ones(6))
        found = trace_lineages(ancestors, weights, np.zeros((6, 6), bool))
        picked = np.flatnonzero(found.heaviest)
        np.testing.assert_array_equal(found.step[picked], np.arange(1, 6))
        np.testing.assert_array_equal(found.child[picked][:-1], found.parent[picked][1:])
        assert found.child[picked][-1] == np.argmax(weights)

    def test_segments_after_the_end_of_a_text(self):
        finished = np.asarray([[False, True], [True, True], [True, True]])
        found = trace_lineages(np.asarray([[1, 1], [0, 1]]), np.asarray([0.5, 0.5]), finished)
        np.testing.assert_array_equal(found.over, [True, True, True, True])
        found = trace_lineages(np.asarray([[0, 1], [0, 1]]), np.asarray([0.5, 0.5]), finished)
        np.testing.assert_array_equal(found.over, [False, True, True, True])

    def test_nothing_alive_has_no_heaviest(self):
        found = trace_lineages(np.asarray([[0, 1]]), np.zeros(2), np.zeros((2, 2), bool))
        assert not found.heaviest.any()
        assert found.survives.all()


def svg(figure):
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


class TestFigure:
    @pytest.mark.parametrize(("slots", "num_labels"), [(8, 8), (32, 32), (200, 53)])
    def test_forty_steps_are_readable(self, slots, num_labels):
        """Labels of neighbouring slots do not overlap, nothing leaves the figure, and it is drawn from vectors."""
        figure = run(slots=slots, steps=40, seed=3, stay=0.97, noise=0.8).plot(extract)
        screen = FigureCanvasAgg(figure)
        screen.draw()
        renderer = screen.get_renderer()
        weights = figure.axes[2]
        boxes = sorted((words.get_window_extent(renderer) for words in weights.texts), key=lambda box: box.y0)
        # Heaviest first, labels leave gaps that are too small for another one.
        assert len(boxes) == num_labels if slots <= 32 else num_labels / 2 <= len(boxes) <= num_labels
        assert all(below.y1 <= above.y0 + 1 for below, above in itertools.pairwise(boxes))
        (legend,) = figure.legends
        frame = figure.bbox
        for box in [*boxes, legend.get_window_extent(renderer)]:
            assert box.x0 >= frame.x0 - 1
            assert box.x1 <= frame.x1 + 1
        assert figure.get_size_inches()[1] < 9.5

    @pytest.mark.parametrize("size", [(1, 1), (1, 3), (2, 1), (300, 4)], ids=str)
    def test_other_sizes(self, size):
        slots, steps = size
        assert "<svg" in svg(run(slots=slots, steps=steps).plot())

    def test_all_weights_zero_is_drawn_without_a_heaviest(self):
        figure = texts(weights=[0, 0, 0], scores=np.full((3, 2), 0.5)).plot(extract)
        assert len(figure.axes[2].texts) == 0
        svg(figure)

    def test_labels_are_words_and_not_mathematics(self):
        figure = texts(weights=[1, 2]).plot(lambda text: "$x_1$ and much more besides")
        assert [words.get_text() for words in figure.axes[2].texts] == [r"\$x_1\$ and muc…"] * 2
        svg(figure)

    def test_other_numbers_of_texts_and_slots(self):
        """Methods that keep texts of several runs have no final weight a slot."""
        two, history = texts(weights=[1, 1], scores=np.full((2, 3), 0.5)), run(slots=4, steps=3, stay=1.0)
        names = ("ancestors", "ess", "resampled", "log_weight_path", "finished_path")
        mixed = type(two)(**({**vars(two)} | {name: getattr(history, name) for name in names}))
        figure = mixed.plot()
        assert len(figure.axes) == 2
        svg(figure)

    def test_pyplot_is_not_needed(self):
        run().plot()
        figures = sys.modules["matplotlib.pyplot"].get_fignums() if "matplotlib.pyplot" in sys.modules else []
        assert figures == []

    def test_planted_other_palette(self):
        """The pages of reports turn exactly these values into those of light and dark screens."""
        for name in ("INK", "MUTED", "GRID", "PAPER", "BLUE", "ORANGE"):
            assert getattr(genealogy, name) == getattr(reports, name)
