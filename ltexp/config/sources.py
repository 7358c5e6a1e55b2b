"""Where a module's source file lies, found without running it, and whose it is: ltexp's, a user's or a library's."""

import importlib.util
import sysconfig
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
OURS = ("ltexp", "hydra_plugins")
LIBRARIES = tuple(Path(folder).resolve() for key, folder in sysconfig.get_paths().items() if key.endswith("lib"))


def is_ours(target: str) -> bool:
    """Whether a dotted path is one of ltexp's."""
    return target.partition(".")[0] == PACKAGE.name


def own_file(module: str) -> Path | None:
    """The source file of a module that is a user's own; None of one of ltexp, of Python or of an installed package."""
    if module.partition(".")[0] in OURS:
        return None
    path = module_file(module)
    return path if path is not None and is_own(path) else None


def is_own(path: Path) -> bool:
    """Whether a source file is neither ltexp's nor in Python's library or site-packages."""
    path = path.resolve()
    ours = (PACKAGE.parent / name for name in OURS)
    return not any(path.is_relative_to(folder) for folder in (*ours, *LIBRARIES))


def module_file(module: str) -> Path | None:
    """The source file of a module, found without running it or its packages."""
    root, *parts = module.split(".")
    try:
        spec = importlib.util.find_spec(root) if root else None
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if not parts and spec.origin and spec.origin.endswith(".py"):
        return Path(spec.origin)
    paths = [Path(folder).joinpath(*parts) for folder in spec.submodule_search_locations or ()]
    files = [file for path in paths for file in (path / "__init__.py", path.with_name(f"{path.name}.py"))]
    return next((file for file in files if file.is_file()), None)
