"""Which runs count for which cell: what is averaged, what stands apart, what is left to do."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from records import record, write

from ltexp.papers import all_cells, match_cells
from ltexp.report.formats import as_text
from ltexp.report.records import Run
from ltexp.reproduce.compare import compare, sort_lines, to_page, to_table
from ltexp.reproduce.cost import Cost
from ltexp.reproduce.jobs import Job, job_of
from ltexp.reproduce.measured import Outputs
from ltexp.reproduce.plan import make_plan, show_plan
from ltexp.reproduce.run import compose_job

MISLAS = "mislas/3/mislas/cifar100_lt/100"


def job(name: str) -> Job:
    (cell,) = match_cells(all_cells(), name)
    found = job_of(cell)
    assert isinstance(found, Job)
    return found


def run(name: str = MISLAS, epochs: tuple[int, ...] = (200, 10), **changes: Any) -> Run:
    """A run of the cell's job; further overrides in `typed`, other entries of the record by name."""
    of_cell = job(name)
    typed = [*of_cell.overrides, *changes.pop("typed", [])]
    facts = {"method": of_cell.method, "dataset": of_cell.dataset, "imbalance": of_cell.imbalance}
    facts |= {"imbalance_ratio": float(of_cell.ratio or 1), "backbone": of_cell.backbone}
    made = record(**{**facts, "overrides": typed, **changes})
    made["stages"] = [{**made["stages"][0], "name": f"stage{n}", "epochs": e} for n, e in enumerate(epochs, 1)]
    return Run(Path(f"{made['config_hash']}-{made['seed']}"), made)


def measured(*runs: Run, name: str = MISLAS) -> list[tuple[str, list[int], float]]:
    found = Outputs(runs).of(job(name))
    return [(group.text, group.seeds, group.accuracy("all").mean) for group in found]  # type: ignore[union-attr]


def test_seeds_are_averaged_under_one_protocol() -> None:
    assert measured(run(all=46.0), run(all=48.0, seed=1)) == [("last epoch", [0, 1], 47.0)]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"epochs": (8, 4)}, "last epoch, 8 + 4 of 200 + 10 epochs"),
        ({"typed": ["dataset.subset.seed=1"]}, "last epoch, dataset.subset.seed=1"),
        ({"typed": ["dataset.max_per_class=50"]}, "last epoch, dataset.max_per_class=50"),
        ({"environment": {"precision": "bf16-mixed", "world_size": 2}}, "last epoch, bf16-mixed, 2 devices"),
        ({"selection": "best_on_test"}, "best_on_test"),
        ({"typed": ["trainer.gradient_clip_val=1"]}, "last epoch, other config: trainer.gradient_clip_val=1"),
        ({"typed": ["stage2.loss.head_smoothing=0.2"]}, "last epoch, other config: stage2.loss.head_smoothing=0.2"),
    ],
)
def test_other_protocols_and_configs_stand_apart_and_after_the_full_one(changes: dict[str, Any], text: str) -> None:
    found = measured(run(all=47.0), run(all=10.0, seed=1, config_hash="d", **changes))
    assert found == [("last epoch", [0], 47.0), (text, [1], 10.0)]


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("trainer.fast_dev_run=true", True),
        ("trainer.limit_train_batches=3", 3),
        ("trainer.limit_val_batches=0.5", 0.5),
        ("trainer.limit_test_batches=3", 3),
        ("trainer.overfit_batches=1", 1),
    ],
)
def test_a_run_on_a_part_of_the_batches_is_another_config_and_leaves_its_cell_to_do(setting: str, value: Any) -> None:
    part = run(typed=[setting], partial={setting.partition("=")[0]: value}, config_hash="d")
    assert measured(part) == [(f"last epoch, other config: {setting}", [0], 50.0)]
    cells = match_cells(all_cells(), MISLAS)
    assert [line.kind for line in compare(cells, Outputs([part]), missing=False)] == ["other"]
    assert len(make_plan(cells, Outputs([part]), [0], []).to_run) == 1
    assert not make_plan(cells, Outputs([part]), [0], [setting]).to_run
    assert len(make_plan(cells, Outputs([run()]), [0], [setting]).to_run) == 1


def test_a_run_that_was_stopped_early_leaves_its_cell_to_do() -> None:
    stopped = run(typed=["trainer.max_time=00:01:00:00"], config_hash="d")
    stopped.record["stages"][0]["stopped_after"] = 8
    assert measured(stopped) == [("last epoch, 8 + 10 of 200 + 10 epochs", [0], 50.0)]
    assert len(make_plan(match_cells(all_cells(), MISLAS), Outputs([stopped]), [0], []).to_run) == 1
    in_time = run(typed=["trainer.max_time=00:01:00:00"], config_hash="d")
    assert measured(in_time) == [("last epoch", [0], 50.0)]


def test_a_run_from_before_its_recipe_changed_is_another_config_and_leaves_its_cell_to_do(tmp_path: Path) -> None:
    before = run(config_hash="d")
    plain = compose_job(job(MISLAS))
    plain["stage2"]["optimizer"]["lr"] = 0.3
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(plain))
    kept = Run(tmp_path, before.record)
    assert measured(kept) == [("last epoch, other config: stage2.optimizer.lr=0.3", [0], 50.0)]
    assert len(make_plan(match_cells(all_cells(), MISLAS), Outputs([kept]), [0], []).to_run) == 1


def test_what_a_run_sees_beyond_others_stands_beside_its_number() -> None:
    held = {"stage1.meta": {"per_class": 10, "of": "validation"}}
    assert measured(run(held_out=held)) == [("last epoch, sees 10 validation images a class also", [0], 50.0)]


def test_two_configs_that_claim_one_cell_and_seed_are_shown_not_averaged() -> None:
    found = measured(run(all=40.0, config_hash="aaaaaaaaaa"), run(all=50.0, config_hash="bbbbbbbbbb"))
    assert found == [("last epoch, config aaaaaaaa", [0], 40.0), ("last epoch, config bbbbbbbb", [0], 50.0)]


def test_other_images_of_the_same_counts_are_shown_not_averaged() -> None:
    found = measured(run(subset_hash="one"), run(subset_hash="two", seed=1))
    assert [text for text, _, _ in found] == ["last epoch, subset one", "last epoch, subset two"]


def test_a_variant_is_its_own_cell() -> None:
    without = run("mislas/2/mislas:mu+sl/cifar100_lt/100", all=45.0)
    assert measured(without, name="mislas/2/mislas:mu+sl/cifar100_lt/100") == [("last epoch", [0], 45.0)]
    cells = match_cells(all_cells(), "mislas/2/mislas:mu+sl+las/cifar100_lt/100")
    # beside the full method it would only be in the way
    assert [line.kind for line in compare(cells, Outputs([without]), missing=True)] == ["missing"]


def test_equal_compositions_of_several_tables_are_one_job() -> None:
    names = ("mislas/2/mislas:mu+sl+las/cifar100_lt/100", MISLAS, "gcl/5.2/mislas/cifar100_lt/100")
    assert len({job(name) for name in names}) == 1
    assert job("kps/3.4/kps:ga/cifar10_lt/50") == job("kps/3.2/kps/cifar10_lt/50")


def test_a_precision_and_devices_leave_nothing_to_do_but_another_schedule_does() -> None:
    cells = match_cells(all_cells(), MISLAS)
    bf16 = Outputs([run(environment={"precision": "bf16-mixed"})])
    assert make_plan(cells, bf16, [0, 1], []).to_run == [(job(MISLAS), 1)]
    short = Outputs([run(epochs=(8, 4), typed=["stage1.epochs=8", "stage2.epochs=4"])])
    assert len(make_plan(cells, short, [0], []).to_run) == 1
    assert not make_plan(cells, short, [0], ["stage1.epochs=8", "stage2.epochs=4", "trainer=bf16"]).to_run
    assert len(make_plan(cells, short, [0], ["stage1.epochs=9", "stage2.epochs=4"]).to_run) == 1
    subset = ["dataset.num_classes=5"]
    assert len(make_plan(cells, Outputs([run()]), [0], subset).to_run) == 1
    assert not make_plan(cells, Outputs([run(typed=subset)]), [0], subset).to_run


def test_stage_1_is_counted_once_for_the_methods_that_share_it() -> None:
    cells = match_cells(all_cells(), "mislas/3/*/cifar100_lt/100")
    plan = make_plan(cells, Outputs([]), [0, 1], [])
    assert len(plan.to_run) == 16
    assert len(plan.stages) == 10  # ce, ldam_drw, bbn, remix_drw, and one for mixup, crt_mixup, lws_mixup and mislas
    later = make_plan(cells, Outputs([run("mislas/3/crt_mixup/cifar100_lt/100")]), [0], [])
    assert (len(later.to_run), len(later.stages), len(later.shared)) == (7, 4, 1)


def test_a_stage_1_in_another_precision_is_trained_anew() -> None:
    cells = match_cells(all_cells(), "mislas/3/*/cifar100_lt/100")
    mixup = run("mislas/3/mixup/cifar100_lt/100", (200,), environment={"precision": "bf16-mixed"})
    for extra, there in ([], 0), (["trainer=bf16"], 1):
        assert len(make_plan(cells, Outputs([mixup]), [0], extra).shared) == there


def test_images_of_a_set_that_is_not_cut_are_those_listed_or_on_record() -> None:
    imagenet, sizes = job("mislas/4/mislas/imagenet_lt"), Job("ce", "cifar10_sizes", None, None, "resnet32")
    assert [Cost([]).images(of) for of in (imagenet, sizes)] == [115846, 6500]
    assert Cost([run(dataset="imagenet_lt", imbalance="given", imbalance_ratio=256.0)]).images(imagenet) == 580


def test_an_override_of_stage_2_does_not_reach_methods_without_one() -> None:
    short = job("mislas/3/ce/cifar100_lt/100").with_extra(["stage1.epochs=8", "stage2.epochs=4"])
    assert short.settings == ("stage1.epochs=8",)


def test_an_error_table_is_compared_in_errors() -> None:
    (cell,) = match_cells(all_cells(), "kps/3.2/kps/cifar100_lt/100")  # 54.97
    (line,) = compare(
        [cell], Outputs([run(cell.name, (200,), all=44.0), run(cell.name, (200,), all=46.0, seed=1)]), True
    )
    assert line.value is not None
    assert (line.value.mean, round(line.difference or 0, 2)) == (55.0, 0.03)
    table = to_table([line])
    found = {column.name: cell for column, cell in zip(table.columns, table.rows[0], strict=True)}
    assert (found["published"], found["difference"]) == ("54.97", "+0.03")


def test_the_best_of_errors_is_the_least_beside_a_table_of_accuracies() -> None:
    """In an error of 54 and one of 56 the first is bold, and of accuracies in the same comparison the most."""
    names = [f"{table}/cifar100_lt/100" for table in ("kps/3.2/kps", "kps/3.2/ldam_drw", MISLAS[:15])]
    names.append("mislas/3/crt_mixup/cifar100_lt/100")
    epochs = ((200,), (200,), (200, 10), (200, 10))
    runs = [
        run(name, of, all=value, config_hash=name)
        for name, of, value in zip(names, epochs, (46.0, 44.0, 47.0, 45.0), strict=True)
    ]
    table = to_table(compare([cell for cell in all_cells() if cell.name in names], Outputs(runs), False))
    place = [column.name for column in table.columns].index("measured")
    bold = sorted(table.rows[line][place].mean for line, column in table.best if column == place)  # type: ignore[union-attr]
    assert bold == [47.0, 54.0]


def test_classes_and_shots_come_from_the_same_run() -> None:
    cells = match_cells(all_cells(), "fbl/4.5/fbl/cifar10_lt/100")
    outputs = Outputs([run("fbl/4.2/fbl/cifar10_lt/100", (200,))])
    values = {line.cell.split: line.value for line in compare(cells, outputs, missing=False)}
    assert values["class_0"].mean == 60.0  # type: ignore[union-attr]
    assert values["class_2"] is None  # the record has no accuracy of it


def test_what_cannot_run_says_why_in_one_line() -> None:
    for cell in all_cells():
        found = job_of(cell)
        assert isinstance(found, Job) or (found and "\n" not in found), cell.name
    quoted = match_cells(all_cells(), "mislas/4/fslwf/places_lt")
    assert str(job_of(quoted[0])).startswith("a number quoted since the OLTR paper")
    plan = make_plan([*quoted, *match_cells(all_cells(), MISLAS)], Outputs([]), [0], [])
    lines = compare(quoted, Outputs([]), missing=True)
    assert [(line.kind, line.value) for line in lines] == [("published-only", None)]
    assert lines[0].remark.startswith("published number only: a number quoted since the OLTR paper")
    assert "1 published numbers only" in " ".join(to_table(lines).notes)
    assert (list(plan.published_only.values()), len(plan.jobs)) == ([quoted], 1)
    text = as_text(show_plan(plan, Cost([])))
    assert "published number only, 1 cell (mislas/4/fslwf): a number quoted since the OLTR paper" in text
    assert "1 of 2 cells can be run" in text


def test_a_cell_with_many_other_configs_does_not_list_them_all() -> None:
    others = [run(config_hash=f"{n}", typed=[f"stage2.loss.head_smoothing=0.{n}"]) for n in range(1, 6)]
    lines = compare(match_cells(all_cells(), MISLAS), Outputs(others), missing=True)
    assert [line.remark for line in lines] == ["5 other configs: see ltexp report"]


def test_the_page_has_each_run_once_with_its_command_and_links(tmp_path: Path) -> None:
    folder = write(tmp_path / "a b", overrides=["method=mislas", "stage1.x=[1, 2]"])
    (folder / "reliability.png").write_bytes(b"")
    base = run()
    linked = Run(folder, base.record | {"overrides": [*base.record["overrides"], "seed=0"]})
    page = to_page(compare(match_cells(all_cells(), MISLAS), Outputs([linked]), True), "</script><b>")
    text = page.to_html(tmp_path)
    assert "a%20b/record.json" in text
    assert "a%20b/reliability.png" in text
    assert text.count("ltexp train method=mislas dataset=cifar100_lt") == 1
    assert "</script><b>" not in text
    assert "://" not in text.replace("http://www.w3.org", "")  # nothing is fetched


def test_lines_are_sorted_within_their_table_with_the_best_first_and_the_unmeasured_last() -> None:
    """Of errors the smallest is the best; the other way round those without a figure still come last."""
    cells = match_cells(all_cells(), "mislas/3/*/cifar100_lt/100")
    found = [run("mislas/3/mislas/cifar100_lt/100", all=40.0), run("mislas/3/crt_mixup/cifar100_lt/100", all=45.0)]
    lines = compare(cells, Outputs(found), True)
    best = [line.cell.method for line in sort_lines(lines, "measured")]
    assert best[:2] == ["crt_mixup", "mislas"]
    assert [line.cell.method for line in sort_lines(lines, "-measured")][:2] == ["mislas", "crt_mixup"]
    published = [line.cell.value for line in sort_lines(lines, "published")]
    assert published == sorted(published, reverse=True)
    errors = compare(match_cells(all_cells(), "kps/3.6/*/cifar10_lt/100"), Outputs([]), True)
    assert [line.cell.value for line in sort_lines(errors, "published")] == [17.26, 17.94]
    table = to_table(sort_lines(lines, "measured"))
    assert {place for place, _ in table.best} == {0}
