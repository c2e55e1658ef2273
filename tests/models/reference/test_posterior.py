"""`posterior`: what it reads from a folder of either layout, the names of quantities, and what it refuses.

Planted bugs, each seen to fail here: quantities numbered from 0; standard deviations with n; one chain taken for all;
the rows of another posterior read too; a missing variable passed over.
"""

import json
import zipfile
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from probinf.models.reference import MODELS, NAMES, ReferenceSummary, posterior
from probinf.samplers import hmc, sample

pytestmark = pytest.mark.numpyro

SCHOOLS = "eight_schools-eight_schools_noncentered"
MOMIQ = "kidiq-kidscore_momiq"
KIDIQ = {"N": 3, "kid_score": [65, 98, 85], "mom_iq": [121.1, 89.4, 115.4], "mom_hs": [1, 1, 0]}
HEADER = "posterior,parameter,mean,sd,mean_square,n_draws"
ROWS = [
    f"{MOMIQ},beta[1],2.0,0.5,4.25,100",
    f"{MOMIQ},beta[2],3.0,0.1,9.01,100",
    f"{MOMIQ},sigma,1.0,0.2,1.04,100",
    "other-model,beta[1],7,7,7,7",
]


def simple(folder: Path, *, data: str | None = None, table: str | None = None) -> Path:
    """A folder of the simple layout."""
    (folder / "posteriordb_data").mkdir()
    (folder / "posteriordb_data" / "kidiq.json").write_text(json.dumps(KIDIQ) if data is None else data)
    (folder / "posteriordb.csv").write_text("\n".join([HEADER, *ROWS]) if table is None else table)
    return folder


def checkout(folder: Path, draws: Any, reference: str | None = MOMIQ) -> Path:
    """A folder like a checkout of posteriordb."""
    root = folder / "posterior_database"
    (root / "posteriors").mkdir(parents=True)
    entry = {"name": MOMIQ, "data_name": "kidiq", "model_name": "kidscore_momiq", "reference_posterior_name": reference}
    (root / "posteriors" / f"{MOMIQ}.json").write_text(json.dumps(entry))
    for path, content in {"data/data/kidiq": KIDIQ, f"reference_posteriors/draws/draws/{MOMIQ}": draws}.items():
        file = root / f"{path}.json.zip"
        file.parent.mkdir(parents=True)
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr(file.stem, json.dumps(content))
    return folder


# --- what is read ---


def test_eight_schools_need_no_folder() -> None:
    schools = posterior(SCHOOLS)
    assert schools.summary is None
    assert schools.data["y"].tolist() == [28, 8, -3, 7, -1, 1, 18, 12]
    assert schools.data["sigma"].tolist() == [15, 10, 16, 11, 9, 11, 10, 18]
    leaves = jax.tree.leaves(eqx.filter(schools.target, eqx.is_array))
    assert any(leaf.shape == (8,) and leaf[0] == 28 for leaf in leaves)


def test_simple_layout(tmp_path: Path) -> None:
    found = posterior(MOMIQ, str(simple(tmp_path)))
    assert found.name == MOMIQ
    assert found.summary == {
        "beta[1]": ReferenceSummary(2.0, 0.5, 4.25, 100),
        "beta[2]": ReferenceSummary(3.0, 0.1, 9.01, 100),
        "sigma": ReferenceSummary(1.0, 0.2, 1.04, 100),
    }
    assert set(found.data) == {"kid_score", "mom_iq"}
    np.testing.assert_allclose(found.data["mom_iq"], KIDIQ["mom_iq"], rtol=1e-6)


def test_simple_layout_without_a_summary(tmp_path: Path) -> None:
    folder = simple(tmp_path, table=HEADER + "\n" + ROWS[-1])
    assert posterior(MOMIQ, folder).summary is None
    (folder / "posteriordb.csv").unlink()
    assert posterior(MOMIQ, folder).summary is None


def test_checkout_of_posteriordb(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    draws = rng.normal(size=(2, 3, 5))  # chains, parameters, draws
    chains = [dict(zip(("beta[1]", "beta[2]", "sigma"), chain.tolist(), strict=True)) for chain in draws]
    folder = checkout(tmp_path, chains)
    for path in (folder, folder / "posterior_database"):
        found = posterior(MOMIQ, path)
        assert found.summary is not None
        for i, name in enumerate(("beta[1]", "beta[2]", "sigma")):
            values = draws[:, i].ravel()
            expected = (values.mean(), values.std(ddof=1), (values**2).mean(), 10)
            np.testing.assert_allclose(found.summary[name], expected, rtol=1e-12)
        np.testing.assert_allclose(found.data["kid_score"], KIDIQ["kid_score"])


def test_checkout_without_reference_draws(tmp_path: Path) -> None:
    assert posterior(MOMIQ, checkout(tmp_path, [], reference=None)).summary is None


def test_whole_numbers_and_scalars_of_the_data(tmp_path: Path) -> None:
    folder = simple(tmp_path)
    (folder / "posteriordb_data" / "arK.json").write_text(json.dumps({"K": 2, "T": 4, "y": [1, 2, 3, 5]}))
    (folder / "posteriordb_data" / "garch.json").write_text(json.dumps({"T": 3, "y": [1, 2, 3], "sigma1": 1}))
    assert posterior("arK-arK", folder).data["K"] == 2
    garch = posterior("garch-garch11", folder)
    assert garch.data["sigma1"].shape == ()
    assert jnp.issubdtype(garch.data["sigma1"].dtype, jnp.floating)


# --- quantities and starting points ---


def test_quantities_are_numbered_from_one() -> None:
    schools = posterior(SCHOOLS)
    samples = {
        "theta_trans": np.zeros((2, 5, 8)),
        "theta": np.arange(80.0).reshape(2, 5, 8),
        "mu": np.ones((2, 5)),
        "tau": np.full((2, 5), 3.0),
    }
    found = schools.quantities(samples)
    assert set(found) == {"mu", "tau", *(f"theta[{j}]" for j in range(1, 9))}
    np.testing.assert_array_equal(found["theta[3]"], samples["theta"][..., 2])
    np.testing.assert_array_equal(found["tau"], samples["tau"])
    assert schools.quantities({name: value[0, 0] for name, value in samples.items()})["theta[8]"].shape == ()


def test_quantities_refuse_other_samples() -> None:
    schools = posterior(SCHOOLS)
    with pytest.raises(ValueError, match=f"`samples` has no 'theta': pass constrained samples of `{SCHOOLS}`"):
        schools.quantities({"mu": np.zeros(3), "tau": np.zeros(3)})
    with pytest.raises(ValueError, match=r"`samples\['theta'\]` has shape \(3, 7\), which must end in \(8,\)"):
        schools.quantities({"mu": np.zeros(3), "tau": np.zeros(3), "theta": np.zeros((3, 7))})


def test_starting_points_of_an_improper_posterior(tmp_path: Path, key: Any) -> None:
    found = posterior(MOMIQ, simple(tmp_path))
    key_start, key_run, key_other = jax.random.split(key, 3)
    assert found.target.sample_prior is None
    with pytest.raises(ValueError, match="pass `initial_position`"):
        sample(key_other, hmc(), found.target, num_samples=1)
    start = found.initial_position(key_start, 1000)
    assert {name: value.shape for name, value in start.items()} == {"beta": (1000, 2), "sigma": (1000,)}
    for value in start.values():
        # Uniform on (-2, 2): the largest of 1000 is below 1.9 with probability below 1e-11.
        assert 1.9 < np.max(np.abs(value)) <= 2
    few = jax.tree.map(lambda a: a[:2], start)
    draws = sample(
        key_run, hmc(), found.target, num_samples=3, num_warmup=2, num_chains=2, initial_position=few, throw=False
    )
    assert found.quantities(draws.samples)["beta[2]"].shape == (2, 3)
    with pytest.raises(ValueError, match="`num_chains` is 0"):
        found.initial_position(key, 0)


# --- what is refused ---


def test_unknown_name() -> None:
    with pytest.raises(ValueError, match=r"`name` is 'schools', which is no reference posterior: choose one of \['arK"):
        posterior("schools")


@pytest.mark.parametrize("name", [name for name in NAMES if name != SCHOOLS])
def test_other_data_need_a_folder(name: str) -> None:
    with pytest.raises(ValueError, match=f"`folder` is None, but the data of '{name}' do not ship .* pass the path"):
        posterior(name)


def test_wrong_folders(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"`folder` is .*nowhere', which is no folder"):
        posterior(MOMIQ, tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"has neither `posteriordb_data` .* nor `posteriors`"):
        posterior(MOMIQ, tmp_path)


def test_missing_data_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"diamonds\.json is missing: the folder does not hold this posterior"):
        posterior("diamonds-diamonds", simple(tmp_path))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("{", r"kidiq\.json is not valid JSON: .*line 1"),
        ("[1, 2]", r"kidiq\.json holds a JSON list, but needs an object"),
        (json.dumps({"mom_iq": [1]}), r"kidiq\.json has no variable kid_score, which `kidscore_momiq` needs"),
        (json.dumps(KIDIQ | {"mom_iq": ["a", 1, 2]}), r"variable 'mom_iq' of .* is not a rectangular array of numbers"),
        (json.dumps(KIDIQ | {"mom_iq": [[1, 2], [3]]}), r"variable 'mom_iq' of .* is not a rectangular array"),
        (json.dumps(KIDIQ | {"mom_iq": [1, float("nan"), 2]}), r"variable 'mom_iq' of .* NaN or infinite"),
    ],
)
def test_damaged_data(data: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words):
        posterior(MOMIQ, simple(tmp_path, data=data))


def test_sizes_must_be_whole(tmp_path: Path) -> None:
    folder = simple(tmp_path)
    (folder / "posteriordb_data" / "arK.json").write_text(json.dumps({"K": 2.5, "y": [1, 2, 3, 5]}))
    with pytest.raises(ValueError, match=r"variable 'K' of .*arK\.json is 2\.5, but must be a whole number"):
        posterior("arK-arK", folder)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("posterior,parameter,mean\n", r"posteriordb\.csv has no column sd, mean_square, n_draws"),
        ("", r"posteriordb\.csv has no column posterior"),
        (f"{HEADER}\n{MOMIQ},sigma,1,2,x,4", r"posteriordb\.csv, line 2: .* are not three numbers and a count"),
        (f"{HEADER}\n{MOMIQ},sigma,1,2", r"posteriordb\.csv, line 2: .* are not three numbers and a count"),
    ],
)
def test_damaged_table(table: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words):
        posterior(MOMIQ, simple(tmp_path, table=table))


@pytest.mark.parametrize("draws", [[], {}, [{"a": [1.0]}, {"b": [1.0]}], [{"a": ["x"]}], 3])
def test_damaged_draws(draws: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"momiq\.json\.zip does not hold a list of chains"):
        posterior(MOMIQ, checkout(tmp_path, draws))


def test_damaged_checkout(tmp_path: Path) -> None:
    root = checkout(tmp_path, [{"sigma": [1.0, 2.0]}]) / "posterior_database"
    (root / "data" / "data" / "kidiq.json.zip").write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(ValueError, match=r"kidiq\.json\.zip is no zip archive: .* Git LFS"):
        posterior(MOMIQ, root)
    with zipfile.ZipFile(root / "data" / "data" / "kidiq.json.zip", "w"):
        pass
    with pytest.raises(ValueError, match=r"kidiq\.json\.zip holds 0 files, but needs one"):
        posterior(MOMIQ, root)
    (root / "posteriors" / f"{MOMIQ}.json").write_text("{}")
    with pytest.raises(ValueError, match="has no string `data_name`"):
        posterior(MOMIQ, root)
    with pytest.raises(ValueError, match=r"sblrc-blr\.json is missing"):
        posterior("sblrc-blr", root)


def test_names_are_data_and_model() -> None:
    assert tuple(MODELS) == NAMES == tuple(sorted(NAMES))
    assert all(name.count("-") == 1 for name in NAMES)
