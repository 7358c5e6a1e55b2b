"""Features that runs share: extracted once, taken up where a killed run left them, and never those of others."""

from pathlib import Path
from typing import Any

import pytest
import torch
from clips import clip_file, clip_words
from runs import TINY, assert_equal_weights, run_here, weights
from test_distributed_methods import run_and_note
from test_every_method import Killed

from ltexp.evaluation.record import read_record
from ltexp.features import kept

pytest.importorskip("open_clip")

SHARED = "stage_cache.enabled=true"


def words(*typed: str) -> tuple[str, ...]:
    sizes = ("stage1.batch_size=16", "stage1.epochs=2")
    return ("method=linear_probe", *TINY, *sizes, *clip_words(), "fine_tuning=frozen", *typed)


def noted(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = read_record(folder)["stages"][0]["features"]
    return found


@pytest.fixture
def extracted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many samples each extraction was of."""
    sizes: list[int] = []
    real = kept.extract

    def counting(model: Any, loader: Any, *further: Any) -> Any:
        sizes.append(loader.rows)
        return real(model, loader, *further)

    monkeypatch.setattr(kept, "extract", counting)
    return sizes


def test_a_grid_of_heads_extracts_once_and_learns_what_each_would_alone(tmp_path: Path, extracted: list[int]) -> None:
    for number, head in enumerate(((), ("loss@stage1.loss=balanced_softmax",))):
        run_here(tmp_path / f"shared{number}", *words(SHARED, *head))
        run_here(tmp_path / f"alone{number}", *words(*head))
        found = [weights(tmp_path / f"{how}{number}", "stage1") for how in ("shared", "alone")]
        assert_equal_weights(*found)
        assert noted(tmp_path / f"shared{number}")["from_cache"] == (48 if number else 0)
        assert "from_cache" not in noted(tmp_path / f"alone{number}")
    assert extracted == [48]


def test_an_extraction_goes_on_where_it_was_killed(
    tmp_path: Path, extracted: list[int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(kept, "PART", 20)
    write = kept.KeptFeatures._write

    def dying(self: Any, start: int, part: Any) -> None:
        if start == 40:
            raise Killed
        write(self, start, part)

    with monkeypatch.context() as context:
        context.setattr(kept.KeptFeatures, "_write", dying)
        with pytest.raises(Killed):
            run_here(tmp_path / "run", *words(SHARED))
    assert "features of 40 of 48 samples" in capsys.readouterr().out
    extracted.clear()
    run_here(tmp_path / "run", *words(SHARED, "resume=true"))
    assert extracted == [8]
    assert noted(tmp_path / "run")["from_cache"] == 40
    assert "features of 40 of 48 samples taken from" in capsys.readouterr().out
    run_here(tmp_path / "alone", *words())
    assert_equal_weights(weights(tmp_path / "run", "stage1"), weights(tmp_path / "alone", "stage1"), 1e-5)


@pytest.mark.parametrize("damage", [b"", b"no file of torch"])
def test_a_damaged_part_is_extracted_again(damage: bytes, tmp_path: Path, extracted: list[int]) -> None:
    run_here(tmp_path / "run", *words(SHARED))
    (part,) = (tmp_path / "stage_cache" / "features").glob("*/*.pt")
    part.write_bytes(damage)
    run_here(tmp_path / "again", *words(SHARED, "stage1.optimizer.lr=0.01"))
    assert extracted == [48, 48]
    assert noted(tmp_path / "again")["from_cache"] == 0


@pytest.mark.slow
def test_features_of_anything_else_are_others(tmp_path: Path, extracted: list[int]) -> None:
    state = torch.load(clip_file(), weights_only=True)
    state["visual.ln_post.bias"] += 1e-3
    torch.save(state, tmp_path / "other.pt")
    others: tuple[tuple[str, ...], ...] = (
        (),
        (f"backbone.weights={tmp_path / 'other.pt'}",),
        ("dataset.max_per_class=20",),
        ("dataset.channel_mean=[0.4,0.4,0.4]",),
        ("backbone.image_size=16",),
        ("trainer=bf16",),
    )
    for number, typed in enumerate(others):
        run_here(tmp_path / str(number), *words(SHARED, *typed))
    assert len(extracted) == len(others)
    assert len({noted(tmp_path / str(number))["cache"] for number in range(len(others))}) == len(others)
    run_here(tmp_path / "moved", *words(SHARED, "seed=1"))
    assert noted(tmp_path / "moved")["cache"] == noted(tmp_path / "0")["cache"]


@pytest.mark.slow
def test_two_processes_extract_together_what_one_takes(tmp_path: Path, run_on_ranks: Any) -> None:
    run_on_ranks(run_and_note, 2, str(tmp_path / "several"), words(SHARED, "trainer.devices=2"))
    assert noted(tmp_path / "several")["from_cache"] == 0
    run_here(tmp_path / "one", *words(SHARED))
    assert noted(tmp_path / "one")["from_cache"] == 48
    run_here(tmp_path / "alone", *words())
    for name in ("several", "one"):
        assert_equal_weights(weights(tmp_path / name, "stage1"), weights(tmp_path / "alone", "stage1"), 2e-5)
