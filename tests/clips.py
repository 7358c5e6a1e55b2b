"""A random CLIP of two small transformers for 8 pixels, as open_clip saves it, for tests."""

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from ltexp.randomness import default_generator

NAME = "ViT-B-16-quickgelu"
VISION = {"image_size": 8, "layers": 2, "width": 32, "patch_size": 4, "head_width": 16}
TEXT = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
OPTIONS: dict[str, Any] = {"embed_dim": 12, "vision_cfg": VISION, "text_cfg": {**TEXT}}
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def random_clip() -> Any:
    """open_clip's own network, in eval mode; a test that asks for it is skipped where open_clip is not installed."""
    open_clip = pytest.importorskip("open_clip")
    with default_generator("clip"):
        network = open_clip.CLIP(12, open_clip.CLIPVisionCfg(**VISION), open_clip.CLIPTextCfg(**TEXT), quick_gelu=True)
        for parameter in network.parameters():
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    return network.eval()


@cache
def clip_file() -> Path:
    """Its state_dict in a file that lasts as long as the process."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    torch.save(random_clip().state_dict(), folder / "clip.pt")
    return folder / "clip.pt"


def clip_words(file: Path | None = None) -> tuple[str, ...]:
    """The words that choose it."""
    vision, text = (", ".join(f"{key}: {value}" for key, value in of.items()) for of in (VISION, TEXT))
    options = f"{{embed_dim: 12, vision_cfg: {{{vision}}}, text_cfg: {{{text}}}}}"
    return (
        "backbone=clip_vit",
        f"backbone.name={NAME}",
        f"backbone.options={options}",
        f"backbone.weights={file or clip_file()}",
    )


def names_of(classes: int, stage: str = "stage1") -> str:
    """The words for digits, which have no names of their own."""
    return f"{stage}.classifier.names=[{','.join(DIGITS[:classes])}]"


def beside(method: str, classes: int = 10) -> tuple[str, ...]:
    """The words that a method for pretrained networks needs beside its own name, on digits; of others none."""
    if method == "zero_shot":
        return (*clip_words(), names_of(classes))
    tunings = {"linear_probe": "frozen", "lift": "adaptformer"}
    return (*clip_words(), f"fine_tuning={tunings[method]}") if method in tunings else ()
