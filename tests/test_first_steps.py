"""Every choice of every part takes its first step on every kind of data, with the parts that it needs beside it."""

from pathlib import Path

import numpy as np
import pytest
from choices import names
from image_trees import long_tail, write_tree
from runs import run_here
from test_config_layers import PARTS
from texts import write_articles

from ltexp.errors import ConfigError
from ltexp.evaluation.record import read_record

ONE_STEP = ("stage_cache.enabled=false", "trainer.fast_dev_run=true")
KINDS = ("digits", "arrays", "text", "files")
IMAGES = ("digits", "arrays", "files")
GROUPS = (*PARTS, "step")

COSINE = "classifier@{stage}.classifier=cosine"
EXPERTS = ("method=ride_2",)
MODULE = "+module@{stage}.modules.auxiliary=two_way"
READER = "+loss@{stage}.terms.aux.loss=auxiliary_cross_entropy"
SMALL_META = "+stream@{stage}.streams.meta=held_out"
FEATURES = ("{stage}.trainable.backbone=false", "{stage}.batch_norm=frozen")
SEVERAL = (  # versions; see test_every_method.py, and test_file_runs.py for those of files
    *("strong_and_contrastive", "strong_and_two_contrastive"),
    *("rand_and_contrastive_files", "rand_and_two_contrastive_files"),
)
TWO_VIEWS = "augmentation@{stage}.augmentation=two_views"
THREE_SHOTS = ("evaluation.many_shot_above=8", "evaluation.few_shot_below=4", "dataset.validation.fraction=0.2")
EXPERTS_OF_GROUPS = [f"+{{stage}}.teachers.{group}=stage1" for group in ("many", "medium", "few")]
CONTRASTIVE = {  # by loss
    "supervised_contrastive": (TWO_VIEWS, "+module@{stage}.modules.projection=projection_head"),
    "balanced_contrastive": (
        *(TWO_VIEWS, "+module@{stage}.modules.projection=projection_head"),
        "+module@{stage}.modules.prototypes=class_prototypes",
    ),
    "parametric_contrastive": (TWO_VIEWS, "+module@{stage}.modules.contrast=momentum_contrast"),
    "general_parametric_contrastive": (TWO_VIEWS, "+module@{stage}.modules.projection=projection_head"),
    "probabilistic_contrastive": (TWO_VIEWS, "+module@{stage}.modules.projection=projection_head"),
}
# what a choice asks for beside it, as the line that refuses it alone says
COMPANIONS: dict[str, tuple[str, ...]] = {
    **{f"loss {name}": (COSINE,) for name in ("arcface", "cosface", "gaussian_clouded", "key_point", "ldam")},
    **{
        f"loss {name}": ("{stage}.teacher=stage1",)
        for name in ("balanced_distillation", "distillation", "head_distillation", "virtual_examples")
    },
    "loss feature_distillation": ("{stage}.teacher=stage1", "{stage}.trainable.backbone=true"),
    "loss auxiliary_cross_entropy": (MODULE,),
    "loss auxiliary_soft_labels": (MODULE,),
    "loss attention_distillation": (MODULE, READER),
    "loss ride": EXPERTS,
    "loss cumulative": ("+stream@{stage}.streams.reversed=reversed", "++backbone.branches=2"),
    "loss implicit_augmentation": (
        *(SMALL_META, "+module@{stage}.modules.covariance=class_covariance", "step@{stage}.step=meta_covariance"),
        *("{stage}.step.start=0", "{stage}.loss.start=0"),
    ),
    "loss centroid_distance": (
        *("+module@{stage}.modules.memory=centroid_memory", "{stage}.modules.memory.attention=false"),
        *("+loss@{stage}.terms.plain.loss=cross_entropy", "{stage}.trainable.backbone=true"),
    ),
    "loss hybrid_contrastive": (
        *("augmentation@{stage}.augmentation=two_views", "+module@{stage}.modules.projection=projection_head"),
        *(
            "+stream@{stage}.streams.balanced=class_balanced",
            "+augmentation@{stage}.streams.balanced.augmentation=none",
        ),
        "{stage}.trainable.backbone=true",
    ),
    **{f"loss {name}": words for name, words in CONTRASTIVE.items()},
    "loss skill_diverse": ("method=ride_3",),
    "loss nested_collaborative": EXPERTS,
    "loss cumulative_heads": (TWO_VIEWS, "+module@{stage}.modules.balanced=balanced_head"),
    "loss view_agreement": (
        *(TWO_VIEWS, "+module@{stage}.modules.siamese=siamese", "{stage}.trainable.backbone=true"),
        "+loss@{stage}.terms.plain.loss=cross_entropy",
    ),
    "mixing mixup_and_cutmix": (
        *(
            TWO_VIEWS,
            "+stream@{stage}.streams.partner=class_balanced",
            "+module@{stage}.modules.balanced=balanced_head",
        ),
        "loss@{stage}.loss=cumulative_heads",
    ),
    "mixing cmo": ("+stream@{stage}.streams.minority=class_balanced",),
    "classifier max_norm": ("{stage}.init.classifier=stage1",),
    "classifier expert_linear": (*EXPERTS, "loss@{stage}.loss=nested_collaborative"),
    **{f"step {name}": (SMALL_META,) for name in ("meta_sample_weights", "meta_weight_net", "meta_sampler")},
    "step meta_covariance": (
        *(SMALL_META, "+module@{stage}.modules.covariance=class_covariance", "loss@{stage}.loss=implicit_augmentation"),
    ),
    "step major_to_minor": ("{stage}.teacher=stage1", "{stage}.step.start=0"),
    **{f"{group} shot_group": THREE_SHOTS for group in ("loss", "sampler")},
    "loss multiple_experts": (*THREE_SHOTS, *EXPERTS_OF_GROUPS),
    "classifier expert_cosine": EXPERTS,
    "classifier nearest_class_mean": ("{stage}.epochs=0",),
    **{
        f"classifier {name}": ("{stage}.init.classifier=stage1", f"{{stage}}.epochs={epochs}")
        for name, epochs in {
            "distribution_alignment": 1,
            "learnable_weight_scaling": 1,
            "weight_shift": 1,
            "logit_adjusted": 0,
            "tau_normalized": 0,
        }.items()
    },
    "features extracted": FEATURES,
    "features generated": (*FEATURES, "{stage}.features.tail_at_most=3"),
}
FIRST = {
    *("loss ride", "loss skill_diverse", "loss nested_collaborative", "classifier expert_cosine"),
    *("classifier expert_linear", *(f"loss {name}" for name in (*CONTRASTIVE, "cumulative_heads", "view_agreement"))),
    "mixing mixup_and_cutmix",
}  # of a method of one stage
BOTH = ("stage1", "stage2")
# What follows another stage has its first step in stage 2.
SECOND = {
    *(choice for choice, words in COMPANIONS.items() if "{stage}.teacher=stage1" in words),
    "loss multiple_experts",
    *(f"classifier {name}" for name in ("distribution_alignment", "learnable_weight_scaling", "logit_adjusted")),
    "classifier max_norm",
    "classifier nearest_class_mean",
    *("classifier tau_normalized", "classifier weight_shift", "features extracted", "features generated"),
}
# what cannot be on a kind of data: the kinds where it can, and a part of the line elsewhere
ONLY_ON: dict[str, tuple[tuple[str, ...], str]] = {
    "augmentation auto_augment": (("digits", "arrays"), "is for images in memory"),
    "augmentation crop_flip": (("digits", "arrays"), "is for images in memory"),
    "augmentation crop_flip_grey": (("digits", "arrays"), "is for images in memory"),
    "augmentation crop_flip_rotate": (("digits", "arrays"), "is for images in memory"),
    "augmentation random_resized_crop": (("files",), "is for image files"),
    "augmentation two_views": ((), "nothing reads the further views of its images"),  # see test_parts.py
    "loss hybrid_contrastive": (("digits", "arrays"), "is for images in memory"),
    **{f"augmentation {name}": ((), "nothing reads the further views of its images") for name in SEVERAL},
    **{
        f"classifier {name}": ((), "the backbone has no text tower") for name in ("cosine_text", "zero_shot")
    },  # test_clip.py
    "augmentation class_curriculum": (("digits", "arrays"), "is for images in memory"),
    "augmentation contrastive": (("digits", "arrays"), "is for images in memory"),
    "augmentation contrastive_files": (("files",), "is for image files"),
    "augmentation rand_augment": (("digits", "arrays"), "is for images in memory"),
    "augmentation rand_augment_files": (("files",), "is for image files"),
    **{f"loss {name}": (("digits", "arrays"), "is for images in memory") for name in CONTRASTIVE},
    "loss cumulative_heads": (("digits", "arrays"), "is for images in memory"),
    "loss view_agreement": (("digits", "arrays"), "is for images in memory"),
    "mixing mixup_and_cutmix": (("digits", "arrays"), "is for images"),
    "mixing mixup": (IMAGES, "is for images"),
    "mixing manifold_mixup": (IMAGES, "is for images"),
    "mixing cutmix": (IMAGES, "is for images"),
    "mixing cmo": (IMAGES, "is for images"),
    "mixing remix": (IMAGES, "is for images"),
    "loss cumulative": (IMAGES, "unknown key 'backbone.branches'"),
    "step major_to_minor": (IMAGES, "is for images"),
    "mixing rotation": ((), "the last stage learns the dataset's labels"),  # see test_pretext.py
    **{
        f"loss {name}": (IMAGES, "reads feature maps of images")
        for name in ("attention_distillation", "auxiliary_cross_entropy", "auxiliary_soft_labels", "centroid_distance")
    },
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, ...]]:
    """By kind of data the words that choose a small dataset of it, of four to ten classes."""
    root = tmp_path_factory.mktemp("data")
    write_articles(root)
    tree = write_tree(root / "tree", long_tail(6, 12, 2))
    (root / "cifar10").mkdir()
    draws = np.random.default_rng(0)
    for split, count in (("train", 200), ("test", 40)):
        np.save(root / "cifar10" / f"{split}_images.npy", draws.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8))
        np.save(root / "cifar10" / f"{split}_labels.npy", np.arange(count) % 10)
    (root / "cifar10" / "classes.txt").write_text("".join(f"class{label}\n" for label in range(10)))
    tail = ("dataset.max_per_class=20", "dataset.imbalance_ratio=10", f"paths.data={root}")
    return {
        "digits": (),
        "arrays": ("dataset=cifar10_lt", "backbone=resnet8", *tail),
        "text": ("dataset=ag_news_lt", "backbone.dim=16", *tail),
        "files": (
            *("dataset=image_folder", f"dataset.source.folder={tree}", "dataset.workers=0"),
            *("backbone=resnet10", "dataset.image_size=64", "dataset.resize=72"),
        ),
    }


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("group", GROUPS)
def test_every_choice_takes_its_first_step(
    group: str, kind: str, data: dict[str, tuple[str, ...]], tmp_path: Path
) -> None:
    for name in names(group):
        choice = f"{group} {name}"
        stages = ("stage2",) if choice in SECOND else BOTH if kind == "digits" and choice not in FIRST else ("stage1",)
        for stage in stages:
            place = tmp_path / f"{name}_{stage}"
            words = [*data[kind], *ONE_STEP, f"method={'ce' if stage == 'stage1' else 'crt'}"]
            words += [f"{group}@{stage}.{group}={name}", *(w.format(stage=stage) for w in COMPANIONS.get(choice, ()))]
            kinds, why = ONLY_ON.get(choice, (KINDS, ""))
            if kind not in kinds:
                with pytest.raises(ConfigError, match=f"^[^\n]*{why}[^\n]*$"):
                    run_here(place, *words)
                continue
            run_here(place, *words)
            record = read_record(place)
            assert record["status"] == "finished", (stage, choice)
            trained = record["stages"][-1]
            assert trained["epochs"] == 0 or np.isfinite(trained["train_loss"]), (stage, choice)


def test_a_loss_that_reads_nothing_that_is_trained_is_refused(tmp_path: Path) -> None:
    """cRT's second stage trains the classifier, and this loss compares features."""
    words = ("method=crt", "loss@stage2.loss=feature_distillation", "stage2.teacher=stage1", *ONE_STEP)
    with pytest.raises(ConfigError, match=r"^stage2: its loss reads nothing that is trained"):
        run_here(tmp_path / "run", *words)
