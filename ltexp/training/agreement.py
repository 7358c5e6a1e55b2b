"""Whether what a stage keeps beside its weights is the same on all of its processes, as it has to be."""

from torch import Tensor, nn

from ltexp.distributed import active, gather_objects, rank

TOLERANCE = 1e-3  # of a buffer's size: sums in another order are no difference
PLACES = {"model.attached.": "modules.", "model.": "", "objective.": ""}  # as the config has them


def note_unequal_state(stage: str, module: nn.Module) -> None:
    """Says which buffers of a trained stage differ between processes, of which the first one's are kept.

    One process would have learned something else: what is made of each process's own rows has to be gathered.
    """
    if not active():
        return
    own = {name: _summary(value) for name, value in module.named_buffers() if value.numel()}
    told = gather_objects(own)
    unequal = [name for name in own if not _agree([each[name] for each in told])]
    if unequal and rank() == 0:
        names = ", ".join(_place(name) for name in unequal)
        hint = "make them of the rows of all, such as with ltexp.distributed.gather_batch"
        print(f"note: {stage}: {names} differ between processes, and the first one's are kept: {hint}", flush=True)


def _summary(value: Tensor) -> tuple[float, float]:
    exact = value.double()
    return exact.mean().item(), exact.abs().mean().item()


def _agree(summaries: list[tuple[float, float]]) -> bool:
    size = max(size for _, size in summaries)
    columns = zip(*summaries, strict=True)
    return all(max(column) - min(column) <= TOLERANCE * size for column in columns)


def _place(name: str) -> str:
    prefix = next((prefix for prefix in PLACES if name.startswith(prefix)), "")
    return PLACES.get(prefix, "") + name.removeprefix(prefix)
