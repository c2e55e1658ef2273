"""`Draws`: summary, diagnostics on degenerate draws, files, ArviZ of either version, figures, flags.

Planted bugs that these tests catch (each was tried by editing the code): diagnostics of a constant chain passed to
ArviZ (ESS = number of draws); NaN draws dropped from the mean; chains and draws exchanged; moments in float32;
`divergent` not renamed for ArviZ; float32 saved as float64; the temporary file left behind.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure

from probinf.core._arviz import import_arviz, is_old
from probinf.core._draws import Draws
from probinf.core._status import InferenceError, InferenceWarning, Status

GOOD = np.random.default_rng(0).gamma(2.0, size=(4, 500)).astype(np.float32)


def draws(samples: Any = GOOD, **options: Any) -> Draws:
    chains = jax.tree.leaves(samples)[0].shape[0]
    defaults = {"info": {}, "status": np.zeros(chains, np.uint32)}
    return Draws(samples=samples, **(defaults | options))


def autoregression(rho, size, seed=1):
    """AR(1), whose exact ESS is size (1 - rho) / (1 + rho)."""
    noise = np.random.default_rng(seed).normal(size=(4, size))
    x = np.zeros((4, size))
    x[:, 0] = noise[:, 0] / np.sqrt(1 - rho**2)
    for t in range(1, size):
        x[:, t] = rho * x[:, t - 1] + noise[:, t]
    return x


class TestSummary:
    def test_known_moments(self):
        x = np.arange(40.0).reshape(2, 20) ** 2
        table = draws({"x": x}).summary()
        row = table.row("x")
        assert row["mean"] == x.mean()
        assert row["sd"] == x.std(ddof=1)
        np.testing.assert_allclose([row["3%"], row["97%"]], np.quantile(x, [0.03, 0.97]))

    def test_known_effective_sample_size(self):
        """AR(1) with rho = 0.8: ESS = 40000 / 9 = 4444; ArviZ's estimate of it has a relative sd near 3 % here."""
        row = draws(autoregression(0.8, 10_000)).summary().row("x")
        np.testing.assert_allclose(row["ess_bulk"], 40_000 / 9, rtol=0.2)
        np.testing.assert_allclose(row["mcse"], np.sqrt(9 / 40_000 / (1 - 0.64)), rtol=0.2)
        assert abs(row["r_hat"] - 1) < 0.01

    def test_chains_that_disagree(self):
        x = GOOD.copy()
        x[0] += 3
        table = draws({"mu": x}).summary()
        assert table.row("mu")["r_hat"] > 1.2
        assert "r_hat is over 1.01 in 1 of 1 rows" in str(table)

    def test_names_of_pytrees(self):
        class Two(NamedTuple):
            a: np.ndarray
            b: np.ndarray

        tree = {"v": np.stack([GOOD, -GOOD], -1), "nested": {"s": [GOOD]}, "pair": Two(GOOD, GOOD > 1)}
        table = draws(tree).summary()
        assert table.names == ("v[0]", "v[1]", "nested.s.0", "pair.a", "pair.b")
        np.testing.assert_allclose(table["mean"][0], -table["mean"][1])
        np.testing.assert_allclose(table.row("pair.b")["mean"], np.mean(GOOD > 1))

    def test_prints_with_flags_first(self):
        divergent = np.zeros((4, 500), bool)
        divergent[2, 17] = divergent[1, 400] = True
        status = np.array([0, 16, 16, 0], np.uint32)
        text = str(draws({"mu": GOOD}, info={"divergent": divergent}, status=status, log_evidence=-3.25).summary())
        lines = text.splitlines()
        assert lines[0] == "4 chains of 500 draws"
        assert "log evidence -3.25" in text
        assert "DIVERGENT [members [1, 2] of 4] (2 of 2000 (0.1 %), first at draw 17 of chain 2)" in " ".join(lines)
        assert text.index("DIVERGENT") < text.index("mean") < text.index("mu ")
        assert "no flags" in str(draws().summary())

    def test_many_rows(self):
        text = str(draws({"x": np.repeat(GOOD[..., None], 100, -1)}).summary())
        assert "and 40 more rows" in text

    def test_without_draws(self):
        empty = Draws(samples={}, info={}, status=np.zeros(2, np.uint32))
        assert "no draws were kept" in str(empty.summary())
        none = draws({"x": np.zeros((2, 0, 3))}).summary()
        assert np.isnan(none["mean"]).all()
        assert "0 draws a chain" in none.notes["x[0]"]

    def test_jax_arrays_and_double_precision(self, x64):
        assert draws(jnp.asarray(GOOD, jnp.float64)).summary().row("x")["mean"] == GOOD.astype(np.float64).mean()


def only_chain(k):
    x = GOOD.copy()
    x[k] = 1.5
    return x


def with_bad(value):
    x = GOOD.copy()
    x[2, 7] = value
    return x


DIAGNOSTICS = ("mcse", "ess_bulk", "ess_tail", "r_hat")
DEGENERATE = {
    "constant": (np.full((4, 500), 2.0, np.float32), "constant: every draw"),
    "one constant chain": (only_chain(3), "chain 3 is constant (1 of 4 chains)"),
    "different constants": (np.repeat(np.arange(4.0)[:, None], 500, 1), "constant: every draw"),
    "a NaN draw": (with_bad(np.nan), "1 of 2000 draws are not finite, first draw 7 of chain 2"),
    "an infinite draw": (with_bad(np.inf), "1 of 2000 draws are not finite"),
    "1 draw": (GOOD[:, :1], "1 draws a chain: diagnostics need at least 4"),
    "2 draws": (GOOD[:, :2], "2 draws a chain"),
    "3 draws": (GOOD[:, :3], "3 draws a chain"),
    "1e6 offset in float32": (GOOD + np.float32(1e6), "spacings of the floating-point grid at 1e+06: too coarse"),
    "1e9 offset in float32": (GOOD + np.float32(1e9), "constant: every draw"),
}


class TestDegenerate:
    @pytest.mark.parametrize("name", DEGENERATE)
    def test_nan_and_a_named_reason(self, name):
        x, reason = DEGENERATE[name]
        table = draws({"bad": x, "good": GOOD[:, : x.shape[1]]}).summary()
        row = table.row("bad")
        assert all(np.isnan(row[column]) for column in DIAGNOSTICS), row
        assert reason in table.notes["bad"]
        assert reason in " ".join(str(table).split())
        if x.shape[1] >= 4:
            assert all(np.isfinite(value) for value in table.row("good").values())
            assert "good" not in table.notes

    @pytest.mark.parametrize("name", ["a NaN draw", "an infinite draw"])
    def test_no_moment_is_computed_from_what_is_not_finite(self, name):
        row = draws({"bad": DEGENERATE[name][0]}).summary().row("bad")
        assert all(np.isnan(value) for value in row.values())

    def test_an_offset_in_double_precision_is_fine(self):
        """Moments of float32 draws are sums in float64: an offset of 1e4 costs nothing."""
        row = draws({"x": GOOD.astype(np.float64) + 1e6}).summary().row("x")
        plain = draws({"x": GOOD.astype(np.float64)}).summary().row("x")
        np.testing.assert_allclose([row["sd"], row["ess_bulk"]], [plain["sd"], plain["ess_bulk"]], rtol=1e-6)
        shifted = draws({"x": GOOD + np.float32(1e3)}).summary().row("x")
        np.testing.assert_allclose(shifted["sd"], plain["sd"], rtol=1e-4)

    def test_one_chain(self):
        table = draws({"x": GOOD[:1]}).summary()
        assert np.isnan(table.row("x")["r_hat"])
        assert table.row("x")["ess_bulk"] > 100
        assert "no r_hat from one chain" in table.notes["x"]

    def test_half_precision(self):
        table = draws({"x": GOOD.astype(jnp.bfloat16)}).summary()
        assert "too coarse" in table.notes["x"]
        np.testing.assert_allclose(table.row("x")["mean"], GOOD.mean(), rtol=0.01)


def full():
    """Draws with every kind of content."""
    return Draws(
        samples={
            "mu": GOOD, "a/b": np.stack([GOOD, GOOD], -1), "chain": GOOD > 1, "half": GOOD.astype(jnp.bfloat16),
            "more": (GOOD.astype(np.float64), [np.arange(2000).reshape(4, 500)], None),
        },
        info={"divergent": GOOD > 6, "log_density": GOOD, "status": np.zeros((4, 500), np.uint32)},
        status=np.array([0, 16, 0, 128], np.uint32),
        log_evidence=-12.5,
        kernel=jnp.sin,
        attrs={"name": "hmc", "seconds": 1.5, "reduced": {"mean": jnp.ones(2)}, "shape": (1, None)},
    )  # fmt: skip


class TestFiles:
    def test_round_trip(self, tmp_path):
        before = full()
        path = before.save(tmp_path / "draws.nc")
        after = Draws.load(path)
        assert jax.tree.structure(after.samples) == jax.tree.structure(before.samples)
        for field in ("samples", "info", "status"):
            pairs = zip(*(jax.tree.leaves(getattr(d, field)) for d in (before, after)), strict=True)
            for one, two in pairs:
                np.testing.assert_array_equal(one, two, strict=True)
        assert list(after.info) == list(before.info)
        assert after.log_evidence == -12.5
        assert after.attrs == {"name": "hmc", "seconds": 1.5, "reduced": {"mean": [1.0, 1.0]}, "shape": [1, None]}
        assert str(after.summary()) == str(before.summary())
        assert [entry.name for entry in tmp_path.iterdir()] == ["draws.nc"]

    def test_a_bare_array_and_nothing(self, tmp_path):
        after = Draws.load(draws(GOOD).save(tmp_path / "bare.nc"))
        np.testing.assert_array_equal(after.samples, GOOD, strict=True)
        assert after.log_evidence is None
        empty = Draws(samples={}, info={}, status=np.zeros(2, np.uint32))
        again = Draws.load(empty.save(tmp_path / "empty.nc"))
        assert (again.samples, again.info, again.num_chains, again.num_draws) == ({}, {}, 2, 0)

    def test_arviz_reads_the_file(self, tmp_path):
        path = full().save(tmp_path / "draws.nc")
        data = import_arviz().from_netcdf(str(path))
        np.testing.assert_array_equal(data["posterior"]["mu"].values, GOOD, strict=True)
        np.testing.assert_array_equal(data["sample_stats"]["diverging"].values, GOOD > 6)

    def test_an_unfinished_write_keeps_the_old_file(self, tmp_path, monkeypatch):
        path = draws().save(tmp_path / "draws.nc")

        def fail(path, groups, attrs):
            path.write_bytes(b"half a file")
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("probinf.core._draws.write_netcdf", fail)
        with pytest.raises(OSError, match="No space"):
            draws(-GOOD).save(path)
        np.testing.assert_array_equal(Draws.load(path).samples, GOOD)
        assert [entry.name for entry in tmp_path.iterdir()] == ["draws.nc"]

    @pytest.mark.parametrize("content", [None, b"", b"not a file of this kind"])
    def test_no_such_file_or_another(self, tmp_path, content):
        path = tmp_path / "draws.nc"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ValueError, match="cannot be read as a netCDF file"):
            Draws.load(path)

    def test_a_truncated_file(self, tmp_path):
        path = draws().save(tmp_path / "draws.nc")
        path.write_bytes(path.read_bytes()[:5000])
        with pytest.raises(ValueError, match="cannot be read as a netCDF file"):
            Draws.load(path)


class TestArviz:
    def test_type_and_groups(self):
        data = full().to_arviz()
        assert type(data).__name__ == ("InferenceData" if is_old(import_arviz()) else "DataTree")
        assert data["posterior"]["mu"].dims == ("chain", "draw")
        assert data["posterior"]["a.b"].shape == (4, 500, 2)
        assert {"diverging", "lp"} <= set(data["sample_stats"].data_vars)

    def test_arviz_agrees_with_the_summary(self):
        x = autoregression(0.5, 400)
        row = draws({"x": x}).summary().row("x")
        arviz = import_arviz()
        data = draws({"x": x}).to_arviz()
        for column, value in {
            "ess_bulk": arviz.ess(data, method="bulk"), "ess_tail": arviz.ess(data, method="tail"),
            "r_hat": arviz.rhat(data), "mcse": arviz.mcse(data, method="mean"),
        }.items():  # fmt: skip
            np.testing.assert_allclose(row[column], float(value["x"]))


class TestCheck:
    def test_healthy_draws_come_back(self):
        healthy = draws()
        assert healthy.check() is healthy

    def test_fatal_flags_raise(self):
        status = np.array([0, int(Status.NONFINITE_INIT), 0, 0], np.uint32)
        with pytest.raises(InferenceError, match=r"NONFINITE_INIT \[members \[1\] of 4\]"):
            draws(status=status).check()

    def test_other_flags_give_one_warning_with_counts(self):
        flagged = full()
        with pytest.warns(InferenceWarning) as caught:
            assert flagged.check() is flagged
        assert len(caught) == 1
        text = str(caught[0].message)
        num = int((GOOD > 6).sum())
        assert f"({num} of 2000 ({100 * num / 2000:.2g} %), first at draw" in text
        assert "INTERRUPTED [members [3] of 4]" in text

    def test_repr(self):
        assert repr(full()).startswith("Draws(4 chains of 500 draws: mu, a.b, chain_, half, more.0, more.1.0; flagged")


class TestPlot:
    @pytest.mark.parametrize("kind", ["trace", "rank"])
    def test_a_figure(self, kind, tmp_path):
        figure = full().plot(kind)
        assert isinstance(figure, Figure)
        figure.savefig(tmp_path / "figure.png")
        assert (tmp_path / "figure.png").stat().st_size > 5000
        titles = [axes.get_title(loc="left") for axes in figure.axes]
        assert "a.b[1]" in titles

    def test_chosen_rows(self):
        figure = full().plot(names=["a.b[1]"])
        assert len(figure.axes) == 2

    def test_degenerate_draws_can_be_plotted(self, tmp_path):
        for i, (x, _) in enumerate(DEGENERATE.values()):
            draws({"bad": x}).plot().savefig(tmp_path / f"{i}.png")

    def test_bad_requests(self):
        with pytest.raises(ValueError, match=r"`kind` must be one of .*got 'pie'"):
            full().plot("pie")
        with pytest.raises(ValueError, match="`names` holds 'nu'"):
            full().plot(names=["nu"])
        with pytest.raises(ValueError, match="no draws to plot"):
            Draws(samples={}, info={}, status=np.zeros(2, np.uint32)).plot()
