"""Small and odd sizes: batches of one to eight, a last one of one image, a class of one image, any ratio."""

from pathlib import Path
from typing import Any

import pytest
from image_trees import write_tree
from runs import run_here, tiny, trained_stages

from ltexp.errors import LtexpError

FILES = (
    *("dataset=image_folder", "backbone=resnet10", "dataset.image_size=32", "dataset.resize=36", "dataset.workers=0"),
    "stage_cache.enabled=false",
)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine images, so that every batch size from 2 to 8 but 5 to 7 leaves one; its last maps are of one place."""
    return write_tree(tmp_path_factory.mktemp("sizes") / "tree", [6, 2, 1], test=1)


def sized(method: str, batch_size: int) -> list[str]:
    return [f"method={method}"] + [
        f"{name}.{key}" for name in trained_stages(method) for key in ("epochs=1", f"batch_size={batch_size}")
    ]


@pytest.mark.parametrize("batch_size", [2, *(pytest.param(size, marks=pytest.mark.slow) for size in (4, 8))])
def test_a_last_batch_of_one_image_is_trained_on(batch_size: int, tree: Path, tmp_path: Path) -> None:
    run_here(tmp_path / "run", *FILES, f"dataset.source.folder={tree}", *sized("crt", batch_size))


def test_batches_of_one_image_are_refused_where_they_have_no_variance(tree: Path, tmp_path: Path) -> None:
    with pytest.raises(LtexpError, match=r"stage1: with batch_size=1 .*set stage1\.batch_size higher"):
        run_here(tmp_path / "run", *FILES, f"dataset.source.folder={tree}", *sized("crt", 1))
    assert not (tmp_path / "run" / "record.json").exists()  # nothing has begun
    run_here(tmp_path / "frozen", *FILES, f"dataset.source.folder={tree}", *sized("ce", 1), "stage1.batch_norm=frozen")
    with pytest.raises(LtexpError, match=r"stage1: with batch_size=2 a batch, or a process's part of one"):
        run_here(tmp_path / "parts", *FILES, f"dataset.source.folder={tree}", *sized("ce", 2), "trainer.accumulate=2")


@pytest.mark.parametrize("norms", ["train", "frozen"])
def test_batches_of_one_image_are_refused_where_a_module_has_no_variance_of_them(norms: str, tmp_path: Path) -> None:
    """Maps of digits are larger than one place, so that the backbone's own norms have some."""
    words = ("method=paco", "stage1.epochs=1", "stage1.batch_size=1", f"stage1.batch_norm={norms}")
    with pytest.raises(LtexpError, match=r"stage1: .* of a module \(contrast\) or of the classifier sees it alone"):
        run_here(tmp_path / "run", *words)
    assert not (tmp_path / "run" / "stage1").exists()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ce", "mislas", "bkd", "ride_bkd_2", "dasl", "kps", "glag", "gcl", "fbl", "dive"])
@pytest.mark.parametrize("batch_size", [1, 2, 4, 8])
def test_a_method_trains_on_small_batches_or_is_refused_at_its_start(
    method: str, batch_size: int, tree: Path, tmp_path: Path
) -> None:
    trained_or_refused(tmp_path / "files", *FILES, f"dataset.source.folder={tree}", *sized(method, batch_size))
    trained_or_refused(
        tmp_path / "digits",
        *tiny(method, epochs=1),
        *[f"{name}.batch_size={batch_size}" for name in trained_stages(method)],
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "method", ["crt", "ldam_drw", "eql", "glag", "gcl", "cb_focal", "lade", "vs_mixup", "kps", "bkd"]
)
@pytest.mark.parametrize(("ratio", "largest"), [(1, 9), (1.1, 120), (120, 120)])
def test_a_method_takes_any_ratio_or_is_refused_at_its_start(
    method: str, ratio: float, largest: int, tmp_path: Path
) -> None:
    profile = (f"dataset.max_per_class={largest}", f"dataset.imbalance_ratio={ratio}", "dataset.num_classes=4")
    trained_or_refused(tmp_path / "run", *sized(method, 16), *profile, "stage_cache.enabled=false")


def trained_or_refused(folder: Path, *overrides: str) -> Any:
    try:
        run_here(folder, *overrides)
    except LtexpError:
        refused = True
    else:
        refused = False
    assert (folder / "record.json").exists() != refused, "refused after it had begun"
