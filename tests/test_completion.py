"""Tab completion: what can follow, and that bash, zsh and fish complete with it."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from choices import names
from omegaconf import DictConfig

from ltexp.completion import SCRIPTS, candidates, main
from ltexp.config.composer import compose


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("ltexp tr", ["train"]),
        ("ltexp train meth", ["method="]),
        ("ltexp train method=kp", ["method=kps", "method=kps_mixup"]),
        ("ltexp train -m method=crt,lw", ["method=crt,lws", "method=crt,lws_mixup"]),
        ("ltexp train stage1.lo", ["stage1.loss.", "stage1.loss_weight="]),
        ("ltexp train method=ldam stage1.loss.", ["stage1.loss.max_margin=", "stage1.loss.scale="]),
        ("ltexp train loss@", ["loss@stage1.", "loss@stage2."]),
        ("ltexp train loss@stage1.loss=eq", ["loss@stage1.loss=equalization"]),
        ("ltexp train +loss@stage1.terms.aux.loss=eq", ["+loss@stage1.terms.aux.loss=equalization"]),
        ("ltexp train trainer.compile=", ["trainer.compile=false", "trainer.compile=true"]),
        ("ltexp train stage2.batch_norm=f", ["stage2.batch_norm=frozen"]),
        ("ltexp train paper=ml", []),
        ("ltexp train paper=mislas_", ["paper=mislas_table5"]),
        ("ltexp train --dry", ["--dry-run"]),
        ("ltexp methods loss/focal", ["loss/focal"]),
        ("ltexp data sh", ["show"]),
        ("ltexp data show cifar100_lt imbalance_", ["imbalance_ratio="]),
        ("ltexp report outputs figure=rel", ["figure=reliability"]),
        ("ltexp report ", []),
        ("ltexp evaluate RUN classifier=tau", ["classifier=tau_normalized"]),
        ("ltexp evaluate RUN shift=forward5", ["shift=forward5", "shift=forward50"]),
        ("ltexp evaluate RUN ood=inat", ["ood=inat18"]),
        ("ltexp report outputs test_shift=t", ["test_shift=true"]),
        ("ltexp predict RUN photos acc", ["accelerator="]),
        ("ltexp predict RUN ", []),
        ("ltexp export RUN stage=", ["stage=stage1", "stage=stage2"]),
        ("ltexp reproduce pl", ["plan"]),
        ("ltexp reproduce plan table=mislas/3", ["table=mislas/3"]),
        ("ltexp nothing ", []),
    ],
)
def test_what_can_follow(line: str, expected: list[str]) -> None:
    assert candidates(line) == expected


def test_every_key_of_a_stage_and_every_method_is_offered() -> None:
    assert candidates("ltexp train method=") == [f"method={name}" for name in sorted(names("method"))]
    offered = {word.rstrip(".=") for word in candidates("ltexp train stage2.")}
    stage = compose([]).stage2
    settable = {key for key, node in stage.items() if not isinstance(node, DictConfig) or set(node) != {"_target_"}}
    assert {f"stage2.{key}" for key in settable} == offered


def test_a_users_own_files_are_among_the_choices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "loss").mkdir()
    (tmp_path / "loss" / "zebra.yaml").write_text("# A loss of my own.\n_target_: zebra.Loss\n")
    assert candidates("ltexp train loss@stage1.loss=ze") == []
    assert candidates(f"ltexp train --config-dir {tmp_path} loss@stage1.loss=ze") == ["loss@stage1.loss=zebra"]
    monkeypatch.setenv("LTEXP_CONFIG_DIR", str(tmp_path))
    assert candidates("ltexp train loss@stage1.loss=ze") == ["loss@stage1.loss=zebra"]
    assert candidates("ltexp methods loss/ze") == ["loss/zebra"]


def test_an_unknown_shell_gets_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bsh"]) == 2
    assert capsys.readouterr().err == "ltexp completion: unknown shell 'bsh': did you mean 'bash'?\n"


# what stands for a key press: the shell's own function is called with the words that the shell would give it
PRESSED = {
    "bash": """
eval "$(ltexp completion bash)"
COMP_LINE={line} COMP_POINT=${{#COMP_LINE}}
_ltexp
printf '%s\\n' "${{COMPREPLY[@]}}"
""",
    "zsh": """
compdef() {{}}
compadd() {{
    local word seen
    for word; do [[ $seen ]] && print -r -- $word; [[ $word == -- ]] && seen=1; done
    return 0
}}
_files() {{ print files }}
eval "$(ltexp completion zsh)"
words=({line}) CURRENT=$#words PREFIX=$words[-1]
_ltexp
""",
    "fish": """
ltexp completion fish | source
complete -C {line}
""",
}


@pytest.mark.slow
@pytest.mark.parametrize("shell", list(SCRIPTS))
def test_a_shell_completes(shell: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "ltexp").write_text(f'#!/bin/sh\nexec {sys.executable} -m ltexp "$@"\n')
    (tmp_path / "bin" / "ltexp").chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "HOME": str(tmp_path)}

    def pressed(line: str) -> list[str]:
        script = PRESSED[shell].format(line=line if shell == "zsh" else shlex.quote(line))
        answer = subprocess.run([shell, "-c", script], capture_output=True, text=True, env=environment, timeout=120)
        assert answer.returncode == 0, answer.stderr
        return [found.split("\t")[0].rstrip() for found in answer.stdout.splitlines()]

    # bash replaces what follows the last = alone
    assert pressed("ltexp train method=kps_") == (["kps_mixup"] if shell == "bash" else ["method=kps_mixup"])
    assert pressed("ltexp re") == ["report", "reproduce"]
    assert pressed("ltexp train method=ldam stage1.loss.max") == ["stage1.loss.max_margin="]
