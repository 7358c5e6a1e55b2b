"""Where the Hydra config groups are."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]


def conf_dir() -> Path:
    """The folder of the config groups: `ltexp/conf` where a wheel put it, else `conf` beside the package (a clone)."""
    installed = _PACKAGE / "conf"
    return installed if (installed / "config.yaml").is_file() else _PACKAGE.parent / "conf"
