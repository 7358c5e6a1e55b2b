"""Steps that are replayed compute what steps that are run compute, bit for bit; what cannot be replayed is refused."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from choices import load, names
from hydra.utils import get_class
from recording import RecordedGraph
from runs import assert_equal_weights, composed, run_here, tiny, trained_stages, weights
from test_every_method import UNTRAINED, Killed, courses, every_method, kill_in

from ltexp.config import StageConfig, TrainerConfig, to_config
from ltexp.data.loader import Batch, Recipe
from ltexp.errors import ConfigError
from ltexp.losses.cross_entropy import CrossEntropy
from ltexp.training.composition import check_composition
from ltexp.training.replayable import check_hooks, check_replayable
from ltexp.training.session import check_numerics
from ltexp.training.stage import Stage
from ltexp.training.step_graph import Noted, StepGraph
from ltexp.training.steps import Standard

ON = ("trainer.accelerator=auto", "trainer.step_graph=true")
# mixup in the graph; a mixing before it; keyed draws in a loss; a queue and a copy of the network; buffers exchanged
TELLING = ("mislas", "cutmix", "gcl", "paco", "proco")
QUICK = ("mislas",)


def takes_several_passes(method: str) -> bool:
    """Whether its steps are of a kind that is refused."""
    try:
        check_composition(to_config(composed(f"method={method}", *ON)))
    except ConfigError as error:
        return "cannot be replayed" in str(error)
    return False


@contextmanager
def recorded(patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Within the block the graphs of steps are a recording's."""
    RecordedGraph.reset()
    with patch.context() as context:
        context.setattr(StepGraph, "new_graph", RecordedGraph)
        yield


@contextmanager
def never_captured(patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Within the block every step is of a kind that was not there before, and runs."""

    def forgetting(self: StepGraph, *arguments: Any) -> None:
        self._noted.clear()
        call(self, *arguments)

    call = StepGraph.__call__
    with patch.context() as context:
        context.setattr(StepGraph, "__call__", forgetting)
        yield


def words(method: str, *further: str) -> tuple[str, ...]:
    return *tiny(method, epochs=3), *ON, *further


@pytest.mark.parametrize("method", every_method(QUICK, but=UNTRAINED))
def test_replayed_steps_equal_steps_that_run(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every stage's weights, bit by bit, and the losses of its epochs."""
    if takes_several_passes(method):
        pytest.skip("refused: the steps of this method look ahead")
    with never_captured(monkeypatch):
        run_here(tmp_path / "run", *words(method))
    with recorded(monkeypatch):
        run_here(tmp_path / "replayed", *words(method))
    assert RecordedGraph.replays > 0
    for stage in trained_stages(method):
        assert_equal_weights(weights(tmp_path / "run", stage), weights(tmp_path / "replayed", stage))
        assert courses(tmp_path / "run", stage) == courses(tmp_path / "replayed", stage)


@pytest.mark.parametrize(
    "further",
    [
        pytest.param(("optimizer@stage1.optimizer=adamw",), marks=pytest.mark.slow),
        ("schedule@stage1.schedule=cosine", "stage1.schedule.interval=step", "stage1.schedule.warmup_epochs=1"),
        pytest.param(("trainer=bf16",), marks=pytest.mark.slow),
        pytest.param(("trainer.accumulate=3", "trainer.gradient_clip_val=0.5"), marks=pytest.mark.slow),
        pytest.param(("step@stage1.step=sam",), marks=pytest.mark.slow),
        pytest.param(("stage1.batch_size=11",), marks=pytest.mark.slow),
        pytest.param(("trainer.compile=true", "trainer.compile_backend=eager"), marks=pytest.mark.slow),
        pytest.param(("trainer.overfit_batches=3",), marks=pytest.mark.slow),
    ],
)
def test_replayed_steps_of_other_settings(
    further: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with never_captured(monkeypatch):
        run_here(tmp_path / "run", *words("mixup", *further))
    with recorded(monkeypatch):
        run_here(tmp_path / "replayed", *words("mixup", *further))
    assert RecordedGraph.replays > RecordedGraph.captures > 0
    assert_equal_weights(weights(tmp_path / "run", "stage1"), weights(tmp_path / "replayed", "stage1"))


@pytest.mark.slow
def test_replayed_steps_are_close_to_those_without_graphs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The optimizer rounds otherwise, and nothing else is different."""
    run_here(tmp_path / "plain", *tiny("mislas", epochs=3))
    with recorded(monkeypatch):
        run_here(tmp_path / "replayed", *words("mislas"))
    one, other = (weights(tmp_path / name, "stage1") for name in ("plain", "replayed"))
    assert_equal_weights(one, other, tolerance=1e-3)


@pytest.mark.slow
def test_replayed_steps_resume_where_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with recorded(monkeypatch):
        run_here(tmp_path / "whole", *words("mixup"))
        with monkeypatch.context() as context:
            kill_in("stage1", context)
            with pytest.raises(Killed):
                run_here(tmp_path / "resumed", *words("mixup", "resume=true"))
        run_here(tmp_path / "resumed", *words("mixup", "resume=true"))
    assert_equal_weights(weights(tmp_path / "whole", "stage1"), weights(tmp_path / "resumed", "stage1"))
    assert courses(tmp_path / "whole", "stage1") == courses(tmp_path / "resumed", "stage1")


def test_the_comparison_notices_what_a_replay_is_not_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: with mixup's weight of the captured step in every replay, the weights do differ."""
    with never_captured(monkeypatch):
        run_here(tmp_path / "run", *words("mixup"))
    monkeypatch.setattr("ltexp.training.step_graph.Fed.numbers", Noted.numbers)
    with recorded(monkeypatch):
        run_here(tmp_path / "replayed", *words("mixup"))
    with pytest.raises(AssertionError, match=r"not equal|not close"):
        assert_equal_weights(weights(tmp_path / "run", "stage1"), weights(tmp_path / "replayed", "stage1"))


def test_each_kind_of_batch_runs_once_and_is_captured_once_an_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """48 images in batches of 9: five of nine, a last one of three that runs; Lightning counts all of them."""
    counted, graph = [], []
    step = Stage.training_step

    def noting(self: Stage, batch: Batch | Recipe, number: int) -> None:
        step(self, batch, number)
        counted.append(self.trainer.global_step)
        graph.append(isinstance(batch, Recipe))

    monkeypatch.setattr(Stage, "training_step", noting)
    with recorded(monkeypatch):
        run_here(tmp_path / "run", *words("ce", "stage1.batch_size=9"))
    assert counted == list(range(1, 19))
    assert all(graph)
    assert (RecordedGraph.captures, RecordedGraph.replays) == (3, 3 * 4)


def test_a_part_that_keeps_what_a_replay_would_not_change_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CrossEntropy, "seen", 0.0, raising=False)
    forward = CrossEntropy.forward

    def counting(self: Any, *arguments: Any, **keywords: Any) -> torch.Tensor:
        self.seen += 1
        return forward(self, *arguments, **keywords)

    monkeypatch.setattr(CrossEntropy, "forward", counting)
    with recorded(monkeypatch), pytest.raises(ConfigError, match=r"stage1: .*CrossEntropy\.seen.*step_graph=false"):
        run_here(tmp_path / "run", *words("ce"))


@pytest.mark.parametrize(
    ("method", "further", "said"),
    [
        (
            "mixup",
            ("trainer.accelerator=cpu",),
            "invalid trainer.step_graph=true: expected false: CUDA",
        ),
        ("mixup", ("trainer.devices=2",), "invalid trainer.step_graph=true: expected false: it is for one device"),
        ("mixup", ("trainer.precision=16-mixed",), "invalid trainer.step_graph=true: .*bf16-mixed"),
        ("mixup", ("trainer.detect_anomaly=true",), "invalid trainer.step_graph=true: .*detect_anomaly"),
        (
            "mixup",
            ("trainer.compile=true", "trainer.compile_mode=reduce-overhead"),
            "invalid trainer.step_graph=true: .*compile_mode=reduce-overhead makes graphs of its own",
        ),
        ("mw_net", (), "stage1: steps of MetaWeightNet cannot be replayed: choose step@stage1.step=standard, or"),
        ("mixup", ("+stage1.optimizer.fused=false",), r"stage1\.optimizer\.fused=false, and a replayed step needs it"),
    ],
)
def test_what_cannot_be_replayed_is_refused_before_data_is_read(
    method: str, further: tuple[str, ...], said: str
) -> None:
    on = [word for word in ON if not any(own.startswith(word.partition("=")[0]) for own in further)]
    with pytest.raises(ConfigError, match=said):
        check_composition(to_config(composed(f"method={method}", *on, *further)))


def test_a_cpu_is_refused_where_no_gpu_was_asked_for() -> None:
    with pytest.raises(ConfigError, match=r"trainer\.step_graph=true needs a GPU and torch sees none here"):
        check_numerics(TrainerConfig(step_graph=True), torch.device("cpu"))


class WithinSteps(pl.Callback):
    """Looks at gradients."""

    def on_after_backward(self, *_: object) -> None: ...


def test_callbacks_within_steps_and_optimizers_of_the_host_are_refused() -> None:
    own = {"_target_": f"{__name__}.WithinSteps"}
    check_hooks({"progress": {"_target_": "ltexp.training.callbacks.Progress"}, "off": None})
    with pytest.raises(ConfigError, match=r"callbacks\.own acts within steps, .* callbacks\.own=null"):
        check_hooks({"own": own})
    stage = StageConfig(epochs=1, batch_size=1, optimizer={"_target_": "torch.optim.LBFGS"})
    with pytest.raises(ConfigError, match=r"stage1: torch\.optim\.LBFGS is neither fused nor capturable"):
        check_replayable("stage1", stage, Standard())


@pytest.mark.parametrize("name", names("step"))
def test_steps_that_look_ahead_with_a_copy_or_ask_a_teacher_are_not_replayed(name: str) -> None:
    step = get_class(load("step", name)._target_)
    assert step.replayable == (name in ("standard", "sam", "imbsam"))


def test_a_stage_of_one_step_an_epoch_is_told_that_nothing_is_replayed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with recorded(monkeypatch):
        run_here(tmp_path / "run", *words("ce", "stage1.batch_size=48"))
    assert RecordedGraph.captures == 0
    assert "trainer.step_graph has no effect on stage1" in capsys.readouterr().out
