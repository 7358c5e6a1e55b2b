"""Steps that are replayed compute what steps that are run compute, bit for bit."""

from pathlib import Path

import pytest
import torch
from recording import RecordedGraph
from runs import assert_equal_weights, run_here, tiny, trained_stages, weights

from ltexp.training import step_graph


class Run:
    """In the place of a graph: the same steps, run."""

    def capture(self, step, generators) -> None:  # type: ignore[no-untyped-def]
        self.step = step

    def replay(self) -> None:
        self.step()


def run(folder: Path, method: str, *words: str) -> None:
    run_here(folder, *tiny(method, epochs=3), "trainer.step_graph=true", "trainer.accelerator=auto", *words)


def compare(folder: Path, method: str, *words: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step_graph.StepGraph, "__call__", lambda self, stage, optimizer, batch: run_eagerly(self, stage, optimizer, batch))
        run(folder / "eager", method, *words)
    RecordedGraph.reset()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step_graph.StepGraph, "new_graph", RecordedGraph)
        run(folder / "graph", method, *words)
    assert RecordedGraph.captures > 0
    for stage in trained_stages(method):
        assert_equal_weights(weights(folder / "eager", stage), weights(folder / "graph", stage))


def run_eagerly(self, stage, optimizer, batch):
    given = batch if isinstance(batch, step_graph.Recipe) else (batch, stage.mixing(batch, stage.seed))
    self._set_rates(optimizer, stage.device)
    with self._tensor_rates(optimizer):
        self._step(stage, optimizer, given)


from choices import names
@pytest.mark.parametrize("method", names("method"))
def test_x(method, tmp_path):
    compare(tmp_path, method)
