"""The commands: what they print, their exit codes, their one-line mistakes, and that they start without torch."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ltexp.data.__main__ import COMMANDS, main


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A data root with a small CIFAR-10 in which two classes are short."""
    folder = tmp_path / "cifar10"
    folder.mkdir()
    counts = [60] * 8 + [20] * 2
    labels = np.repeat(np.arange(10), counts)
    for split in ("train", "test"):
        np.save(folder / f"{split}_images.npy", np.zeros((len(labels), 32, 32, 3), np.uint8))
        np.save(folder / f"{split}_labels.npy", labels)
    (folder / "classes.txt").write_text("".join(f"name{label}\n" for label in range(10)))
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(words)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_show_prints_and_draws(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figure = root / "deep" / "figure.png"
    words = ("show", "cifar10_lt", f"root={root}", "max_per_class=50", "imbalance_ratio=25", "subset.seed=1")
    code, out, err = run(capsys, *words, f"out={figure}")
    assert (code, err) == (0, "")
    assert "50, 34, 24, 17, 11, 8, 5, 4, 2 x2" in out
    assert "157 train images" in out
    assert out.splitlines()[-1] == str(figure)
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_show_takes_the_keys_as_train_does(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = run(capsys, "show", "digits_lt", "dataset.imbalance=step", f"out={root / 'a.png'}")
    two = run(capsys, "show", "digits_lt", "imbalance=step", f"out={root / 'a.png'}")
    assert one == two
    assert "120 x5, 2 x5" in one[1]


def test_a_ratio_of_balanced_data_is_noted(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    note = "note: imbalance_ratio has no effect with imbalance=balanced"
    for words, noted in ((["imbalance_ratio=20"], True), ([], False)):
        _, out, _ = run(capsys, "show", "digits_lt", "imbalance=balanced", *words, f"out={root / 'a.png'}")
        assert (out.splitlines()[0] == note) == noted


def test_check_says_what_is_missing_and_what_there_is(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "check", f"root={root}")
    assert code == 1
    assert "cifar100_lt: missing train_images.npy" in out
    assert f"ltexp data prepare cifar100 root={root}" in out
    assert "digits_lt: ok: 1,297 train images (124 to 133 a class), 500 test images (50 a class)" in out
    code, out, _ = run(capsys, "check", f"root={root}", "cifar10")
    assert code == 0
    assert "cifar10: ok: 520 train images (20 to 60 a class)" in out
    assert "not in the published order" in out
    (root / "cifar10" / "test_labels.npy").write_bytes(b"")
    code, out, _ = run(capsys, "check", f"root={root}", "cifar10_lt", "digits_lt")
    assert code == 1
    assert "cifar10_lt: test_labels.npy is damaged" in out


def test_prepare_reports(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "prepare", "cifar10", f"source={root / 'cifar10'}", f"root={root / 'copy'}")
    assert (code, err) == (0, "")
    assert "520 train images" in out
    assert (root / "copy" / "cifar10" / "classes.txt").is_file()


NOT_OF_THE_WORDS = ("cannot write /dev/null/x.png", "prepare cifar10 root=/nowhere", "does not exist")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["shwo"], "did you mean 'show'"),
        ([], "COMMAND"),
        (["show"], "name one dataset"),
        (["show", "cifar100"], "did you mean 'cifar100_lt'"),
        (["show", "digits_lt", "imbalnce_ratio=3"], "did you mean 'imbalance_ratio'"),
        (["show", "digits_lt", "imbalance_ratio=0.5"], "invalid dataset.imbalance_ratio=0.5"),
        (["show", "digits_lt", "imbalance_ratio=500"], "leaves 3 of 10 classes without training images"),
        (["show", "digits_lt", "imbalance_ratio=[1"], "cannot be read"),
        (["show", "digits_lt", "imbalance=given"], "invalid dataset.imbalance=given: expected longtail | step"),
        (["show", "digits_lt", "num_classes=11"], "digits_lt has 10 classes"),
        (["show", "digits_lt", "out=/dev/null/x.png"], "cannot write /dev/null/x.png"),
        (["show", "cifar10_lt", "root=/nowhere"], "prepare cifar10 root=/nowhere"),
        (["check", "mnist"], "unknown dataset 'mnist'"),
        (["check", "rot=x"], "did you mean 'root'"),
        (["prepare", "cifar_100"], "did you mean 'cifar100'"),
        (["prepare", "cifar10", "download=maybe"], "invalid download=maybe: expected true | false"),
        (["prepare", "cifar10", "source=x", "download=true"], "exclude each other"),
        (["prepare", "cifar10", "source=/nowhere"], "does not exist"),
    ],
)
def test_mistakes_have_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, *words)
    assert code == (1 if message in NOT_OF_THE_WORDS else 2)
    assert message in err
    assert err.count("\n") == 1


def test_help_of_every_command_fits_80_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for words in (["--help"], *([command, "--help"] for command in COMMANDS)):
        with pytest.raises(SystemExit) as stop:
            main(words)
        assert stop.value.code == 0
        shown = capsys.readouterr().out
        assert "ltexp data" in shown
        assert max(map(len, shown.splitlines())) <= 80


def test_commands_start_without_torch(tmp_path: Path) -> None:
    script = (
        "import sys; from ltexp.data.__main__ import main; "
        "code = main(['show', 'digits_lt', f'out={sys.argv[1]}/a.png']); main(['check']); "
        "sys.exit(code or 'torch' in sys.modules or 'sklearn' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
