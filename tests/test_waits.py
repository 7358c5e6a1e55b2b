"""No step of training makes the host wait for its device, and all of it lies there: tried on torch's meta device.

A meta tensor has no values: what reads one on the host fails, as does an operation whose shape depends on values, or one
on tensors of two devices, which a GPU would refuse too. Copies from the host, which it would wait for, are noted.
"""

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from choices import names
from recording import caller
from runs import run_here, tiny, trained_stages
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from ltexp.config import Config
from ltexp.config.build import build
from ltexp.randomness import Numbers, drawing, key_to_seed
from ltexp.training.batches import train_loader
from ltexp.training.objective import flat_factors, parameter_groups
from ltexp.training.run_stage import make_trainable, start_model
from ltexp.training.session import Session
from ltexp.training.stage import Stage
from ltexp.training.start import load_teacher

aten = torch.ops.aten
META = torch.device("meta")


class Hosts(TorchDispatchMode):
    """Notes the operations on tensors of the host as well as of the device, numbers () aside, and new ones of the host.

    Attributes:
        found: where in ltexp they are called.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [value for value in tree_flatten((args, kwargs, result))[0] if isinstance(value, Tensor)]
        both = {tensor.device.type for tensor in tensors if tensor.ndim > 0 or tensor.device == META} > {"meta"}
        if both or func is aten.lift_fresh.default:
            self.found.append(f"{func} {caller()}")
        return result


class HostDraws:
    """Generators of the host, since there are none of the meta device; it draws no values with them."""

    def generator(self, key: tuple[int | str, ...], device: torch.device) -> torch.Generator:
        return torch.Generator().manual_seed(key_to_seed(*key))

    def numbers(self, draw: Numbers, step: int, device: torch.device) -> Any:
        return draw(step)


def stage_on_meta(config: Config, folder: Path, name: str) -> tuple[Session, Stage, Any]:
    """(its session, the stage, its loader) of a finished run's stage, on the meta device."""
    stage = config.stages[name]
    data = build(config.dataset, root=config.paths.data, path="dataset")
    session = Session(config, folder, data, META).for_stage(stage)
    model = start_model(session, name, stage)
    make_trainable(model, stage)
    model = session.place(model)
    loader = train_loader(session, name, stage, model)
    own = Stage(model, stage, session.class_counts, session.stage_seed(name), load_teacher(session, stage), loader)
    own = own.to(META).train()
    own.on_train_epoch_start()
    return session, own, loader


def take_steps(stage: Stage, loader: Any, epoch: int) -> Iterator[None]:
    """The steps of an epoch."""
    settings = dict(stage.config.optimizer)
    groups = parameter_groups(stage.model, float(settings.pop("lr")), flat_factors(stage.config.lr_factors))
    optimizer: Any = build(settings, groups)
    for recipe in loader.at(epoch).recipes():
        batch = loader.make(recipe)
        stage.take_step(optimizer, batch, stage.mixing(batch, stage.seed))
        yield


@pytest.mark.parametrize("method", names("method"))
def test_a_step_neither_waits_for_the_device_nor_leaves_it(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = run_here(tmp_path / "run", *tiny(method, epochs=1))
    monkeypatch.setattr(Stage, "manual_backward", lambda self, loss: loss.backward())
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # which knows no meta device
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)
    for name in trained_stages(method):
        _, stage, loader = stage_on_meta(config, tmp_path / "run", name)
        with drawing(HostDraws()):
            steps = take_steps(stage, loader, 0)
            next(steps)  # makes what is made once
            with Hosts() as hosts:
                next(steps)
        assert not hosts.found
