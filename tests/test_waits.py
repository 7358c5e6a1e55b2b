"""No step of training makes the host wait for its device, and all of it lies there: tried on torch's meta device.

A meta tensor has no values: what reads one on the host fails, as does an operation whose shape depends on values, or
one on tensors of two devices, which a GPU would refuse too. Copies from the host, which it would wait for, are noted.
"""

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from choices import build as build_choice
from choices import context_of, full_output, names
from recording import caller
from runs import run_here, tiny, trained_stages
from test_every_method import every_method
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

from ltexp.config import Config
from ltexp.config.build import build
from ltexp.outputs import ModelOutput
from ltexp.randomness import Numbers, drawing, key_to_seed
from ltexp.training.batches import train_loader
from ltexp.training.groups import parameter_groups
from ltexp.training.run_stage import make_trainable, start_model
from ltexp.training.session import Session
from ltexp.training.stage import Stage
from ltexp.training.start import load_teachers

aten = torch.ops.aten
# of which the default tests try one: mixing, and two stages
TELLING = ("mislas",)
EXCEPT = {
    "glag": "features are extracted and looked at once an epoch",
    "m2m": "sources of made-up images are drawn by the host, which has to know the batch's labels",
    "m2m_ldam": "the same",
    "linear_probe": "features are extracted and looked at once",
    "zero_shot": "nothing learns",
}
META = torch.device("meta")


@pytest.fixture(autouse=True)
def without_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """It knows no meta device, and nothing here is of half precision."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)


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
        if (kwargs or {}).get("non_blocking"):  # some bytes that are on their way while the host goes on
            return result
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


def stage_on_meta(config: Config, folder: Path, name: str) -> tuple[Stage, Any]:
    """(the stage, its loader) of a finished run's stage, on the meta device."""
    stage = config.stages[name]
    data = build(config.dataset, root=config.paths.data, path="dataset")
    session = Session(config, folder, data, META).for_stage(stage)
    model = start_model(session, name, stage)
    make_trainable(model, stage)
    model = session.place(model)
    loader = train_loader(session, name, stage, model)
    own = Stage(model, stage, session.class_counts, session.stage_seed(name), load_teachers(session, stage), loader)
    own = own.to(META).train()
    own.on_train_epoch_start()
    loader.learners = []  # which tries classes before an epoch
    for part in own.modules():
        if hasattr(part, "_started"):  # of a momentum copy: read in a run's first step
            part._started = True
    return own, loader


def take_steps(stage: Stage, loader: Any, epoch: int) -> Iterator[None]:
    """The steps of an epoch."""
    settings = dict(stage.config.optimizer)
    settings.pop("lr")
    groups = parameter_groups(stage.model, stage.config)
    optimizer: Any = build(settings, groups)
    for recipe in loader.at(epoch).recipes():
        batch = loader.make(recipe)
        stage.take_step(optimizer, batch, stage.mixing(batch, stage.seed))
        yield


@pytest.mark.parametrize("method", every_method(TELLING, but=EXCEPT))
def test_a_step_neither_waits_for_the_device_nor_leaves_it(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second step of a stage's second and last epoch; the first makes what is made once."""
    config = run_here(tmp_path / "run", *tiny(method))
    monkeypatch.setattr(Stage, "manual_backward", lambda self, loss: loss.backward())
    checked = 0
    for name in trained_stages(method):
        stage, loader = stage_on_meta(config, tmp_path / "run", name)
        if len(loader) == 1:  # an expert of few images
            continue
        checked += 1
        with drawing(HostDraws()):
            steps = take_steps(stage, loader, 1)
            next(steps)
            with Hosts() as hosts:
                next(steps)
        assert not hosts.found
    assert checked > 0


def test_what_waits_is_noticed() -> None:
    """The control: a number read, a shape that depends on values, and a copy from the host."""
    values = torch.ones(4, device=META)
    for wait in (lambda: values.sum().item(), lambda: values.nonzero(), lambda: values[values > 0], values.cpu):
        with pytest.raises((RuntimeError, NotImplementedError)):
            wait()
    with Hosts() as hosts:
        values.index_select(0, torch.arange(2).to(META))
    assert hosts.found


@pytest.mark.parametrize("name", names("loss"))
def test_no_loss_waits_for_the_device(name: str) -> None:
    draws, labels = torch.Generator().manual_seed(0), (torch.arange(16) % 5).to(META)
    loss = build_choice("loss", name, class_counts=torch.tensor([40, 20, 15, 6, 4])).to(META)
    given = full_output(torch.rand(16, 5, generator=draws))
    output = ModelOutput(**tree_map_only(Tensor, lambda tensor: tensor.to(META), vars(given)))
    output.logits.requires_grad_()
    with drawing(HostDraws()):
        loss(output, labels, context_of(loss, output, labels, 9))
        with Hosts() as hosts:
            value = loss(output, labels, context_of(loss, output, labels, 9))
            if value.requires_grad:
                value.backward()
    assert not hosts.found


@pytest.mark.parametrize("name", [name for name in names("augmentation") if "files" not in name])
def test_no_augmentation_waits_for_the_device(name: str) -> None:
    """Of images in memory, or of the part that the device has in that of files."""
    augmentation = build_choice("augmentation", name)
    for view in augmentation.views:
        side = 32 + 2 * view.padding
        drawn = view.draws_of(torch.arange(8) % 5, torch.Generator())
        on_device = {key: values.to(META) for key, values in drawn.items()}
        images = torch.zeros(8, side, side, 3, dtype=torch.uint8, device=META)
        view(images, on_device)
        with Hosts() as hosts:
            view(images, on_device)
        assert not hosts.found
