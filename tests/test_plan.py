"""Plans of sweeps, from YAML to groups of runs."""

from pathlib import Path

import pytest
import yaml

from dmsrec_jax import sweep
from dmsrec_jax.config import SweepConfig
from dmsrec_jax.errors import InputError
from dmsrec_jax.plan import groups, read_plan

BASE = {"backbone": "srgnn", "intents": "intents/x", "align-weight": 0.3}
CONFIGS = sorted((Path(__file__).parents[1] / "configs" / "sweeps").glob("*.yaml"))
PROGRAMS = {"ablations": 2, "alignments": 1, "alpha-beta": 1, "lambda": 1, "placebo": 8, "schedules": 1}
"""Compiled programs that each needs, as it says itself."""


@pytest.fixture
def plan(tmp_path):
    def read(flags: dict | None = None, **spec):
        path = tmp_path / "plan.yaml"
        path.write_text(yaml.safe_dump(spec, sort_keys=False))
        return read_plan(SweepConfig(path, tmp_path / "out", **(flags or {})))

    return read


def test_grid_times_settings_times_seeds(plan):
    grid, named = {"alpha": [0.5, 1.0], "beta": [0.0, 2.0]}, {"kl": {}, "x y": {"align": "infonce"}}
    settings, members = plan(base=BASE, seeds=[0, 1], grid=grid, settings=named)
    assert list(settings)[:2] == ["kl,alpha=0.5,beta=0.0", "kl,alpha=0.5,beta=2.0"]
    assert (len(settings), len(members)) == (8, 16)
    last = members[-1]
    assert (last.config.align, last.config.alpha, last.config.beta, last.config.seed) == ("infonce", 1.0, 2.0, 1)
    assert last.folder.as_posix() == "x-y,alpha=1.0,beta=2.0/seed-1"


def test_without_anything_to_vary_it_is_one_run(plan):
    settings, members = plan(base=BASE)
    assert settings == {"base": {}}
    assert [member.config.align_weight for member in members] == [0.3]


def test_flags_and_a_run_s_settings_stand_above_base(plan, tmp_path):
    kept = tmp_path / "config.yaml"
    kept.write_text("backbone: gcegnn\nlr: 0.5\nout: runs/x\nresume: false\nseed: 9\n")
    flags = {"base": kept, "epochs": 4, "seeds": (5,), "intents": Path("intents/y")}
    _, members = plan(flags, base=BASE | {"lr": 0.1, "d": 12}, seeds=[0, 1])
    assert len(members) == 1
    config = members[0].config
    assert (config.backbone, config.lr, config.d, config.epochs, config.seed) == ("gcegnn", 0.5, 12, 4, 5)
    assert (config.intents, config.out) == (Path("intents/y"), None)


def test_a_plain_run_drops_what_base_says_of_intents(plan):
    _, (plain, fused) = plan(base=BASE, settings={"plain": {"intents": None}, "fused": {}})
    assert (plain.config.intents, plain.config.align_weight) == (None, None)
    assert fused.config.align_weight == 0.3


def test_what_is_traced_shares_a_program(plan):
    named = {
        "a": {"align": "infonce", "alpha": 0.0},
        "b": {"ablation": "no-latent", "lr": 0.5, "patience": 9},
        "dropped": {"semantic_dropout": 0.5},
        "dropped-more": {"semantic_dropout": 0.6},
        "cosine": {"score": "cosine"},
        "plain": {"intents": None},
    }
    _, members = plan(base=BASE, seeds=[0, 1], settings=named)
    found = [{member.setting for member in group} for group in groups(members)]
    assert found == [{"a", "b"}, {"dropped", "dropped-more"}, {"cosine"}, {"plain"}]


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"bases": {}}, "unknown key 'bases'; known are base, seeds, grid, settings"),
        ({"base": {"lrr": 1}}, "base: unknown key 'lrr'"),
        ({"base": {"backbone": "srgnn", "out": "x"}}, "base: out is no setting that a sweep varies"),
        ({"base": BASE, "settings": {"a": {"lrr": 1}}}, "settings: a: unknown key 'lrr'"),
        ({"base": BASE, "settings": {"a": 3}}, "settings: a: a mapping is due"),
        ({"base": BASE, "grid": {"dataset": ["x"]}}, "grid: dataset is no setting that a sweep varies"),
        ({"base": BASE, "grid": {"alpha": 1}}, "grid: alpha: a list of values is due"),
        ({"base": BASE, "grid": {"alpha": ["much"]}}, "alpha: 'much' is not of type float"),
        ({"base": BASE, "grid": {"alpha": [1.0, 1.0]}}, "two settings are called alpha=1.0"),
        ({"base": BASE, "grid": {"alpha": [-1.0]}}, "alpha=-1.0: --alpha -1.0: at least 0 is due"),
        ({"base": BASE, "grid": {"alpha": [1]}, "settings": {"a": {"alpha": 2}}}, "a: alpha is in grid as well"),
        ({"base": {"intents": "x"}}, "base: backbone is missing"),
        ({"base": BASE, "settings": {"lock": {}}}, "no folder can be called lock"),
        ({"base": BASE, "seeds": 3}, "seeds: a list of whole numbers is due, none below 0"),
        ({"base": BASE, "seeds": [3, 3]}, "seeds: one is there twice"),
        ({"base": BASE, "settings": {"p": {"intents": None, "alpha": 2.0}}}, "p: --alpha 2.0: needs --intents"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_mistakes_are_named_with_their_file(spec, words, tmp_path, refused):
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(spec, sort_keys=False))
    error = refused(sweep.main, "--config", path, "--out", tmp_path / "out")
    assert f"error: {path}: " in error
    assert words in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("seeds", "words"), [((0, 0), "one is there twice"), ((-1,), "none below 0")])
def test_seeds_of_the_command_are_checked_as_well(seeds, words, plan):
    with pytest.raises(InputError, match=f"^--seeds: .*{words}"):
        plan({"seeds": seeds}, base=BASE)


def test_settings_that_are_one_are_refused(plan):
    settings = {"plain": {"intents": None}, "fused": {}}
    with pytest.raises(InputError, match="plain and fused are the same; --intents would"):
        plan(base={"backbone": "srgnn"}, settings=settings)
    with pytest.raises(InputError, match=r"fused and again are the same$"):
        plan(base=BASE, settings={"fused": {}, "again": {"alpha": 1.0}})
    with pytest.raises(InputError, match=r"lr=0\.001 and again are the same$"):
        plan(base={"backbone": "srgnn"}, settings={"lr=0.001": {"lr": 0.001}, "again": {}})


def test_what_base_says_of_another_backbone_is_left_out_but_not_what_a_setting_says(plan):
    base = {"backbone": "gcegnn", "dropout_global": 0.2, "n_neighbors": 5}
    _, (gcegnn, srgnn) = plan(base=base, settings={"gcegnn": {}, "srgnn": {"backbone": "srgnn"}})
    assert (gcegnn.config.dropout_global, gcegnn.config.n_neighbors) == (0.2, 5)
    assert (srgnn.config.dropout_global, srgnn.config.n_neighbors) == (0.5, 12)
    with pytest.raises(InputError, match=r"dropout_global=0\.1: --dropout-global 0\.1: srgnn has no such setting"):
        plan(base={"backbone": "srgnn"}, grid={"dropout_global": [0.1, 0.5]})


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_ready_plans(path, tmp_path):
    settings, members = read_plan(SweepConfig(path, tmp_path, intents=Path("intents/x"), backbone="gcegnn"))
    assert len(members) == 3 * len(settings)
    assert len(groups(members)) == PROGRAMS[path.stem]
