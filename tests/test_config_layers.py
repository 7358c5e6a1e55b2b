"""Layers of configuration: a choice starts from its own file, and a value reaches no other choice than its own."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from choices import CONF, names
from omegaconf import OmegaConf
from runs import composed

from ltexp.config.composer import compose
from ltexp.config.layers import Fold, Layer
from ltexp.config.path import VARIABLE
from ltexp.errors import ConfigError
from ltexp.launching.explain import explained
from ltexp.launching.freeze import freeze
from ltexp.train import flags_first

# the groups of a stage's parts, with the part of the same name
PARTS = ("augmentation", "classifier", "features", "loss", "mixing", "optimizer", "reweighting", "sampler", "schedule")
STAGES = ("stage1", "stage2")
QUICK = ("digits_lt",)  # the others run with the slow tests
DATASETS = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in names("dataset")]


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of config groups of the user's, empty."""
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    return tmp_path


def read(group: str, name: str) -> dict[str, Any]:
    content = yaml.safe_load((CONF / group / f"{name}.yaml").read_text(encoding="utf-8"))
    return content or {}


def recipe_of(name: str, stage: str) -> dict[str, Any]:
    """What a dataset's recipe says in a stage, read from its files."""
    content = read("recipe", name)
    base = [entry for entry in content["defaults"] if isinstance(entry, str) and entry != "_self_"]
    said = recipe_of(base[0], stage) if base else {}
    return said | content.get(stage, {}).get("recipe", {})


def alone(group: str, name: str, recipe: dict[str, Any], backbone: str) -> dict[str, Any]:
    """A choice's own file where only a recipe and a backbone are known."""
    content = read(group, name)
    for entry in content.pop("defaults", []):
        if isinstance(entry, dict):
            ((key, choice),) = entry.items()
            *within, last = key.partition("@")[2].split(".")
            node = content
            for step in within:
                node = node.setdefault(step, {})
            node[last] = read(key.strip("/").partition("@")[0], choice)
    tree = OmegaConf.create(
        {"recipe": recipe, "node": content, "choices": {"backbone": backbone}, "backbone": {"experts": None}}
    )
    node = OmegaConf.to_container(tree.node, resolve=True)
    assert isinstance(node, dict)
    return node


def rounds() -> list[dict[str, str]]:
    """Choices of all parts at a time, until each choice had its turn."""
    most = max(len(names(group)) for group in PARTS)
    return [{group: names(group)[number % len(names(group))] for group in PARTS} for number in range(most)]


def user_method(folder: Path, swaps: dict[str, str]) -> None:
    lines = [
        f"  - override /{group}@{stage}.{group}: {name}"
        for stage in ("stage1", "stage2")
        for group, name in swaps.items()
    ]
    (folder / "method").mkdir(exist_ok=True)
    text = "\n".join(["# @package _global_", "defaults:", "  - crt", "  - _self_", *lines, ""])
    (folder / "method" / "mine.yaml").write_text(text, encoding="utf-8")


@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize("way", ["command line", "method file"])
def test_a_swapped_choice_is_its_own_file(dataset: str, way: str, own: Path) -> None:
    """Every choice of every part of both stages: the composed node is the choice's file, read with the recipe."""
    recipe = read("dataset", dataset)["defaults"][0]["/recipe@_global_"]
    for swaps in rounds():
        if way == "command line":
            typed = [
                f"{group}@{stage}.{group}={name}" for stage in ("stage1", "stage2") for group, name in swaps.items()
            ]
            config = compose(["method=crt", f"dataset={dataset}", *typed])
        else:
            user_method(own, swaps)
            config = compose(["method=mine", f"dataset={dataset}"])
        plain = OmegaConf.to_container(config)
        assert isinstance(plain, dict)
        for stage in ("stage1", "stage2"):
            for group, name in swaps.items():
                expected = alone(group, name, recipe_of(recipe, stage), plain["choices"]["backbone"])
                assert plain[stage][group] == expected, (stage, group, name)
                assert plain["choices"][f"{group}@{stage}.{group}"] == name


def test_a_users_method_may_choose_what_its_base_sets_values_on(own: Path) -> None:
    for swaps, dataset in (
        ({"schedule": "cosine"}, "ag_news_lt"),  # whose recipe has milestones
        ({"augmentation": "none"}, "digits_lt"),  # padding
        ({"augmentation": "none"}, "inat18"),  # jitter
    ):
        user_method(own, swaps)
        plain = freeze(compose(["method=mine", f"dataset={dataset}"]))
        for group, name in swaps.items():
            assert plain["stage1"][group]["_target_"] == read(group, name)["_target_"]


def test_a_student_learns_as_its_teacher_does_whatever_that_is() -> None:
    plain = composed("method=kd", "optimizer@stage1.optimizer=adamw", "stage1.optimizer.eps=1e-7", small=False)
    assert plain["stage2"]["optimizer"] == plain["stage1"]["optimizer"]
    assert plain["stage2"]["optimizer"]["eps"] == 1e-7
    assert plain["choices"]["optimizer@stage2.optimizer"] == "adamw"
    own = composed("method=kd", "schedule@stage2.schedule=cosine", small=False)
    assert own["stage2"]["schedule"]["_target_"] == read("schedule", "cosine")["_target_"]
    assert own["choices"]["schedule@stage2.schedule"] == "cosine"


def test_a_term_of_the_command_line_composes() -> None:
    plain = composed("method=ce", "+loss@stage1.terms.aux.loss=label_smoothing", "+stage1.terms.aux.weight=0.5")
    assert plain["stage1"]["terms"]["aux"]["weight"] == 0.5
    assert plain["choices"]["loss@stage1.terms.aux.loss"] == "label_smoothing"


@pytest.mark.parametrize(
    ("typed", "answer"),
    [
        ("terms.aus.weight=1", "stage1 has no term aus; did you mean 'aux'? +loss@stage1.terms.aus.loss=NAME adds one"),
        ("terms.aus={weight: 1}", "stage1 has no term aus; did you mean 'aux'? "),
        ("modules.means.width=3", "stage1 has no module means; +module@stage1.modules.means=NAME adds one"),
    ],
)
def test_what_is_typed_of_a_named_part_that_is_not_there_is_refused(typed: str, answer: str) -> None:
    with pytest.raises(ConfigError) as refused:
        composed("method=ce", "+loss@stage1.terms.aux.loss=label_smoothing", f"+stage1.{typed}")
    assert str(refused.value).startswith(f"'+stage1.{typed}' has no effect: {answer}")


def test_what_a_file_says_of_a_named_part_that_is_not_there_is_left_out(own: Path) -> None:
    (own / "method").mkdir()
    (own / "method" / "mine.yaml").write_text(
        "# @package _global_\ndefaults: [ce, _self_]\nstage1: {terms: {aus: {weight: 0.3}}, modules: {m: {width: 3}}}\n"
    )
    stage = composed("method=mine")["stage1"]
    assert stage["terms"] == stage["modules"] == {}


def test_a_value_on_a_part_of_a_part_belongs_to_that_choice(own: Path) -> None:
    """A stream's sampler, and one of a deferred sampler's two, are choices like a stage's own."""
    (own / "method").mkdir()
    (own / "method" / "mine.yaml").write_text(
        "# @package _global_\n"
        "defaults:\n"
        "  [ce, {/stream@stage1.streams.rare: reversed}, _self_, {override /sampler@stage1.sampler: deferred}]\n"
        "stage1:\n"
        "  sampler: {start: 0.5, after: {epoch_length: 7}}\n"
        "  streams: {rare: {batch_size: 32, sampler: {epoch_length: 9}}}\n"
        "  terms: {rare: {loss: {_target_: ltexp.losses.cross_entropy.CrossEntropy}, stream: rare}}\n"
    )

    def stage1(*typed: str) -> tuple[Any, Any]:
        stage = freeze(compose(["method=mine", *typed]))["stage1"]
        return stage["streams"]["rare"], stage["sampler"]

    stream, sampler = stage1()
    assert (stream["batch_size"], stream["sampler"]["epoch_length"]) == (32, 9)
    assert (sampler["start"], sampler["after"]["epoch_length"]) == (0.5, 7)
    stream, sampler = stage1(
        "sampler@stage1.streams.rare.sampler=square_root", "sampler@stage1.sampler.after=class_aware"
    )
    assert (stream["batch_size"], stream["sampler"]) == (32, read("sampler", "square_root"))
    assert (sampler["start"], sampler["after"]) == (0.5, read("sampler", "class_aware"))
    stream, _ = stage1("stream@stage1.streams.rare=held_out")
    assert stream == alone("stream", "held_out", {}, "")


def test_choices_say_what_the_nodes_are() -> None:
    """DaSL's settings choose drops for stage 2, where its method has a cosine."""
    plain = composed("method=dasl", "dataset=cifar100_lt", small=False)
    assert plain["choices"]["schedule@stage2.schedule"] == "multistep"
    assert plain["stage2"]["schedule"]["_target_"] == read("schedule", "multistep")["_target_"]
    assert not any("stage2" in key for key in composed("method=ce")["choices"] if "@" in key and "." in key)


def test_a_papers_settings_by_family() -> None:
    assert composed("method=ldam_drw", "dataset=cifar10_lt", small=False)["choices"]["paper"] == "ldam_drw/cifar"
    assert composed("method=ce", "dataset=cifar10_lt", "paper=bkd", small=False)["stage1"]["schedule"]["decay"] == 0.01
    assert "paper" not in composed("method=mislas", "dataset=cifar100_lt", "paper=null", small=False)["choices"]
    with pytest.raises(ConfigError, match="paper=dasl: that paper has no settings for dataset/digits_lt"):
        composed("method=ce", "paper=dasl")


def test_quotes_around_a_choice_change_nothing() -> None:
    plain = composed('method="ldam_drw"', "dataset='cifar10_lt'", small=False)
    assert plain["choices"]["paper"] == "ldam_drw/cifar"
    assert plain["stage1"] == composed("method=ldam_drw", "dataset=cifar10_lt", small=False)["stage1"]
    assert (
        composed("method=ce", "dataset=cifar10_lt", 'paper="bkd"', small=False)["choices"]["paper"] == "bkd/cifar10_lt"
    )
    several = composed("method=ce", "dataset=cifar10_lt", "paper=['mislas', bkd]", small=False)
    assert several == composed("method=ce", "dataset=cifar10_lt", "paper=[mislas,bkd]", small=False) | {
        "overrides": several["overrides"]
    }


def test_a_dataset_that_builds_on_another_has_the_settings_of_its_recipe(own: Path) -> None:
    (own / "dataset").mkdir()
    (own / "dataset" / "mine.yaml").write_text("# Mine.\ndefaults: [cifar100_lt, _self_]\nname: mine\n")
    (own / "dataset" / "again.yaml").write_text("# Again.\ndefaults: [mine, _self_]\nname: again\n")
    for dataset in ("cifar100_lt", "mine", "again"):
        plain = composed("method=gcl", f"dataset={dataset}", small=False)
        assert (plain["choices"]["paper"], plain["stage2"]["epochs"]) == ("gcl/cifar", 30)


def test_settings_that_are_those_of_no_paper_are_refused(own: Path) -> None:
    (own / "method").mkdir()
    text = "# @package _global_\ndefaults: [ce, _self_]\n"
    (own / "method" / "mine.yaml").write_text(f"{text}settings: mislass\n")
    with pytest.raises(ConfigError, match="unknown settings 'mislass': did you mean 'mislas'"):
        composed("method=mine")
    (own / "method" / "mine.yaml").write_text(f"{text}settings: dasl\n")
    assert "paper" not in composed("method=mine")["choices"]  # that paper has none for digits
    with pytest.raises(ConfigError, match="'settings=glag' has no effect: write paper=glag"):
        composed("method=mislas", "settings=glag")


def test_a_papers_settings_of_a_stage_that_is_not_there_are_left_out() -> None:
    plain = composed("method=ce", "dataset=imagenet_lt", "paper=lfme", small=False)
    assert not [name for name in ("stage2", "stage3", "stage4") if plain.get(name) is not None]
    assert (plain["stage1"]["epochs"], plain["stage1"]["batch_size"]) == (120, 128)
    assert "many_above" not in plain["stage1"]["sampler"]


def test_cfg_job_prints_what_is_trained() -> None:
    """For a method with shared parts and one whose paper chooses: what Hydra prints is what is frozen."""
    for method in ("ride_bkd_3", "dasl"):
        words = [f"method={method}", "dataset=cifar100_lt"]
        command = [sys.executable, "-m", "ltexp.train", "--cfg", "job", *words]
        printed = yaml.safe_load(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        frozen = composed(*words, small=False)
        apart = ("paths", "stage_cache", "overrides", "launcher")  # folders are made absolute
        assert {k: v for k, v in printed.items() if k not in apart} == {
            k: v for k, v in frozen.items() if k not in apart
        }


def test_a_sweep_leaves_out_what_is_set_on_a_stage_that_a_job_does_not_have(tmp_path: Path) -> None:
    words = [
        "-m",
        "method=ce,crt,mislas",
        "stage@stage2=rebalancing",
        "stage2.epochs=20",
        "stage2.batch_norm=melted",
        f"hydra.sweep.dir={tmp_path}",
    ]
    command = [sys.executable, "-m", "ltexp.train", *words]
    answer = subprocess.run(command, capture_output=True, text=True)
    assert answer.stdout.splitlines() == [
        "3 jobs, all checked before the first starts",
        f"job 1 of 3 (method=ce) has no stage2: {' '.join(words[2:5])} left out",
    ]
    assert f"job 2 of 3 (method=crt {' '.join(words[2:5])})" in answer.stderr  # and so is that


def test_flags_may_stand_anywhere() -> None:
    typed = ["method=ce", "-m", "seed=0,1", "--config-dir", "mine", "stage1.epochs=1"]
    assert flags_first(typed) == ["-m", "--config-dir", "mine", "method=ce", "seed=0,1", "stage1.epochs=1"]


@pytest.mark.parametrize("experiment", names("experiment"))
def test_an_experiment_composes_and_the_command_line_has_the_last_word(experiment: str) -> None:
    plain = composed(f"experiment={experiment}", "stage1.epochs=3", small=False)
    assert plain["stage1"]["epochs"] == 3
    overridden = read("experiment", experiment)["defaults"]
    assert {"override /method": plain["choices"]["method"]} in overridden


def test_a_value_of_an_experiment_falls_with_its_choice() -> None:
    kept = composed("experiment=two_stage_ldam")["stage2"]["loss"]
    assert kept["max_margin"] == 0.3
    swapped = composed("experiment=two_stage_ldam", "loss@stage2.loss=cosface")["stage2"]["loss"]
    assert swapped == alone("loss", "cosface", {}, "resnet8")


def folded(*layers: Layer, typed: frozenset[str] = frozenset()) -> dict[str, Any]:
    """Layers over a stage whose loss is `b` at the end, in a group of the choices a and b."""
    config: dict[str, Any] = {"stage1": {"loss": {"_target_": "b", "x": 0}}, "stage2": {}}
    fold = Fold(config, {"stage1.loss": "b"}, {"stage1.loss": "loss"}, typed, lambda group: ["a", "b"])
    fold.run(layers, {"stage1.loss": "a"})
    return config


def test_a_value_reaches_the_choice_in_force_at_its_layer() -> None:
    weak = Layer("recipe/r", {"stage1": {"loss": {"x": 1}}}, {})  # sees a
    strong = Layer("method/m", {"stage1": {"loss": {"y": 2}}}, {"stage1.loss": "b"})
    assert folded(weak, strong)["stage1"]["loss"] == {"_target_": "b", "x": 0, "y": 2}


def test_a_named_value_reaches_its_choice_from_any_layer() -> None:
    named = Layer("recipe/r", {"stage1": {"loss": {"b": {"x": 1}, "a": {"x": 9}}}}, {})
    assert folded(named)["stage1"]["loss"] == {"_target_": "b", "x": 1}
    with pytest.raises(ConfigError, match=r"conf/recipe/r\.yaml: stage1\.loss names b and has the key z"):
        folded(Layer("recipe/r", {"stage1": {"loss": {"b": {"x": 1}, "z": 3}}}, {}))


def test_only_a_method_or_an_experiment_says_which_stages_there_are() -> None:
    none, values = {"stage2": None}, {"stage2": {"epochs": 3}}
    assert folded(Layer("method/m", none, {}), Layer("paper/p", values, {}))["stage2"] is None
    assert folded(Layer("method/m", none, {}), Layer("experiment/e", values, {}))["stage2"] == {"epochs": 3}


def test_every_named_value_in_conf_is_a_key_of_its_choice() -> None:
    for path in sorted([*CONF.glob("paper/*/*.yaml"), *CONF.glob("method/*.yaml")]):
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        for stage in ("stage1", "stage2"):
            for group in PARTS:
                node = (content.get(stage) or {}).get(group)
                named = (
                    {key: values for key, values in node.items() if key in names(group) and isinstance(values, dict)}
                    if isinstance(node, dict)
                    else {}
                )
                for name, values in named.items():
                    assert set(values) <= set(read(group, name)), (path.name, stage, group)


def test_override_before_a_choice_in_a_users_method_file_is_answered_in_one_line(own: Path) -> None:
    (own / "method").mkdir()
    listed = ["override /schedule@stage1.schedule: cosine", "crt", "_self_"]
    (own / "method" / "mine.yaml").write_text("defaults:\n" + "".join(f"  - {line}\n" for line in listed))
    with pytest.raises(ConfigError) as raised, explained(["method=mine"]):
        compose(["method=mine"])
    assert str(raised.value) == (
        "method/mine: 'override /schedule@stage1.schedule: cosine' stands before 'crt' in the defaults list: "
        "put override lines last"
    )


@pytest.mark.parametrize(
    ("typed", "answer"),
    [
        (["stage@stage2=rebalancing"], "'stage@stage2=rebalancing' has no effect: stage2 is null here"),
        (
            ["stage@stage2=rebalancing", "stage2.epochs=1"],
            "'stage@stage2=rebalancing' has no effect: stage2 is null here",
        ),
        (["+stage@stage2=rebalancing"], "+stage@stage2=rebalancing: there is a stage2 already, if only as null"),
    ],
)
def test_a_stage_that_a_method_leaves_out_is_not_brought_back_by_a_choice(typed: list[str], answer: str) -> None:
    with pytest.raises(ConfigError) as refused, explained(["method=ldam", *typed]):
        compose(["method=ldam", *typed])
    assert str(refused.value).startswith(answer)
    assert compose(["method=ldam", "+stage@stage3=rebalancing", "stage3.epochs=1"]).stage3.epochs == 1


@pytest.mark.parametrize(
    ("typed", "answer"),
    [
        ("stage1.lr_factors.backbone=0.5", "has no keys yet; +stage1.lr_factors.backbone=VALUE adds one"),
        (
            "stage1.lr_factors.classifier.temperature=0.1",
            "stage1.lr_factors has no keys yet; +stage1.lr_factors.classifier.temperature=VALUE adds one",
        ),
        ("stage1.loss.smoothing=0.3", "with loss@stage1.loss=NAME; the one chosen has epsilon, spread, scale"),
    ],
)
def test_an_unknown_key_is_answered_with_what_is_there(typed: str, answer: str) -> None:
    words = ["method=crt", "loss@stage1.loss=label_smoothing", typed]
    with pytest.raises(ConfigError) as refused, explained(words):
        compose(words)
    assert str(refused.value).startswith(f"unknown key '{typed.partition('=')[0]}': ")
    assert str(refused.value).endswith(answer)


@pytest.mark.parametrize(
    ("typed", "answer"),
    [
        ("stage1=3", "set a key below stage1"),
        ("evaluation=3", "set a key below evaluation"),
        ("stage1.terms=3", "+loss@stage1.terms.NAME.loss=FILE adds one"),
        ("stage1.modules=3", "+module@stage1.modules.NAME=FILE adds one"),
        ("stage1.optimizer=adam", "choose with optimizer@stage1.optimizer=NAME, or set a key below stage1.optimizer"),
    ],
)
def test_one_value_for_what_has_keys_is_answered_with_how_to_set_it(typed: str, answer: str) -> None:
    with pytest.raises(ConfigError) as refused:
        compose(["method=ce", typed])
    assert str(refused.value) == f"'{typed}': {typed.partition('=')[0]} is not one value: {answer}"
