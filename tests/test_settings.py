"""Settings out of range: one line that names the full key, whichever part of a run refuses them."""

import math
import pickle
import subprocess
import sys
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import composed

from ltexp.config import to_config
from ltexp.config.annotations import expected, fits
from ltexp.config.build import build
from ltexp.config.identity import is_material, run_identity
from ltexp.config.locate import check_targets, locate
from ltexp.config.numbers import check_numbers
from ltexp.config.require import is_number, is_whole, require, require_choice, within
from ltexp.config.words import own_keys, parse_value, read_choice, read_flag, split_words, status_of
from ltexp.errors import ConfigError, DataError, SettingError, UnknownKeyError
from ltexp.evaluate import OWN
from ltexp.evaluation.command_line import parse as parse_evaluate
from ltexp.models.backbone import without_files
from ltexp.models.classifier import Classifier
from ltexp.names import nearest, unknown_name
from ltexp.training.composition import check_composition
from ltexp.usage import folded

LABELS = torch.tensor([0, 0, 0, 1, 1, 2])
COUNTS = torch.tensor([3, 2, 1])


def test_a_key_grows_by_each_place_that_it_lies_in() -> None:
    with pytest.raises(SettingError) as refused, within("stage1"), within(""), within("loss"):
        require(0 > 1, "scale", -1, "a number above 0")
    assert str(refused.value) == "invalid stage1.loss.scale=-1: expected a number above 0"
    with pytest.raises(UnknownKeyError) as unknown, within("stage1.loss"):
        raise UnknownKeyError("scael", ["scale", "gamma"])
    assert str(unknown.value) == "unknown key 'stage1.loss.scael': did you mean 'stage1.loss.scale'?"
    with pytest.raises(ConfigError) as other, within("stage1"), within("loss"):
        raise ConfigError("it reads no logits")
    assert str(other.value) == "stage1.loss: it reads no logits"
    with pytest.raises(DataError, match=r"^no such file$"), within("dataset"):
        raise DataError("no such file")


@pytest.mark.parametrize(
    ("value", "annotation", "suits", "said"),
    [
        (1, "float", True, "float"),
        (True, "int | None", False, "int | None"),
        ([0.5, 1], "Sequence[float]", True, "a list of numbers"),
        ("ab", "Sequence[str]", False, "a list of texts"),
        ("ab", "str | Sequence[str]", True, "a text, or a list of texts"),
        ([1, 2], "tuple[float, float, float]", False, "a list of 3 numbers"),
        ([1, 2], "tuple[int, ...] | None", True, "a list of whole numbers, or null"),
        (None, "Mapping[str, Any] | None", True, "a node of keys, or null"),
        ({}, "node", False, "a node with a _target_"),
        (0.5, "Tensor", True, "Tensor"),
    ],
)
def test_a_value_suits_its_annotation(value: object, annotation: str, suits: bool, said: str) -> None:
    assert (fits(value, annotation), expected(annotation)) == (suits, said)


@pytest.mark.parametrize("value", [True, None, (1, 2), "none", 0.5])
def test_values_are_shown_as_they_are_typed(value: object) -> None:
    shown = {True: "true", None: "null", (1, 2): "[1, 2]"}.get(value, str(value))  # type: ignore[call-overload]
    error = SettingError("key", value, "another")
    assert str(error) == f"invalid key={shown}: expected another"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)  # as between processes


def test_a_choice_that_does_not_exist_is_answered_with_the_nearest() -> None:
    with pytest.raises(SettingError, match=r"^invalid form=sigmoit: expected softmax \| sigmoid; did you mean 'sigm"):
        require_choice("form", "sigmoit", ("softmax", "sigmoid"))
    require_choice("form", "softmax", ("softmax", "sigmoid"))


@pytest.mark.parametrize(
    ("value", "whole", "number"),
    [(2, True, True), (0, False, False), (True, False, False), (2.0, False, True), ("2", False, False)],
)
def test_numbers(value: object, whole: bool, number: bool) -> None:
    assert (is_whole(value, 1, 5), is_number(value, 1, 5)) == (whole, number)
    assert not any((is_whole(6, 1, 5), is_number(float("nan")), is_number(float("inf"), 1)))


TYPED = [
    ("stage1.loss.scale=-1", "invalid stage1.loss.scale=-1: expected a number above 0"),
    ("stage2.loss.scale=0", "invalid stage2.loss.scale=0: expected a number above 0"),
    ("stage1.mixing.alpha=0", "invalid stage1.mixing.alpha=0: expected a number above 0; "),
    ("stage1.schedule.decay=2", "invalid stage1.schedule.decay=2: expected a number above 0, at most 1"),
    ("stage2.sampler.epoch_length=0", "invalid stage2.sampler.epoch_length=0: expected a whole number of 1 or more"),
    ("stage1.augmentation.padding=-1", "invalid stage1.augmentation.padding=-1: expected a whole number of 0 or more"),
    ("stage1.classifier.init=kaimimg", "invalid stage1.classifier.init=kaimimg: expected kaiming | default; did you"),
    ("+stage1.optimizer.nesterof=true", "unknown key 'stage1.optimizer.nesterof': did you mean 'stage1.optimizer.nest"),
    ("stage1.optimizer._target_=torch.optim.SDG", "invalid stage1.optimizer._target_=torch.optim.SDG: expected "),
    ("+stage1.optimizer.dampening=0.5 stage1.optimizer.nesterov=true", "stage1.optimizer: torch.optim.SGD: Nesterov"),
    (
        "reweighting@stage1.reweighting=deferred stage1.reweighting.beta=1",
        "invalid stage1.reweighting.beta=1: ",
    ),
    ("+loss@stage1.terms.more.loss=focal stage1.terms.more.loss.gamma=-1", "invalid stage1.terms.more.loss.gamma=-1: "),
    (
        "sampler@stage2.sampler=deferred +stage2.sampler.after.epoch_length=0",
        "invalid stage2.sampler.after.epoch_len",
    ),
    ("stage1.schedule.milestones=0.5", "invalid stage1.schedule.milestones=0.5: expected a list of numbers"),
    ("stage1.schedule.milestones=null", "invalid stage1.schedule.milestones=null: expected a list of numbers"),
    ("stage1.schedule.milestones=[a]", "invalid stage1.schedule.milestones=['a']: expected a list of numbers"),
    ("optimizer@stage1.optimizer=adamw stage1.optimizer.betas=0.5", "invalid stage1.optimizer.betas=0.5: expected a "),
    ("dataset.channel_mean=null", "invalid dataset.channel_mean=null: expected a list of numbers"),
    ("dataset.source=null", "invalid dataset.source=null: expected a node with a _target_"),
    ("dataset.validation=0.1", "invalid dataset.validation=0.1: expected a node of keys, or null"),
    (
        "+stage1.terms.aux.weight=0.5",
        "'+stage1.terms.aux.weight=0.5' has no effect: stage1 has no term aux; +loss@stage1.terms.aux.loss=NAME adds",
    ),
    ("trainer.limit_train_batches=0", "invalid trainer.limit_train_batches=0: expected a number of batches, 1 or more"),
    ("trainer.limit_test_batches=0.0", "invalid trainer.limit_test_batches=0.0: expected a number of batches, 1 or m"),
    ("evaluation.calibration_bins=10000000000", "invalid evaluation.calibration_bins=10000000000: expected from 1 to"),
    ("stage1.optimizer.lr=1e400", "invalid stage1.optimizer.lr=inf: expected a finite number"),
    ("stage1.optimizer.lr=1e300", "invalid stage1.optimizer.lr=1e+300: expected a number above 0, at most 1e+30"),
    (
        "stage1.sampler.epoch_length=1000000000000",
        "invalid stage1.sampler.epoch_length=1000000000000: expected a whole",
    ),
    ("stage1.loss_weight=nan", "invalid stage1.loss_weight=nan: expected a finite number"),
    ("trainer.gradient_clip_val=1e400", "invalid trainer.gradient_clip_val=inf: expected a finite number"),
    ("stage1.schedule.milestones=[nan]", "invalid stage1.schedule.milestones=nan: expected a finite number"),
    ("stage1.epochs=99999999999999999999", "invalid stage1.epochs=99999999999999999999: expected a whole number below"),
    ("stage1.epochs=10000000000", "invalid stage1.epochs=10000000000: expected at most 1000000"),
    (
        "stage1.optimizer.momentum=1.5",
        "invalid stage1.optimizer.momentum=1.5: expected a number of 0 or more and below",
    ),
    ("stage1.optimizer.weight_decay=-1", "invalid stage1.optimizer.weight_decay=-1: expected a number of 0 or more"),
    ("classifier@stage2.classifier=tau_normalized stage2.classifier.tau=-1", "invalid stage2.classifier.tau=-1: "),
    ("classifier@stage2.classifier=logit_adjusted stage2.classifier.tau=-1", "invalid stage2.classifier.tau=-1: "),
    ("step@stage1.step=sam stage1.step.rho=0", "invalid stage1.step.rho=0: expected a number above 0"),
]


@pytest.mark.parametrize(("typed", "answer"), TYPED)
def test_what_is_typed_is_what_the_answer_names(typed: str, answer: str) -> None:
    with pytest.raises(ConfigError) as refused:
        check_composition(to_config(composed("method=crt_mixup", *typed.split())))
    assert str(refused.value).startswith(answer)
    assert "\n" not in str(refused.value)


def test_infinity_is_left_to_what_takes_it() -> None:
    assert to_config(composed("method=remix", "stage1.mixing.kappa=inf")).stage1.mixing["kappa"] == math.inf
    check_numbers({"callbacks": {"own": {"_target_": "mine.Callback", "until": math.inf}}})


def test_a_dataset_names_its_full_keys(tmp_path: Path) -> None:
    for typed in ("dataset.validation.fraction=1.5", "dataset.subset.seed=-1", "dataset.imbalance=long"):
        with pytest.raises(ConfigError, match=f"^invalid {typed}: expected "):
            build(composed(typed)["dataset"], root=str(tmp_path), path="dataset")


class Foreign:
    """As a user's own class may be."""

    def __init__(self, width: int, depth: int = 2) -> None:
        if width < 1:
            raise ValueError("width must be positive")
        self.width, self.depth = width, depth


@pytest.mark.parametrize(
    ("settings", "answer"),
    [
        ({"widht": 3}, "unknown key 'stage1.thing.widht': did you mean 'stage1.thing.width'?"),
        ({}, "stage1.thing: test_settings.Foreign: missing a required argument: 'width'"),
        ({"width": 0}, "stage1.thing: test_settings.Foreign: width must be positive"),
    ],
)
def test_a_class_from_elsewhere_is_answered_in_one_line(settings: dict[str, Any], answer: str) -> None:
    with pytest.raises(ConfigError) as refused:
        build({"_target_": "test_settings.Foreign", **settings}, path="stage1.thing")
    assert str(refused.value) == answer
    assert build({"_target_": "test_settings.Foreign", "width": 3}).width == 3


class Counting(Classifier):
    """A classifier that wants the class counts too early."""

    def __init__(self, feature_dim: int, num_classes: int, class_counts: torch.Tensor) -> None:
        super().__init__(feature_dim, num_classes)


def test_what_ltexp_gives_to_a_class_is_told_from_what_its_file_lists() -> None:
    with pytest.raises(ConfigError) as refused:
        build({"_target_": "test_settings.Foreign", "width": 1}, class_counts=COUNTS, path="stage1.loss")
    assert str(refused.value) == (
        "stage1.loss: test_settings.Foreign does not take class_counts, which ltexp gives to it: "
        "def __init__(self, class_counts, ...)"
    )
    with pytest.raises(ConfigError) as refused:
        build({"_target_": "test_settings.Counting"}, feature_dim=4, num_classes=3, path="stage2.classifier")
    assert str(refused.value) == (
        "stage2.classifier: test_settings.Counting is not given class_counts: "
        "a classifier gets them by set_class_counts(class_counts)"
    )


MODULES = {
    "half_written.py": "def f(:\n",
    "needs_another.py": "\nimport not_there_at_all\n",
    "fails.py": "x = 1\ny = x / 0\n",
    "sound/__init__.py": "",
    "sound/inner.py": "class Inner:\n    class Part:\n        pass\n",
}
UNFOUND = [
    ("half_written.X", "a module that can be imported, and half_written fails at {}/half_written.py:1: SyntaxError: "),
    ("needs_another.X", "{}/needs_another.py:2: ModuleNotFoundError: No module named 'not_there_at_all'"),
    ("fails.X", "{}/fails.py:2: ZeroDivisionError: division by zero"),
    ("not_there.X", "a module on the Python path, and there is no not_there: put the folder that it lies in on PYTHON"),
    ("sound.outer.X", "the path of a class or function, and sound has no outer"),
    ("sound.inner.Iner", "and sound.inner has no Iner; did you mean 'sound.inner.Inner'?"),
    ("sound..Inner", "the dotted path of a class or function"),
]


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Modules of a user's, of which only `sound` is."""
    for name, text in MODULES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(("target", "answer"), UNFOUND)
def test_a_class_that_cannot_be_imported_is_answered_with_the_cause(target: str, answer: str, modules: Path) -> None:
    node = {"_target_": target}
    built, loaded = partial(build, node, path="backbone"), partial(without_files, node)
    for act in (built, loaded, partial(check_targets, {"backbone": node})):
        with pytest.raises(ConfigError) as refused:
            act()
        assert str(refused.value).startswith(f"invalid backbone._target_={target}: expected ")
        assert answer.format(modules) in str(refused.value)
        assert "\n" not in str(refused.value)


def test_a_class_is_found_as_hydra_finds_it(modules: Path) -> None:
    assert locate("sound.inner.Inner.Part").__name__ == "Part"
    assert locate("torch.optim.SGD") is torch.optim.SGD
    with pytest.raises(ConfigError, match=r"invalid stage1\.loss\.parts\.1\._target_=not_there\.X: "):
        check_targets({"stage1": {"loss": {"parts": [{}, {"_target_": "not_there.X"}]}}, "stage2": None})


@pytest.mark.parametrize(
    ("inner", "answer"),
    [
        ({"widht": 3}, "unknown key 'top.augmentations.1.widht': did you mean 'top.augmentations.1.width'?"),
        ({"width": 0}, "top.augmentations.1: test_settings.Foreign cannot be built: width must be positive"),
    ],
)
def test_a_node_within_a_node_is_named_too(inner: dict[str, Any], answer: str) -> None:
    one = {"_target_": "test_settings.Foreign", "width": 1}
    views = [one, {"_target_": "test_settings.Foreign", **inner}]
    with pytest.raises(ConfigError) as refused:
        build({"_target_": "ltexp.data.augmentation.Views", "augmentations": views}, path="top")
    assert str(refused.value) == answer


def test_keys_that_do_not_matter_are_those_of_the_hash() -> None:
    config = to_config(composed())
    for typed in ("dataset.workers=3", "trainer.log_every=7", "evaluation.every=1", "trainer.profiler=simple"):
        key = typed.partition("=")[0]
        assert not is_material(key)
        if key != "dataset.workers":  # digits have none
            assert run_identity(to_config(composed(typed))) == run_identity(config)
    assert is_material("stage1.epochs")
    assert run_identity(to_config(composed("stage1.epochs=3"))) != run_identity(config)
    assert not any(map(is_material, ("hydra/launcher", "launcher.n_jobs", "logger@logger.wandb", "paths.data")))
    assert is_material("path")  # which is not `paths`


def test_words_of_a_command_line() -> None:
    others, options = split_words(["RUN", "out=a=b.csv", "stages=true"], ("out", "stages"))
    assert (others, options) == (["RUN"], {"out": "a=b.csv", "stages": "true"})
    assert [read_flag(options, key) for key in ("stages", "more")] == [True, None]
    assert read_choice({"format": "csv"}, "format", ("csv", "html")) == "csv"
    assert parse_value("tau", "[0.5, 1]") == [0.5, 1]
    empty = "one of the words is empty: was a variable of the shell not set?"
    wrong = {"ot=x": "unknown key 'ot': did you mean 'out'?", "out=": "out= names nothing", "": empty}
    for words, answer in (([word], answer) for word, answer in wrong.items()):
        with pytest.raises(ConfigError) as refused:
            split_words(words, ("out", "stages"))
        assert str(refused.value) == answer
    with pytest.raises(ConfigError, match=r"^invalid stages=yes: expected true \| false$"):
        read_flag({"stages": "yes"}, "stages")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("set trainer.accelerator=cpu", "set accelerator=cpu"),
        ("invalid classifier.tau=null: expected float", "invalid tau=null: expected float"),
        ("set classifier@stage1.classifier=linear", "set classifier@stage1.classifier=linear"),
    ],
)
def test_a_command_names_its_own_keys(text: str, said: str) -> None:
    with pytest.raises(DataError) as refused, own_keys(OWN):
        raise DataError(text)
    assert str(refused.value) == said
    with pytest.raises(ConfigError, match=r"^invalid precision=16: expected 32"), own_keys(OWN):
        raise SettingError("trainer.precision", 16, "32")


def test_a_usage_is_folded_to_the_width() -> None:
    text = "\n".join(
        [
            "One two three four five six",
            "seven eight.",
            "",
            "    command                what the command does and where",
            "                           that goes",
            "    longer command         what it does",
            "    a                      b",
        ]
    )
    assert folded(text, 60).splitlines() == text.splitlines()
    assert folded(text, 40).splitlines() == [
        "One two three four five six",
        "seven eight.",
        "",
        "    command",
        "            what the command does and",
        "            where that goes",
        "    longer command         what it does",
        "    a                      b",
    ]


@pytest.mark.parametrize("verb", ["report", "evaluate", "reproduce", "export", "methods", "completion", "predict"])
def test_every_help_fits_80_columns(
    verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "argv", [f"ltexp {verb}", "--help"])
    assert import_module(f"ltexp.{verb}.__main__" if verb in ("report", "reproduce") else f"ltexp.{verb}").main() == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    assert not text.endswith("\n\n")


def test_numbers_among_names_are_in_their_order() -> None:
    assert unknown_name("ratio", "7", {"100", "50", "10", "no"}).endswith("choose one of 10, 50, 100, no")


def test_a_path_that_holds_a_sign_of_equality_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("backbone=resnet8", "k=1/r"):
        Path(name).mkdir(parents=True)
        for word in (name, f"./{name}", str(tmp_path / name)):
            assert split_words([word, "out=x"], ("out",)) == ([word], {"out": "x"})
            assert parse_evaluate([word])[0] == Path(word)
    assert split_words(["absent/a=b"], ()) == (["absent/a=b"], {})  # which is then answered as a folder


def test_a_wrong_command_line_ends_with_2_and_missing_data_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(error: Exception) -> int:
        raise error

    assert status_of("ltexp data", lambda: 0) == 0
    assert status_of("ltexp data", lambda: refuse(ConfigError("no"))) == 2
    assert status_of("ltexp data", lambda: refuse(DataError("no"))) == 1
    assert capsys.readouterr().err == "ltexp data: no\n" * 2


@pytest.mark.parametrize("command", ["data", "evaluate", "report", "reproduce"])
def test_all_commands_agree_on_that(command: str, tmp_path: Path) -> None:
    words = {"data": ["show", "digits_lt", "rot=x"], "evaluate": [str(tmp_path), "featurs=true"]}
    line = words.get(command, [str(tmp_path), "formt=csv"] if command == "report" else ["formt=csv"])
    answer = subprocess.run([sys.executable, "-m", f"ltexp.{command}", *line], capture_output=True, text=True)
    assert (answer.returncode, answer.stderr.count("\n")) == (2, 1), answer.stderr
    assert answer.stderr.startswith(f"ltexp {command}: unknown key ")


def test_a_nested_sampler_names_its_part() -> None:
    node = {"_target_": "ltexp.data.samplers.InstanceBalanced"}
    deferred: dict[str, Any] = {"_target_": "ltexp.data.deferred.Deferred", "_recursive_": False}
    deferred |= {"before": node, "after": {**node, "epoch_length": 0}}
    with pytest.raises(ConfigError, match=r"^invalid stage1\.sampler\.after\.epoch_length=0: expected "):
        build(deferred, labels=LABELS, class_counts=COUNTS, path="stage1.sampler")


@pytest.mark.parametrize(
    ("typed", "near"),
    [("mislass", "mislas"), ("log", "logarithm"), ("BalancedSoftmax", "balanced_softmax"), ("nosuch", None)],
)
def test_a_name_is_guessed_where_it_is_near(typed: str, near: str | None) -> None:
    assert nearest(typed, ["mislas", "epochs", "logarithm", "balanced_softmax"]) == near
