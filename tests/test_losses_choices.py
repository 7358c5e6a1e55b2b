"""Every config file of these groups builds as it stands and lists exactly its class's keywords with their defaults."""

import inspect

import pytest
import torch
from choices import LEARNED, build, context_of, full_output, load, names
from hydra.utils import get_class
from omegaconf import OmegaConf
from torch.nn import Parameter
from torch.optim import SGD

COUNTS = torch.tensor([3, 40, 12])
LABELS = torch.arange(3).repeat_interleave(COUNTS)[torch.randperm(55, generator=torch.Generator().manual_seed(0))]
GIVEN = {  # what code hands over; everything else is the config's
    "loss": {"class_counts": COUNTS},
    "sampler": {"class_counts": COUNTS, "labels": LABELS},
    "mixing": {"class_counts": COUNTS},
    "schedule": {"optimizer": SGD([Parameter(torch.ones(1))]), "epochs": 10, "steps_per_epoch": 5},
    "reweighting": {},
}
SAMPLERS = {
    "instance_balanced",
    "class_balanced",
    "class_aware",
    "square_root",
    "power",
    "progressively_balanced",
    "effective_number",
    "class_based_effective_number",
    "reversed",
    "deferred",
    "shot_group",
}
CHOICES = [(group, name) for group in GIVEN for name in names(group)]


@pytest.mark.parametrize(("group", "name"), CHOICES)
def test_builds_from_its_config(group: str, name: str) -> None:
    built = build(group, name, **GIVEN[group])
    assert type(built) is get_class(load(group, name)._target_)


@pytest.mark.parametrize(("group", "name"), CHOICES)
def test_config_is_the_signature(group: str, name: str) -> None:
    """Hydra refuses a key that the file does not have, so a keyword that is missing there could not be set."""
    config = OmegaConf.to_container(load(group, name), resolve=True)
    target = get_class(config["_target_"])
    config = {key: value for key, value in config.items() if not key.startswith("_")}
    parameters = inspect.signature(target).parameters
    defaults = {key: p.default for key, p in parameters.items() if key not in GIVEN[group]}
    # a part that is a choice itself has its class's own defaults, and no default here
    parts = {key: value for key, value in config.items() if isinstance(value, dict)}
    assert all(defaults.pop(key) is inspect.Parameter.empty for key in parts)
    config = {key: value for key, value in config.items() if key not in parts}
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in defaults.items()}
    assert config == plain


def test_all_samplers_are_there() -> None:
    assert set(names("sampler")) == SAMPLERS


@pytest.mark.parametrize("name", names("loss"))
def test_loss_takes_one_step(name: str) -> None:
    """A scalar in float32, a finite gradient, progress accepted, and nothing to save: counts are the data's."""
    loss = build("loss", name, class_counts=COUNTS)
    loss.set_progress(0, 10, step=3)
    output, labels = full_output(torch.randn(8, 3)), torch.arange(8) % 3
    leaves = [output.logits, output.features, output.expert_logits, output.auxiliary_logits, *output.feature_maps]
    leaves += [output.extra[name] for name in LEARNED]
    for leaf in leaves:
        leaf.requires_grad_()
    value = loss(output, labels, context_of(loss, output, labels))
    value.backward()
    assert value.shape == ()
    assert value.dtype == torch.float32
    gradients = [leaf.grad for leaf in leaves if leaf.grad is not None]
    assert gradients
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert not {"class_counts", "class_weights"} & set(loss.state_dict())  # they follow from the data
    assert loss.logit_scale == (load("loss", name).get("scale") or 1.0)  # null: the output's
    assert loss.classifier in {"any", "cosine", "linear"}
