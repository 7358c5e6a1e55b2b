"""Batches of image files, decoded by worker processes ahead of the training."""

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ltexp.config.require import require
from ltexp.data.files.augmentation import CentreCrop, FileAugmentation
from ltexp.data.files.cache import ImageCache, open_cache
from ltexp.data.files.decode import Crop, read_crop
from ltexp.data.files.split import FileSplit
from ltexp.data.files.workers import start_workers
from ltexp.data.loader import Loader, Recipe
from ltexp.data.normalize import Normalize
from ltexp.errors import DataError, TrainingError
from ltexp.processes.cores import usable_cores

MOST_WORKERS = 8  # of a process, where the number is not given


class Request(NamedTuple):
    """What a worker makes one batch of.

    Attributes:
        rows: int64 (b,), of the split.
        draws: of each view, (b, ...) each, what its crop reads.
    """

    rows: npt.NDArray[np.int64]
    draws: list[dict[str, npt.NDArray[Any]]]


class Decoder(Dataset[Tensor | str]):
    """Answers a request with uint8 (V * b, S, S, 3), view after view, or with the text of what went wrong.

    An error as a value keeps its one line: torch would wrap one that is raised in the worker's traceback.
    """

    def __init__(
        self, split: FileSplit, size: int, crops: Sequence[CentreCrop | FileAugmentation], cache: ImageCache | None
    ) -> None:
        self.paths, self.root, self.size, self.crops, self.cache = split.paths, split.root, size, crops, cache
        self.reading = split.reading
        self.places = cache.places(split) if cache is not None else None

    def __getitem__(self, request: Request) -> Tensor | str:
        images = np.empty((len(self.crops), len(request.rows), self.size, self.size, 3), np.uint8)
        try:
            for view, draws in enumerate(request.draws):
                for position, row in enumerate(request.rows):
                    draw = {name: drawn[position] for name, drawn in draws.items()}
                    images[view, position] = self.read(int(row), draw, self.crops[view])
        except DataError as error:
            return str(error)
        return torch.from_numpy(images.reshape(-1, *images.shape[2:]))

    def read(self, row: int, draw: dict[str, Any], crop: CentreCrop | FileAugmentation) -> npt.NDArray[np.uint8]:
        """One image, cropped."""
        path, content = os.path.join(self.root, os.fsdecode(self.paths[row])), None
        if self.cache is not None and self.places is not None:
            path, content = self.cache.read(int(self.places[row]))
        exact = isinstance(crop, CentreCrop)  # a random crop need not be

        def cut(width: int, height: int) -> Crop:
            return crop.crop(width, height, draw)

        return read_crop(path, content, self.size, cut, exact, self.reading)


class Requests:
    """The requests of the loader's epoch, drawn up each time that they are iterated over."""

    def __init__(self, loader: "FileLoader") -> None:
        self._loader = loader

    def __iter__(self) -> Iterator[Request]:
        return self._loader.requests()


class FileLoader(Loader[FileSplit]):
    """Batches of image files: workers decode, crop and resize, the device normalises and jitters.

    Workers make whole batches ahead of their use, and the next one is on its way to the device while a batch is used.
    Those of a loader with a sampler, which is of training, stay between epochs. What a worker draws is sent with the
    request, so it does not matter how many there are. Without augmentation an image's short side becomes `resize` and
    the square of `image_size` in its middle is taken, as the field evaluates.

    Args:
        split: the files.
        channel_mean, channel_std: those of R, G and B, for images scaled to [0, 1].
        image_size: side of the images that the network reads.
        resize: the length of the short side without augmentation.
        workers: the workers of each process; 0: this process decodes itself; None: one for each core, at most 8.
        cache: the folder of `ltexp data cache`, read in place of the files; None: the files.
        settings: those of `Loader`.

    Raises:
        ConfigError: for an augmentation of images in memory, or sizes that cannot be.
        DataError: for a cache that is not of these files and this size; in an iteration, for a file that is missing or
            damaged.
    """

    samples = "image files"

    def __init__(
        self,
        split: FileSplit,
        *,
        channel_mean: Sequence[float],
        channel_std: Sequence[float],
        image_size: int = 224,
        resize: int = 256,
        workers: int | None = None,
        cache: str | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(split, **settings)
        require(1 <= image_size <= resize, "image_size", image_size, f"a whole number from 1 to resize={resize}")
        views = self.augmentation.views
        crops = [view if isinstance(view, FileAugmentation) else CentreCrop(resize, image_size) for view in views]
        self._crop_draws = [getattr(view, "crop_draws", ()) for view in views]
        self._decoder = Decoder(split, image_size, crops, open_cache(cache, resize) if cache else None)
        self._normalize = Normalize(channel_mean, channel_std, image_size, self.device)
        self._workers = default_workers() if workers is None else workers
        self._stay = settings.get("sampler") is not None
        self._pool: DataLoader[Tensor | str] | None = None
        self._decoded: Iterator[Tensor] = iter(())
        self._views: tuple[Tensor, ...] = ()
        self._copies = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def recipes(self) -> Iterator[Recipe]:
        self._decoded = self._ahead()
        try:
            yield from super().recipes()
        finally:
            self._decoded = iter(())
            if not self._stay:
                self.close()

    def close(self) -> None:
        super().close()
        self._pool = None  # its workers end with it

    def requests(self) -> Iterator[Request]:
        """What this process needs for the steps of the epoch."""
        order, draws = self._plan()
        rows = order.cpu().numpy()
        names = zip(draws, self._crop_draws, strict=True)
        drawn = [{name: view[name].cpu().numpy() for name in read} for view, read in names]
        for step in range(len(self)):
            share = self._share(step)[0]
            yield Request(rows[share], [{name: values[share] for name, values in view.items()} for view in drawn])

    def _inputs(self, index: Tensor, draws: dict[str, Tensor], view: int) -> Tensor:
        if view == 0:
            self._views = torch.split(next(self._decoded), len(index))
        return self._normalize(self.augmentation.views[view](self._views[view], draws))

    def _ahead(self) -> Iterator[Tensor]:
        """The epoch's decoded batches on the device, each asked for before the one before it is used."""
        current = None
        for images in self._made():
            following = self._moved(images)
            if current is not None:
                yield self._arrived(*current)
            current = following
        assert current is not None
        yield self._arrived(*current)

    def _made(self) -> Iterator[Tensor]:
        """The epoch's decoded batches, from the workers."""
        try:
            if self._pool is None:
                self._pool, batches = start_workers(self._make_pool)
            else:
                batches = iter(self._pool)
            for made in batches:
                if isinstance(made, str):
                    raise DataError(made)
                yield made
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise TrainingError(
                f"a process that decodes images died ({str(error).splitlines()[0]}): "
                "free some memory, shared memory (/dev/shm) included, or lower dataset.workers"
            ) from None

    def _make_pool(self, begin: Callable[[int], None]) -> DataLoader[Tensor | str]:
        workers = self._workers if len(self) > 1 else 0  # one batch is made no sooner by another process
        return DataLoader(
            self._decoder,
            sampler=Requests(self),  # no numbers but whole requests
            batch_size=None,
            num_workers=workers,
            persistent_workers=self._stay and workers > 0,
            worker_init_fn=begin,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # or it would draw from the global one
        )

    def _moved(self, images: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
        """(images on their way to the device, the event of their arrival): the copy does not wait for the training."""
        if self._copies is None:
            return images.to(self.device), None
        with torch.cuda.stream(self._copies):
            return images.to(self.device, non_blocking=True), self._copies.record_event()

    def _arrived(self, images: Tensor, arrival: torch.cuda.Event | None) -> Tensor:
        if arrival is not None:
            stream = torch.cuda.current_stream(self.device)
            stream.wait_event(arrival)
            images.record_stream(stream)
        return images


def default_workers() -> int:
    """As many as this process has cores beside the other processes of the run on this machine, from 1 to 8."""
    return max(1, min(MOST_WORKERS, usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))
