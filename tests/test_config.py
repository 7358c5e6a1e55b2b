"""The config: composition, precedence, freezing, and one clear line for each mistake, before torch is imported."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from choices import names
from omegaconf import OmegaConf
from runs import composed

from ltexp.config import to_config
from ltexp.config.identity import backbone_identity, config_hash, differing_keys, run_identity
from ltexp.config.lightning import partial_settings, trainer_config
from ltexp.config.reading import load
from ltexp.errors import ConfigError

ROOT = Path(__file__).parents[1]


def train(*overrides: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ltexp.train", *overrides]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=None, timeout=60)


QUICK = ("digits_lt", "cifar100_lt")  # all methods on the other datasets take minutes
DATASETS = [x if x in QUICK else pytest.param(x, marks=pytest.mark.slow) for x in names("dataset")]


@pytest.mark.parametrize("method", names("method"))
@pytest.mark.parametrize("dataset", DATASETS)
def test_every_method_composes_on_every_dataset(method: str, dataset: str) -> None:
    scratch = (
        ["fine_tuning=none"] if dataset == "places_lt" and method.startswith(("ride", "sade")) else []
    )  # no weights fit experts
    plain = composed(f"method={method}", f"dataset={dataset}", *scratch, small=False)
    assert plain["choices"]["method"] == method
    assert plain["dataset"]["name"] == dataset


def test_method_wins_over_recipe_and_command_line_over_both() -> None:
    assert composed("method=mislas", small=False)["stage2"]["batch_norm"] == "statistics"
    assert composed("method=mislas", "stage2.batch_norm=frozen", small=False)["stage2"]["batch_norm"] == "frozen"
    assert composed("dataset=cifar100_lt", small=False)["stage1"]["epochs"] == 200
    assert composed("dataset=cifar100_lt", "stage1.epochs=7", small=False)["stage1"]["epochs"] == 7


@pytest.mark.parametrize(
    ("dataset", "ratio", "head", "tail", "factor", "batch_norm"),
    [  # method-by-method settings of the authors' released configurations
        ("cifar10_lt", 100, 0.3, 0.0, 0.5, "frozen"),
        ("cifar10_lt", 50, 0.2, 0.0, 0.2, "frozen"),
        ("cifar10_lt", 10, 0.1, 0.0, 0.2, "frozen"),
        ("cifar100_lt", 100, 0.4, 0.1, 0.2, "statistics"),
        ("cifar100_lt", 50, 0.3, 0.0, 0.1, "statistics"),
        ("cifar100_lt", 10, 0.2, 0.0, 0.1, "statistics"),
        ("cifar100_lt", 200, 0.4, 0.1, 0.2, "statistics"),  # not listed: the nearest ratio's
    ],
)
def test_mislas_has_its_settings_for_each_ratio(
    dataset: str, ratio: int, head: float, tail: float, factor: float, batch_norm: str
) -> None:
    stage = composed("method=mislas", f"dataset={dataset}", f"dataset.imbalance_ratio={ratio}", small=False)["stage2"]
    assert (stage["loss"]["head_smoothing"], stage["loss"]["tail_smoothing"]) == (head, tail)
    assert stage["lr_factors"] == {"classifier": {"shift": factor, "bias": factor}}
    assert stage["batch_norm"] == batch_norm


def test_a_replaced_choice_starts_from_its_own_file() -> None:
    # conf/paper/mislas sets smoothing factors on stage2.loss, which mean nothing to cross-entropy
    loss = composed("dataset=cifar10_lt", "loss@stage2.loss=cross_entropy", "stage2.loss.scale=2.0")["stage2"]["loss"]
    assert loss == {"_target_": "ltexp.losses.cross_entropy.CrossEntropy", "scale": 2.0}
    kept = composed("dataset=cifar10_lt", "loss@stage2.loss=label_aware_smoothing")["stage2"]["loss"]
    assert kept["tail_smoothing"] == 0.0


def test_mislas_modules_switch_off_one_by_one() -> None:
    """Each ablation of MiSLAS Table 2 differs from the full method by the keys of the one module."""
    full = to_config(composed("method=mislas", "dataset=cifar100_lt"))
    for override, touched in (
        ("mixing@stage1.mixing=none", "stage1.mixing"),
        ("stage2.batch_norm=frozen", "stage2.batch_norm"),
        ("loss@stage2.loss=cross_entropy", "stage2.loss"),
    ):
        other = to_config(composed("method=mislas", "dataset=cifar100_lt", override))
        keys = differing_keys(full, other)
        assert keys
        assert all(key.startswith(touched) for key in keys), keys


def test_crt_and_ce_share_their_stage_1() -> None:
    assert composed("method=crt")["stage1"] == composed("method=ce")["stage1"]
    assert composed("method=mislas")["stage1"] == composed("method=lws_mixup")["stage1"]


def test_identity_ignores_places_and_the_hash_ignores_the_seed() -> None:
    one, other = to_config(composed("seed=0")), to_config(composed("seed=1", "paths.outputs=elsewhere"))
    assert differing_keys(one, other) == ["seed"]
    assert config_hash(one) == config_hash(other)
    assert run_identity(one) != run_identity(other)
    assert run_identity(to_config(composed("paths.data=x"))) == run_identity(one)


BAD = [
    (("method=mislass",), "unknown method 'mislass': did you mean 'mislas'?"),
    (("metod=ce",), "unknown key 'metod': did you mean 'method'?"),
    (("method=null",), "method=null: a choice is a name"),
    (("stage1.loss=null",), "stage1.loss=null: it cannot be left out; choose with loss@stage1.loss=NAME"),
    (("losses@stage1.loss=ldam",), "unknown group 'losses': did you mean 'loss'?"),
    (("trainer.device=1",), "unknown key 'trainer.device': did you mean 'trainer.devices'?"),
    (("trainer.max_time=soon",), "invalid trainer.max_time=soon: expected days, hours, minutes and seconds"),
    (("evaluation.many_shot_above=-1",), "invalid evaluation.many_shot_above=-1: expected 0 or more"),
    (
        ("method=crt", "stage2.loss.head_smoothing=0.3"),
        "unknown key 'stage2.loss.head_smoothing': label_aware_smoothing has it: choose one with loss@stage2.loss=NAME",
    ),
    (("lr=0.1",), "unknown key 'lr': did you mean 'stage1.optimizer.lr'?"),
    (("+stage2.max_epochs=3",), "did you mean 'stage2.epochs'?"),
    (("trainer.gpus=2",), "did you mean 'trainer.devices'?"),
    (("method=LDAM-DRW",), "unknown method 'LDAM-DRW': did you mean 'ldam_drw'?"),
    (("--config-dir", "nowhere"), "the config folder"),
    (("-m", "hydra/launcher=submitit_slurm"), "there is no sbatch here"),
    (("stage1.epcohs=3",), "did you mean 'stage1.epochs'?"),
    (("+stage2.epoch=3",), "did you mean 'stage2.epochs'?"),
    (("+stage1.loss.scal=2",), "did you mean 'stage1.loss.scale'?"),
    (("loss@stage2.los=cross_entropy",), "did you mean 'loss@stage2.loss'?"),
    (("stage1.epochs=abc",), "stage1.epochs: value 'abc' of type 'str' could not be converted to Integer"),
    (("backbone.depth=deep",), "invalid backbone.depth=deep: expected int"),
    (("stage1.loss=cross_entropy",), "loss@stage1.loss=NAME"),
    (("method=ce", "stage2.epochs=3"), "stage2 is null here"),
    (("dataset.imbalance_ratio=0.5",), "expected at least 1"),
    (("trainer.precision=half",), "32-true | bf16-mixed | 16-mixed"),
    (("trainer.devices=3",), "a multiple of the 3 devices"),
    (("stage1=null",), "stage1 is null"),
    (("method=[a",), "cannot read the override"),
    (("method=5",), "method=5: a choice is a name"),
    (("dataset.imbalance_ratio=abc",), "invalid dataset.imbalance_ratio=abc: expected float"),
    (("stage1.optimizer.momentum=a",), "expected a number of 0 or more"),
    (("~stage1.loss",), "stage1.loss has no _target_"),
    (("trainer.sync_batch_norm=true",), "needs several GPUs"),
    (("-m", "method=crt,mislass"), "did you mean 'mislas'?"),
    (("dataset.imbalance_ratio=500",), "leaves 3 of 10 classes without training images: 7, 8, 9"),
    (("dataset.num_classes=11",), "has 10 classes"),
    (("dataset=cifar100_lt", "paths.data=nowhere"), "ltexp data prepare cifar100"),
    (("-m", "stage2.batch_norm=frozen,melted"), "job 2 of 2 (stage2.batch_norm=melted)"),
]


@pytest.mark.parametrize(("overrides", "message"), BAD, ids=[" ".join(overrides) for overrides, _ in BAD])
def test_a_mistake_gets_one_line_at_once_and_leaves_nothing(
    overrides: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    places = (f"hydra.run.dir={tmp_path}/run", f"hydra.sweep.dir={tmp_path}/sweep")
    answer = train(*overrides, *places, cwd=tmp_path)
    assert answer.returncode != 0
    assert message in answer.stderr
    assert len(answer.stderr.strip().splitlines()) == 1, answer.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "key", ["paths.outputs", "paths.data", "stage_cache.dir", "stage1.checkpoint", "hydra.run.dir"]
)
def test_an_empty_path_is_refused_by_its_key(key: str, tmp_path: Path) -> None:
    """As where a variable of the shell is not set."""
    answer = train(f"{key}=", cwd=tmp_path)
    assert answer.stderr == f"ltexp: {key}= is empty: name a path (was a variable of the shell not set?)\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("key", ["paths.outputs", "hydra.sweep.dir"])
def test_an_empty_path_of_a_sweep_is_refused_by_its_key(key: str, tmp_path: Path) -> None:
    answer = train("-m", "seed=0,1", f"{key}=", cwd=tmp_path)
    assert answer.stderr == f"ltexp: {key}= is empty: name a path (was a variable of the shell not set?)\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("key", ["dataset.leave_out", "dataset.cache", "dataset.source.folder", "backbone.weights"])
def test_an_empty_path_of_a_part_is_refused_by_its_key(key: str) -> None:
    places = ("dataset=image_list", "dataset.source.folder=x", "backbone=resnet50", f"{key}=")
    with pytest.raises(ConfigError, match=f"^{key}= is empty: name a path"):
        composed(*places)


def test_a_mistake_is_answered_in_under_two_seconds_without_torch(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom ltexp.train import main\ntry:\n    main()\nexcept SystemExit as end:\n"
        "    print('torch' in sys.modules, end.code)"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    answer = subprocess.run([sys.executable, "-c", code, "seed=x"], capture_output=True, text=True, cwd=tmp_path)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # processor time: other work on the machine does not count
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2
    assert answer.stdout.startswith("False ltexp: seed: value 'x'"), answer


def test_help_fits_a_screen_and_says_where_the_choices_are() -> None:
    answer = train("--help", cwd=ROOT)
    assert answer.returncode == 0
    for text in ("ltexp methods loss/ldam", "ltexp methods config", "--cfg job", "--config-dir DIR"):
        assert text in answer.stdout
    assert answer.stdout.count("\n") <= 30
    assert not answer.stdout.endswith("\n\n")
    assert max(map(len, answer.stdout.splitlines())) <= 80
    assert "python -m" not in answer.stdout


def test_unknown_keys_inside_a_config_are_refused() -> None:
    plain = composed()
    with pytest.raises(ConfigError, match=r"did you mean 'evaluation\.every'"):
        to_config(plain | {"evaluation": plain["evaluation"] | {"evry": 1}})


def test_the_hashes_of_the_records_that_are_kept_are_still_those_of_their_configs() -> None:
    """Names move, meanings stay: a config of an older run has the hash that its record was written with."""
    records = sorted((Path(__file__).parents[1] / "docs" / "records").rglob("record.json"))
    assert records
    for path in records:
        assert config_hash(load(path.parent / "config.yaml")) == json.loads(path.read_text())["config_hash"], path


def test_a_key_without_effect_of_an_older_run_is_taken_and_the_hash_is_as_it_was(tmp_path: Path) -> None:
    """`imbalance_ratio` was 100 on all image files, and is now null where no tail is cut."""
    today = composed("dataset=image_folder", "dataset.source.folder=/x", "method=ce", small=False)
    assert today["dataset"]["imbalance_ratio"] is None
    older = today | {"dataset": today["dataset"] | {"imbalance_ratio": 100}}
    assert config_hash(to_config(today)) == config_hash(to_config(older))
    held_out = {"fraction": 0.0, "max_per_class": 2}
    older["dataset"] |= {"imbalance_ratio": 10, "validation": held_out, "test": held_out}
    OmegaConf.save(OmegaConf.create(older), tmp_path / "config.yaml")
    assert load(tmp_path / "config.yaml").dataset == to_config(today).dataset
    cut = {"imbalance": "step", "imbalance_ratio": 10, "validation": {"fraction": 0.1, "max_per_class": 2}}
    older["dataset"] |= cut
    OmegaConf.save(OmegaConf.create(older), tmp_path / "config.yaml")
    assert {key: load(tmp_path / "config.yaml").dataset[key] for key in cut} == cut


def test_settings_by_ratio_are_those_of_the_usual_one_where_none_is_set() -> None:
    for ratio, value in ((None, 0.4), (10, 0.2)):
        table = "${by_imbalance_ratio:{100:0.4,10:0.2}}"
        assert OmegaConf.create({"dataset": {"imbalance_ratio": ratio}, "value": table}).value == value


def test_a_limit_of_one_point_nought_leaves_every_batch_in_and_one_of_one_does_not() -> None:
    limits = {f"limit_{split}_batches": value for split, value in (("train", 1.0), ("val", 1), ("test", 0.5))}
    found = partial_settings(trainer_config({**limits, "max_time": "00:00:01:00", "overfit_batches": 0.0}))
    assert found == {"trainer.limit_val_batches": 1, "trainer.limit_test_batches": 0.5}


def test_keys_of_ones_own_backbone_all_count() -> None:
    """What ltexp's own networks did without in the first records may be any value of another's."""
    node = {"_target_": "mine.Net", "width": 16}
    assert backbone_identity(node) == node
    assert backbone_identity(node | {"_target_": "ltexp.models.resnet.ResNet"}).keys() == {"_target_"}
