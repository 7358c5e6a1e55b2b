"""What is trained with code of a user's own is known by that code, wherever in the user's files it lies."""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
from records import write
from runs import composed, run_here

from ltexp.config import own_code as module
from ltexp.config import to_config
from ltexp.config.own_code import changed_code, changed_since, code_of_run, own_code, own_targets, place_of
from ltexp.errors import CheckpointError
from ltexp.report.groups import group_runs
from ltexp.report.records import find_runs
from ltexp.report.results import results_table
from ltexp.training.description import check_same_things

LOSS = """
from torch.nn import functional as F
from ltexp.losses.base import Loss
from .tools import factor
import own_base


class Own(Loss):
    def __init__(self, class_counts, file=""):
        super().__init__(class_counts)

    def per_sample(self, output, target):
        return factor * F.cross_entropy(self.logits(output), target, reduction="none")
"""
FILES = {
    "own_package/__init__.py": "from own_package.loss import Own\n",
    "own_package/loss.py": LOSS,
    "own_package/tools.py": "factor = 1.0\n",
    "own_base.py": "import numpy, torch\n",
    "matrix.txt": "1 2\n",
    "conf/loss/own.yaml": "# the user's own\n_target_: own_package.Own\nfile: ''\n",
}
NODE = {"_target_": "own_package.Own"}


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "own"
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    monkeypatch.syspath_prepend(str(folder))
    forget()
    yield folder
    forget()


def forget() -> None:
    """As in another process."""
    for name in [name for name in sys.modules if name.startswith("own_")]:
        del sys.modules[name]
    for function in (module._imports, module._hash):
        function.cache_clear()


def test_all_own_modules_that_a_part_is_made_of_are_known(own: Path) -> None:
    node = {"loss": NODE | {"file": str(own / "matrix.txt")}, "optimizer": {"_target_": "torch.optim.SGD"}}
    before = own_code(node)
    assert list(before) == ["loss.file", "own_base", "own_package", "own_package.loss", "own_package.tools"]
    assert own_targets(node) == {"loss": "own_package.Own"}
    for name, key in {
        "own_package/tools.py": "own_package.tools",
        "own_base.py": "own_base",
        "matrix.txt": "loss.file",
    }.items():
        (own / name).write_text(FILES[name] + "# changed\n")
        forget()
        assert changed_code(before, own_code(node)) == [key]
        (own / name).write_text(FILES[name])
        forget()
    assert own_code(node) == before


def test_no_method_of_ltexp_has_code_of_ones_own() -> None:
    for method in ("mislas", "glag", "bkd"):
        assert code_of_run(asdict(to_config(composed(f"method={method}")))) == {}


def test_other_code_trains_again_is_not_averaged_and_is_not_resumed(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("method=ce", "loss@stage1.loss=own")
    shared = ("stage_cache.enabled=true", f"stage_cache.dir={tmp_path / 'cache'}")
    run_here(tmp_path / "runs" / "a", *words, *shared, project=own)
    run_here(tmp_path / "runs" / "again", *words, *shared, project=own)
    assert "trained before" in capsys.readouterr().out
    (own / "own_package" / "tools.py").write_text("factor = 0.0\n")
    forget()
    run_here(tmp_path / "runs" / "b", *words, *shared, project=own)
    assert "trained before" not in capsys.readouterr().out
    runs, _ = find_runs([tmp_path / "runs"])
    groups = group_runs(runs)
    assert len(groups) == 2
    assert "code" in [column.name for column in results_table(groups).columns]
    began = json.loads((tmp_path / "runs" / "a" / "record.json").read_text())
    now = json.loads((tmp_path / "runs" / "b" / "record.json").read_text())
    assert changed_since(began, asdict(to_config(composed(*words, project=own)))) == "own_package.tools"
    with pytest.raises(CheckpointError, match=r"began with other code \(own_package.tools changed since\)"):
        check_same_things(tmp_path / "runs" / "a", began | {"code": now["code"]})


def test_rows_of_other_data_alone_have_a_column_that_tells_them_apart(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / name, content_hash=name, test_hash="t")
    runs, _ = find_runs([tmp_path])
    table = results_table(group_runs(runs))
    place = [column.name for column in table.columns].index("contents")
    assert len({row[place] for row in table.rows}) == 2


def test_an_error_is_placed_in_the_users_file(own: Path) -> None:
    def raised(work: Callable[[], object]) -> str:
        with pytest.raises(TypeError) as caught:
            work()
        return place_of(caught.value)

    (own / "own_base.py").write_text("import json\n\n\ndef dump():\n    return json.dumps({1: object()})\n")
    import own_base

    assert raised(own_base.dump) == "own_base.py, line 5, in dump"
