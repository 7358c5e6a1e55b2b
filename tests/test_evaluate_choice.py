"""Settings of a classifier without training, chosen on held-out images."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from runs import run_here
from sklearn.metrics import balanced_accuracy_score

from ltexp import evaluate
from ltexp.analysis.choice import predicted
from ltexp.analysis.restored import restore
from ltexp.config import load
from ltexp.errors import ConfigError
from ltexp.evaluation.command_line import parse
from ltexp.run_folder import read_metrics
from ltexp.training.predict import predict

TAUS = (0.0, 0.7, 1.0, 2.0)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("choice") / "run"
    run_here(folder, "method=ce", "stage1.epochs=4", "evaluation.every=2", "dataset.validation.fraction=0.3")
    return folder


def test_what_a_stage_measures_on_held_out_images_has_their_balanced_accuracy(run: Path) -> None:
    config, row = load(run / "config.yaml"), read_metrics(run / "stage1" / "metrics.csv")[-1]
    stage = restore(config, run, "stage1", None)
    held_out = stage.session.data.validation
    assert held_out is not None
    given = predict(stage.model, stage.session.evaluation_loader(held_out), config.trainer.precision)
    truth = 100 * balanced_accuracy_score(given.labels, given.logits.argmax(1))
    assert float(row["validation_balanced"]) == pytest.approx(truth)
    assert float(row["validation_all"]) == pytest.approx(100 * (given.logits.argmax(1) == given.labels).mean())
    assert "test_balanced" not in row


def test_the_best_on_the_held_out_images_is_taken(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    typed = [str(run), "classifier=tau_normalized", f"tau={','.join(map(str, TAUS))}", "accelerator=cpu"]
    assert evaluate.evaluate(*parse(typed)) == 0
    (path,) = (run / "evaluations").glob("stage1_tau_normalized_tau=chosen-*_bias=False.json")
    found = json.loads(path.read_text())
    config, accuracies, tested = load(run / "config.yaml"), [], []
    for tau in TAUS:
        node = {"_target_": "ltexp.models.posthoc.TauNormalized", "tau": tau, "bias": False}
        alone = restore(config, run, "stage1", node)
        held_out = alone.session.data.validation
        assert held_out is not None
        given = predict(alone.model, alone.session.evaluation_loader(held_out), config.trainer.precision)
        accuracies.append(100 * balanced_accuracy_score(given.labels, given.logits.argmax(1)))
        tested.append(alone.measure()["all"])
    best = int(np.argmax(accuracies))
    choice = found["choice"]
    assert [one["tau"] for one in choice["tried"]] == list(TAUS)
    assert [one["balanced"] for one in choice["tried"]] == pytest.approx(accuracies)
    assert choice["chosen"] == {"tau": TAUS[best]}
    assert choice["images"] == len(given.labels)
    assert found["classifier"]["tau"] == TAUS[best]
    assert found["metrics"]["all"] == pytest.approx(tested[best])
    assert f"tau={TAUS[best]}: the best of 4 on {len(given.labels)} held-out images" in capsys.readouterr().out


def test_a_choice_in_half_precision_is_among_the_predictions_themselves(run: Path) -> None:
    """The rows of classes 4 and 9 differ by less than bf16 tells apart; the model's logits are float32."""
    stage = restore(load(run / "config.yaml"), run, "stage1", {"_target_": "ltexp.models.posthoc.TauNormalized"})
    weight = stage.model.classifier.get_buffer("weight")
    weight.fill_(0.0)
    weight[4], weight[9] = 1.0, 1.0001
    features = np.ones((3, weight.shape[1]), dtype=np.float32)
    assert predicted(stage, features, "bf16-mixed").tolist() == [9, 9, 9]


def test_of_another_test_set_the_choice_is_the_same(run: Path, tmp_path: Path) -> None:
    """The run's held-out images lie in memory, the others are files; so with a temperature from the held-out images."""
    config = load(run / "config.yaml")
    test = restore(config, run, "stage1", None).session.data.test
    for split in ("train", "test"):
        for number, (pixels, label) in enumerate(zip(test.images, test.labels, strict=True)):
            (tmp_path / split / str(label)).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / split / str(label) / f"{number}.png")
    other = ["dataset=image_folder", f"dataset.source.folder={tmp_path}", "dataset.workers=0"]
    for words in (["classifier=tau_normalized", "tau=0,2"], ["temperature=true"]):
        before = set((run / "evaluations").glob("*"))
        for typed in (words, [*words, *other]):
            assert evaluate.evaluate(*parse([str(run), *typed, "accelerator=cpu"])) == 0
        one, two = (json.loads(path.read_text()) for path in set((run / "evaluations").glob("*")) - before)
        assert one.get("choice") == two.get("choice")
        assert one.get("temperature") == two.get("temperature")
        assert one["metrics"]["per_class"] == two["metrics"]["per_class"]


def test_without_held_out_images_nothing_is_chosen(run: Path, tmp_path: Path) -> None:
    run_here(tmp_path / "run", "method=ce", "stage1.epochs=1")
    with pytest.raises(ConfigError, match=r"^several values of tau are chosen among on held-out .*fraction=0.1"):
        evaluate.evaluate(*parse([str(tmp_path / "run"), "classifier=tau_normalized", "tau=0,1", "accelerator=cpu"]))


@pytest.mark.parametrize("name", ["expert_cosine", "linear"])
def test_a_classifier_that_is_trained_is_refused(run: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"^this classifier is trained: use ltexp train"):
        evaluate.evaluate(*parse([str(run), f"classifier={name}"]))


def test_values_are_typed_as_in_a_sweep() -> None:
    _, _, nodes = parse(["run", "classifier=tau_normalized", "tau=range(0.5,0.75,0.1)", "bias=false,true"])
    assert [(node["tau"], node["bias"]) for node in nodes] == [(t, b) for t in (0.5, 0.6, 0.7) for b in (False, True)]
    _, _, nodes = parse(["run", "classifier=tau_normalized", "tau=0.5"])
    assert [node["tau"] for node in nodes] == [0.5]
    assert parse(["run"])[2] == []
