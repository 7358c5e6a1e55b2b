"""`ltexp data prepare`: official archives, or arrays prepared elsewhere, become `<root>/<dataset>/`."""

import os
import shutil
import socket
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ltexp.data.images.arrays import ARRAYS, FILES, array_problems, inspect_folder
from ltexp.data.images.official import OFFICIAL, OfficialSet, find_folder, read_archive, read_folder
from ltexp.data.images.packed import PACKED, find_packed, read_svhn
from ltexp.data.text.articles import FILES as ARTICLE_FILES
from ltexp.data.text.articles import CsvArticles
from ltexp.data.types import SourceArrays
from ltexp.errors import DataError

DOWNLOAD_TIMEOUT = 30.0  # seconds without an answer


def prepare(dataset: str, root: Path, source: Path | None = None, download: bool | None = None) -> tuple[Path, str]:
    """Makes the prepared form of a dataset, in the order in which it was published.

    Args:
        dataset: `cifar10` or `cifar100`.
        root: the data root.
        source: a published archive, the folder of one unpacked, a folder of prepared arrays, or a folder that holds
            one of these; None: whatever of these the data root holds.
        download: None: only if there is no source; True: anew; False: never.

    Returns:
        (folder, where it came from).

    Raises:
        DataError: if there is no usable source, or it cannot be written. What was there before stays as it was.
    """
    official = OFFICIAL[dataset]
    target = root / dataset
    if source is not None:
        return _convert(_find(source, dataset, official), dataset, official, target)
    if not download:
        if inspect_folder(target)[0] is not None:
            return target, "already prepared"
        found = _find_official(root, official) or _find_official(target, official)
        if found is not None:
            return _convert(found, dataset, official, target)
    if download is False:
        looked_for = ", ".join((official.python.archive, official.binary.archive, official.python.folder))
        raise DataError(f"nothing to prepare {dataset} from: found none of {looked_for} in {root}; give source=PATH")
    with temporary_folder(root, dataset) as folder:
        return _convert(_download(official, folder, root), dataset, official, target)


def prepare_packed(dataset: str, root: Path, source: Path | None, download: bool | None) -> tuple[Path, str]:
    """Makes the prepared form of a set of `PACKED`.

    Args:
        dataset: `svhn`, `cinic10` or `tiny_imagenet`.
        root: the data root.
        source: its archive or folder, or a folder that holds one of these; None: the data root.
        download: as for `prepare`; only torchvision's sets have one.

    Returns:
        (folder, where it came from).

    Raises:
        DataError: if there is no usable source, or it cannot be written. What was there before stays as it was.
    """
    official, target = PACKED[dataset], root / dataset
    if source is None and not download and inspect_folder(target)[0] is not None:
        return target, "already prepared"
    found = None if download else find_packed(source or root, official)
    try:
        if found is not None:
            write_arrays(official.read(found, official), target)
            return target, f"from {found}"
        if dataset == "svhn" and source is None and download is not False:
            with temporary_folder(root, dataset) as folder, _patience():
                write_arrays(read_svhn(folder, official, download=True), target)
            return target, f"from {official.site}"
    except (OSError, tarfile.TarError, EOFError, zipfile.BadZipFile) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise DataError(f"could not prepare {dataset} from {found or official.site}: {reason}") from None
    looked_for = ", ".join((*official.archives, f"a folder with {' and '.join(official.holds)}"))
    raise DataError(
        f"nothing to prepare {dataset} from: {source or root} holds no {looked_for}; get it from {official.site} and "
        "give source=PATH"
    )


def prepare_articles(dataset: str, articles: CsvArticles, root: Path, source: Path | None) -> tuple[Path, str]:
    """Puts a text dataset's CSV files, once every line of them is found in order, into `<root>/<dataset>/`.

    Args:
        dataset: `ag_news`.
        articles: what its files must be like.
        root: the data root.
        source: folder of the two files, a folder that holds such a folder or the published archive, or that archive;
            None: the data root.

    Returns:
        (folder, where it came from).

    Raises:
        DataError: if there is no usable source, or it cannot be written. What was there before stays as it was.
    """
    target = root / dataset
    if source is None and articles.read(target)[0] is not None:
        return target, "already prepared"
    found = _find_articles(source or root, dataset)
    if found is None:
        looked_for = f"{' and '.join(ARTICLE_FILES)}, a folder {dataset} with them, or {dataset}_csv.tgz"
        raise DataError(f"nothing to prepare {dataset} from: {source or root} holds no {looked_for}; give source=PATH")
    try:
        with temporary_folder(root, dataset) as folder:
            if found.is_dir():
                for name in ARTICLE_FILES:
                    shutil.copyfile(found / name, folder / name)
            else:
                _unpack_articles(found, folder)
            if problems := articles.read(folder)[1]:
                raise DataError(f"{found}: {'; '.join(problems)}")
            _move(folder, target, ARTICLE_FILES)
    except (OSError, tarfile.TarError, EOFError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"could not prepare {dataset} from {found}: {reason}") from None
    return target, f"from {found}"


def _find_articles(place: Path, dataset: str) -> Path | None:
    if place.is_file():
        return place
    folders = [place, place / dataset, place / f"{dataset}_csv"]
    held = [folder for folder in folders if all((folder / name).is_file() for name in ARTICLE_FILES)]
    archives = [path for path in (place / f"{dataset}_csv.tgz", place / f"{dataset}_csv.tar.gz") if path.is_file()]
    return next(iter([*held, *archives]), None)


def _unpack_articles(archive: Path, folder: Path) -> None:
    """Reads the two files out of the archive by their names; nothing else in it is looked at."""
    with tarfile.open(archive) as packed:
        for member in packed:
            name = Path(member.name).name
            content = packed.extractfile(member) if name in ARTICLE_FILES and member.isfile() else None
            if content is not None:
                with (folder / name).open("wb") as file:
                    shutil.copyfileobj(content, file)


def write_arrays(arrays: SourceArrays, target: Path) -> None:
    """Writes the prepared form to `target`, whole or not at all; other files there stay.

    Raises:
        DataError: if the arrays are not of the prepared form, or the disk is full or read-only.
    """
    problems = array_problems({name: getattr(arrays, name) for name in (*ARRAYS, "class_names")})
    if problems:
        raise DataError(f"not of the prepared form: {'; '.join(problems)}")
    try:
        with temporary_folder(target.parent, target.name) as folder:
            for name in ARRAYS:
                with (folder / f"{name}.npy").open("wb") as file:
                    np.save(file, np.ascontiguousarray(getattr(arrays, name)), allow_pickle=False)
                    os.fsync(file.fileno())
            (folder / "classes.txt").write_text("\n".join(arrays.class_names) + "\n", encoding="utf-8")
            _move(folder, target, FILES)
    except OSError as error:
        raise DataError(f"could not write {target}: {error.strerror or error}") from error


def _move(folder: Path, target: Path, files: Sequence[str]) -> None:
    try:
        os.replace(folder, target)
    except OSError:
        if not target.is_dir():
            raise
        # a folder with something in it cannot be replaced in one step, and what else the user keeps there is theirs
        for name in files:
            os.replace(folder / name, target / name)


@contextmanager
def temporary_folder(parent: Path, name: str) -> Iterator[Path]:
    try:
        parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=parent))
    except OSError as error:
        raise DataError(f"could not write to {parent}: {error.strerror or error}") from error
    umask = os.umask(0)
    os.umask(umask)
    folder.chmod(0o777 & ~umask)  # mkdtemp's folders are private, but a data root is often shared
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _find_official(place: Path, official: OfficialSet) -> Path | None:
    """The published archive, or the folder of one unpacked, that `place` is or holds."""
    if place.is_file():
        return place
    forms = (official.python, official.binary)
    folders = [place, *(place / form.folder for form in forms)]
    archives = [place / form.archive for form in forms]
    unpacked = [folder for folder in folders if find_folder(folder, official)]
    return next((path for path in (*unpacked, *archives) if path.exists()), None)


def _find(source: Path, dataset: str, official: OfficialSet) -> Path:
    if not source.exists():
        raise DataError(f"source={source} does not exist")
    prepared = [path for path in (source, source / dataset) if any((path / f"{name}.npy").is_file() for name in ARRAYS)]
    found = _find_official(source, official) or next(iter(prepared), None)
    if found is None:
        known = f"{official.python.archive}, {official.binary.archive}, one of them unpacked, or {', '.join(FILES)}"
        raise DataError(f"source={source} holds nothing to prepare {dataset} from: looked for {known}")
    return found


def _convert(found: Path, dataset: str, official: OfficialSet, target: Path) -> tuple[Path, str]:
    try:
        if found.is_file():
            arrays: SourceArrays | None = read_archive(found, official)
        elif form := find_folder(found, official):
            arrays = read_folder(found, official, form)
        else:
            arrays, problems = inspect_folder(found)
            if problems:
                raise DataError(f"{found}: {'; '.join(problems)}")
    except OSError as error:
        raise DataError(f"cannot read {found}: {error.strerror or error}") from None
    assert arrays is not None
    if len(arrays.class_names) != official.classes:
        raise DataError(f"{found} holds {len(arrays.class_names)} classes, not the {official.classes} of {dataset}")
    write_arrays(arrays, target)
    return target, f"from {found}"


def _download(official: OfficialSet, folder: Path, root: Path) -> Path:
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import download_url

    form = official.python
    url = CIFAR10.url.rpartition("/")[0] + "/" + form.archive
    try:
        with _patience():
            download_url(url, str(folder), form.archive, form.md5)
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"could not download {url} ({reason}): fetch it elsewhere, put it in {root} and run the same command again"
        ) from None
    return folder / form.archive


@contextmanager
def _patience() -> Iterator[None]:
    """Within the block a download that is not answered ends."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
