"""`ltexp methods`: every choice is described where it is made, and found by its name."""

from pathlib import Path

import pytest
from choices import CONF, names

from ltexp.config.path import conf_dir, group_files
from ltexp.methods import comment_of, first_sentence, groups, main


def test_every_choice_opens_with_a_comment_that_describes_it() -> None:
    assert "loss" in groups()
    bare = [
        str(path.relative_to(CONF))
        for group in groups()
        for path in group_files(group).values()
        if not first_sentence(comment_of(path))
    ]
    assert not bare


def test_sentences_end_at_their_full_stop_and_not_within_a_reference() -> None:
    comment = ["GCL (A et al., Ch. 5, Eqs. 1-2, Figs. 3 and 4): clouds", "in stage 1. Then more."]
    assert first_sentence(comment) == "GCL (A et al., Ch. 5, Eqs. 1-2, Figs. 3 and 4): clouds in stage 1"


def test_all_methods_and_groups_are_listed_within_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main([]) == 0
    shown = capsys.readouterr().out
    methods, _, others = shown.partition("\n\n")
    assert {line.split()[0] for line in methods.splitlines() if not line.startswith(" ")} == set(names("method"))
    assert max(map(len, shown.splitlines())) <= 80
    assert {"sampler", "stage", "trainer"} <= set(others.replace(",", "").split())


def test_a_method_is_shown_with_its_parts_on_a_dataset(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["LDAM-DRW", "dataset=cifar10_lt"]) == 0  # as its paper writes it
    shown = capsys.readouterr().out
    assert "On cifar10_lt:" in shown
    assert "loss ldam" in shown
    assert "reweighting deferred" in shown
    assert "conf/paper/ldam_drw/cifar.yaml" in shown
    assert "ltexp train method=ldam_drw dataset=cifar10_lt" in shown
    assert "stage2 " not in shown


@pytest.mark.parametrize(("method", "page"), [("ride_bkd_3", "bkd"), ("mislas_kps", "mislas"), ("m2m", "baselines")])
def test_a_method_leads_to_the_page_that_treats_it(method: str, page: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([method]) == 0
    assert f"methods/{page}.md" in "".join(capsys.readouterr().out.split())


def test_a_group_a_choice_and_a_users_own(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "loss").mkdir()
    (tmp_path / "loss" / "mine.yaml").write_text("# A loss of my own. And more.\n_target_: mine.Loss\n")
    assert main(["loss", "--config-dir", str(tmp_path)]) == 0
    assert "A loss of my own" in capsys.readouterr().out
    assert main(["-cd", str(tmp_path), "loss/mine"]) == 0
    assert capsys.readouterr().out.startswith("# A loss of my own")
    assert main(["loss/ldam"]) == 0
    assert capsys.readouterr().out == (conf_dir() / "loss" / "ldam.yaml").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["gclx"], "unknown method 'gclx': did you mean 'gcl'?"),
        (["losss/ldam"], "unknown group 'losss': did you mean 'loss'?"),
        (["loss/ldma"], "unknown loss 'ldma': did you mean 'ldam'?"),
        (["gcl", "kps"], "one name at a time: gcl kps"),
        (["gclx", "stage1.epochs=1"], "unknown method 'gclx': did you mean 'gcl'?"),
        (["gcl", "bogus=1"], "unknown key 'bogus'"),
        (["gcl", "stage1.bogus=1"], "unknown key 'stage1.bogus': did you mean 'stage1.loss'?"),
        (["gcl", "dataset=cifar10_tl"], "unknown dataset 'cifar10_tl': did you mean 'cifar10_lt'?"),
        (["gcl", "loss@stage1.loss=ldma"], "unknown loss 'ldma': did you mean 'ldam'?"),
        (["gcl", "loss=ldam"], "unknown key 'loss': did you mean 'loss@stage1.loss'?"),
        (["gcl", "dataset=null"], "dataset=null: a choice is a name; dataset=\"'null'\" if that is its name"),
        (["gcl", "method=kps"], "method=kps beside gcl: name one method"),
        *(
            ([*name, "t=1"], "t=1 has no effect without a method: ltexp methods METHOD t=1")
            for name in ([], ["loss"], ["loss/ldam"], ["config"])
        ),
        (
            ["gcl", "--config-dir", "/no/such"],
            "the config folder /no/such is not there (--config-dir, config_dirs or $LTEXP_CONFIG_DIR)",
        ),
    ],
)
def test_a_wrong_name_gets_one_line_and_status_2(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    output = capsys.readouterr()
    assert output.err == f"ltexp methods: {message}\n"
    assert output.out == ""


def test_an_empty_choice_gets_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gcl", "dataset="]) == 2
    assert capsys.readouterr().err.startswith("ltexp methods: unknown dataset '': choose one of ")
