"""Config groups of a user's own, beside ltexp's: read by every command, and told where they are not."""

import os
from pathlib import Path

import pytest

import ltexp
from ltexp.config.composer import compose
from ltexp.config.path import VARIABLE, group_files, take_config_dirs
from ltexp.config.signature import accepted_keywords
from ltexp.data.__main__ import main as data
from ltexp.errors import ConfigError
from ltexp.reproduce.__main__ import main as reproduce


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A folder with a dataset and a method."""
    files = {
        "dataset/birds.yaml": "# My birds.\ndefaults: [image_folder]\nname: birds\n",
        "method/mine.yaml": "# @package _global_\n# Mine.\ndefaults: [ce, _self_]\nstage1: {epochs: 7}\n",
    }
    for name, text in files.items():
        (tmp_path / "own" / name).parent.mkdir(parents=True)
        (tmp_path / "own" / name).write_text(text)
    return tmp_path / "own"


def test_data_looks_at_a_dataset_of_the_users(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert data(["check", "birds"]) == 2
    assert "unknown dataset 'birds'" in capsys.readouterr().err
    assert data(["check", "birds", "--config-dir", str(own)]) == 1
    assert "birds: no folder is given: set dataset.source.folder" in capsys.readouterr().out


def test_the_variable_names_folders_as_path_does(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "other" / "loss").mkdir(parents=True)
    (tmp_path / "other" / "loss" / "zebra.yaml").write_text("# Mine.\n_target_: zebra.Loss\n")
    monkeypatch.setenv(VARIABLE, os.pathsep.join([str(own), str(tmp_path / "other")]))
    assert compose(["method=mine", "dataset=digits_lt"]).stage1.epochs == 7
    assert group_files("loss")["zebra"] == tmp_path / "other" / "loss" / "zebra.yaml"
    monkeypatch.chdir(tmp_path)
    assert take_config_dirs(["-cd", "own", "seed=1"]) == ["seed=1"]
    assert os.environ[VARIABLE].split(os.pathsep)[0] == str(own)


def test_a_folder_that_is_not_there_is_refused_by_every_command(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert reproduce(["list", "--config-dir", str(own / "nowhere")]) == 2
    assert f"the config folder {own}/nowhere is not there" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="--config-dir names no folder"):
        take_config_dirs(["seed=1", "--config-dir"])


@pytest.mark.parametrize("before", ["", None])
def test_a_mistake_beside_a_method_of_the_users_is_told_as_on_the_command_line(
    own: Path, before: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line is found by composing again, which needs the user's folder as well."""
    if before is None:
        monkeypatch.delenv(VARIABLE)
    with pytest.raises(ConfigError, match=r"'stage2\.epochs' has no effect: stage2 is null here"):
        ltexp.train(["method=mine", "dataset=digits_lt", "stage2.epochs=3"], config_dirs=[own])
    assert os.environ.get(VARIABLE) == before  # until the end of the call


METHOD = "# @package _global_\ndefaults: [ce, _self_]\n"
OWN_LOSS = """
from dataclasses import dataclass
from ltexp.losses.base import Loss

class Unlisted(Loss):
    def __init__(self, class_counts, temperature=1.0):
        super().__init__(class_counts)

class Child(Unlisted):
    pass

class Stranger(Somewhere):
    pass

@dataclass
class Made:
    scale: float
"""
MISTAKES = {  # in a method's file, a loss's file, or on a command line
    "yaml": (f"{METHOD}stage1: {{epochs: 3\n", [], "{own}/method/wrong.yaml:4: this is not YAML: expected ',' or '}}'"),
    "bytes": (b"# \xff\nseed: 3\n", [], "{own}/method/wrong.yaml: this is not YAML in UTF-8: 'utf-8' codec"),
    "a list": ("- seed\n", [], "{own}/method/wrong.yaml: this is a list"),
    "a stage": (
        f"{METHOD}stage3: {{epochs: 4}}\n",
        [],
        "there is no stage3: `/stage@stage3: FILE` in the method's defau",
    ),
    "a typed stage": (METHOD, ["stage3.epochs=4"], "there is no stage3: "),
    "a choice's name": (
        f"{METHOD}stage1: {{loss: {{ldamm: {{scale: 20}}}}}}\n",
        [],
        "conf/method/wrong.yaml: stage1.loss has no ldamm: did you mean 'ldam'?",
    ),
    "a term's key": (
        METHOD,
        ["+loss@stage1.terms.aux.loss=ldam", "+stage1.terms.aux.weigth=1"],
        "unknown key 'stage1.terms.aux.weigth': did you mean 'stage1.terms.aux.weight'?",
    ),
    "a keyword that is not listed": (
        METHOD,
        ["loss@stage1.loss=child", "stage1.loss.temperature=4"],
        "own_losses.Child takes temperature, but conf/loss/child.yaml does not list it: add 'temperature: VALUE' there",
    ),
    "a misspelt one": (
        METHOD,
        ["loss@stage1.loss=child", "stage1.loss.temprature=4"],
        "unknown key 'stage1.loss.temprature': did you mean 'stage1.loss.temperature'?",
    ),
    "one of a class that cannot be read": (
        METHOD,
        ["loss@stage1.loss=stranger", "stage1.loss.temperature=4"],
        "unknown key 'stage1.loss.temperature'",
    ),
}


@pytest.mark.parametrize(("text", "typed", "answer"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_in_a_file_of_the_users_is_one_line(
    text: str | bytes, typed: list[str], answer: str, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (own / "method" / "wrong.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    (own / "loss").mkdir()
    for name in ("child", "stranger"):
        (own / "loss" / f"{name}.yaml").write_text(f"# Mine.\n_target_: own_losses.{name.capitalize()}\n")
    (own / "own_losses.py").write_text(OWN_LOSS)
    monkeypatch.syspath_prepend(str(own))
    with pytest.raises(ConfigError) as refused:
        ltexp.train(["method=wrong", "dataset=digits_lt", *typed], config_dirs=[own])
    assert str(refused.value).startswith(answer.format(own=own))
    assert "\n" not in str(refused.value)


def test_keywords_of_a_users_class_are_read_where_its_source_tells(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (own / "own_losses.py").write_text(OWN_LOSS)
    monkeypatch.syspath_prepend(str(own))
    assert accepted_keywords("own_losses.Child") == {"class_counts": "", "temperature": ""}
    for name in ("own_losses.Stranger", "own_losses.Made", "own_losses.No", "not_there.X", "torch.optim.SGD"):
        assert accepted_keywords(name) is None


def test_where_own_files_are_found_is_said_where_no_folder_of_them_is_named(own: Path) -> None:
    with pytest.raises(
        ConfigError,
        match=r"unknown loss 'my_own' \(files of your own are found with",
    ):
        ltexp.train(["loss@stage1.loss=my_own"])
    with pytest.raises(ConfigError, match=r"unknown loss 'my_own'$"):
        ltexp.train(["loss@stage1.loss=my_own"], config_dirs=[own])
    with pytest.raises(ConfigError, match=r"unknown method 'mislass': did you mean 'mislas'\?$"):
        ltexp.train(["method=mislass"])


def test_a_file_that_ltexps_own_hides_is_named(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (own / "loss").mkdir()
    (own / "loss" / "ldam.yaml").write_text("# Mine.\n_target_: mine.Loss\n")
    take_config_dirs(["--config-dir", str(own)])
    assert capsys.readouterr().err.startswith(f"note: {own}/loss/ldam.yaml is not read: ltexp has a file of that name")
    assert "mine" not in group_files("loss")["ldam"].read_text()


@pytest.mark.parametrize("way", ["environment", "command line", "both"])
def test_the_first_folder_counts_and_the_command_line_before_the_environment(
    way: str, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    (other / "method").mkdir(parents=True)
    (other / "method" / "mine.yaml").write_text("# @package _global_\ndefaults: [ce, _self_]\nstage1: {epochs: 9}\n")
    typed = {"environment": [], "command line": [other, own], "both": [other]}[way]
    monkeypatch.setenv(VARIABLE, {"environment": f"{other}{os.pathsep}{own}", "both": str(own)}.get(way, ""))
    take_config_dirs([word for folder in typed for word in ("--config-dir", str(folder))])
    assert compose(["method=mine", "dataset=digits_lt"]).stage1.epochs == 9
    assert group_files("method")["mine"] == other / "method" / "mine.yaml"
    note = f"note: {own}/method/mine.yaml is not read: {other} is named first and has a file of that name, which counts"
    assert capsys.readouterr().err.startswith(note)
    take_config_dirs([])
    assert capsys.readouterr().err == ""  # once


def test_names_that_nothing_reads_are_noted(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (own / "method" / "late.yml").write_text("seed: 3\n")
    for group in ("losses", "heads", "trunks"):
        (own / group).mkdir()
        (own / group / "one.yaml").write_text("# Mine.\n")
    (own / "method" / "two.yaml").write_text("# Mine.\ndefaults:\n  - /heads@stage1.classifier: one\n")
    take_config_dirs(["--config-dir", str(own), "+trunks@backbone=one"])
    assert capsys.readouterr().err.splitlines() == [
        f"note: {own}/method/late.yml is not read: call it late.yaml",
        f"note: {own}/losses is not read: ltexp has no such group; did you mean 'loss'?",
    ]
