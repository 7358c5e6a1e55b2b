"""Processor time of a training step of the methods since 2021 against one of `ce`, as `steps` measures it.

All on ResNet-32 and batches of 128, whatever their papers have; of `los` the step is stage 2's.
"""

from benchmarks.steps import compare, configured

METHODS = (
    *(
        "ce",
        "bsce",
        "supcon",
        "bcl",
        "paco",
        "gpaco",
        "proco",
        "sade",
        "ncl",
        "glmc",
        "cutmix",
        "bsce_cmo",
        "bsce_cuda",
    ),
    *("weight_balancing", "ldam_drw_sam", "imbsam"),
)
OWN_NETWORK = ("ncl",)  # three networks are the method
FURTHER = {
    "bsce_cmo": ("stage1.mixing.plain_first=0", "stage1.mixing.plain_last=0"),  # it mixes from the start
    "bsce_cuda": ("stage1.augmentation.images=1",),  # its trials are of an epoch, and not of a step
}


def main() -> None:
    """Prints the milliseconds of a step and their ratio to those of `ce`."""
    kinds = {}
    for name in METHODS:
        network = () if name in OWN_NETWORK else ("backbone=resnet32",)
        kinds[name] = configured(name, "stage1", *network, *FURTHER.get(name, ())), "stage1"
    kinds["los"] = configured("los", "stage2", "backbone=resnet32"), "stage2"
    compare(kinds)


if __name__ == "__main__":
    main()
