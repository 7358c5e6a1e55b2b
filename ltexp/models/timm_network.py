"""Any network of timm as a backbone: whole, or frozen and tuned by little (`ltexp.models.tuning`)."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ltexp.config.require import is_whole, require
from ltexp.errors import CheckpointError, ConfigError
from ltexp.models.adapters import LowRank
from ltexp.models.backbone import Backbone
from ltexp.models.checkpoint import load_part, require_fit
from ltexp.models.foreign import read_tensors, state_below_prefix
from ltexp.models.tuning import Tuning, blocks_of
from ltexp.names import nearest


class TimmNetwork(Backbone):
    """A network of timm (Wightman, "PyTorch Image Models") without its classifier, for images of one size.

    Smaller images are enlarged to that size on the device, bilinearly; larger ones are refused.

    With a tuning the network is frozen, in eval mode, but for what the tuning lets learn; a checkpoint then holds that
    alone, and the rest comes from the file `weights` again.

    Args:
        name: timm's, such as "vit_base_patch16_224"; a tag behind a dot says which normalisation the network expects.
        weights: file with a `state_dict` in timm's names, behind any prefix, of torch.save or safetensors; its
            classifier is left out, and a position embedding for another size is interpolated. None: a random start.
        image_size: side of what the network reads, in pixels. Default None: what timm has it for.
        options: further keywords of timm's function of that name, such as `depth`.
        tuning: None: the whole network learns, as the stage says.
        gradient_checkpointing: whether activations within blocks are computed again in the backward pass instead of
            kept: less memory, about a third more time. Default false.

    Attributes:
        notes: what a run says of the network before it uses it, one line each.

    Raises:
        ConfigError: without timm, or for a name, size or option that timm does not know.
        CheckpointError: for weights that are not there or another network's.
    """

    builds_without_data: ClassVar[bool] = True

    def __init__(
        self,
        name: str,
        weights: str | None = None,
        image_size: int | None = None,
        options: Mapping[str, Any] | None = None,
        tuning: Tuning | None = None,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.trunk, self.image_size = self._build(name, image_size, dict(options or {}))
        self.notes: list[str] = []
        network = cast(Any, self.trunk)
        self.feature_dim = int(getattr(network, "head_hidden_size", None) or network.num_features)
        self.map_channels = [int(network.num_features)]
        if weights is not None:
            self._start_from(weights, name)
        self.adapters: nn.Module = nn.ModuleList()
        self.tuned = tuning is not None
        self._learning = set[str]()
        if tuning is not None:
            self.file = FileOfTrunk(self.trunk)
            self.adapters, self._learning = tuning.attach(self.trunk), tuning.learning(self.trunk)
        if gradient_checkpointing:
            try:
                network.set_grad_checkpointing(True)
            except (AssertionError, AttributeError):
                require(False, "gradient_checkpointing", True, f"false: timm has none for {name}")

    def _build(self, name: str, image_size: int | None, options: dict[str, Any]) -> tuple[nn.Module, int]:
        """(the network without classifier, the side of its images)."""
        return _network(name, image_size, options)

    def _state_in(self, content: Any, what: str) -> dict[str, Tensor]:
        """Of what the file of weights holds the network's state, by timm's names."""
        return state_below_prefix(content, self.trunk.state_dict().keys(), what)

    def _start_from(self, weights: str, name: str) -> None:
        what = f"backbone.weights '{weights}'"
        own = self.trunk.state_dict()
        state = self._state_in(read_weights(weights), what)
        heads = getattr(self.trunk, "pretrained_cfg", {}).get("classifier") or ()
        heads = (heads,) if isinstance(heads, str) else tuple(heads)
        left_out = tuple(f"{head}." for head in heads)
        state = {key: value for key, value in state.items() if key in own or not key.startswith(left_out)}
        self._fit_positions(state)
        if self.is_meta:
            require_fit(self.trunk, state, f"{what} for {name}")
        else:
            load_part(self.trunk, state, f"{what} for {name}")

    def _fit_positions(self, state: dict[str, Any]) -> None:
        """Interpolates the position embedding of a vision transformer in `state` to the network's own grid."""
        from timm.layers.pos_embed import resample_abs_pos_embed

        network, given = cast(Any, self.trunk), state.get("pos_embed")
        own = getattr(network, "pos_embed", None)
        if given is None or own is None or given.shape == own.shape or given.shape[-1] != own.shape[-1]:
            return
        prefix = 0 if getattr(network, "no_embed_class", False) else int(network.num_prefix_tokens)
        side = round((given.shape[1] - prefix) ** 0.5)
        if side**2 != given.shape[1] - prefix:
            return  # no square of patches, so another network's: whoever loads it says so
        grid = tuple(network.patch_embed.grid_size)
        state["pos_embed"] = resample_abs_pos_embed(given, list(grid), num_prefix_tokens=prefix)
        self.notes.append(
            f"backbone.weights has positions for {side}x{side} patches, interpolated to {grid[0]}x{grid[1]}: images of "
            f"{self.image_size} pixels"
        )

    @property
    def is_meta(self) -> bool:
        """Whether it was built without memory, to look whether it can be."""
        return any(parameter.is_meta for parameter in self.trunk.parameters())

    def forward(self, images: Tensor) -> Tensor:
        """Features (B, D) of images (B, 3, H, W)."""
        return cast(Tensor, self.trunk(self._sized(images)))

    def forward_maps(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Features, and the last map (B, D, h, w); of a transformer, its patches' tokens."""
        network = cast(Any, self.trunk)
        found = network.forward_features(self._sized(images))
        features = network.forward_head(found)
        if found.ndim == 3:
            tokens = found[:, int(getattr(network, "num_prefix_tokens", 0)) :]
            side = round(tokens.shape[1] ** 0.5)
            found = tokens.transpose(1, 2).unflatten(2, (side, side))
        elif found.shape[1] != self.map_channels[0]:  # of networks whose channels come last
            found = found.permute(0, 3, 1, 2)
        return features, [found]

    def _sized(self, images: Tensor) -> Tensor:
        side = self.image_size
        if images.shape[-2:] == (side, side):
            return images
        return F.interpolate(images, (side, side), mode="bilinear", align_corners=False)

    def check(self, inputs: Tensor) -> None:
        """Refuses images larger than what the network reads: they are to be made small when they are read."""
        if (largest := max(inputs.shape[-2:])) > self.image_size:
            raise ConfigError(
                f"images have {largest} pixels and the network reads {self.image_size}: set "
                f"dataset.image_size={self.image_size}, or backbone.image_size={largest}"
            )

    def frozen_parts(self) -> list[nn.Module]:
        """The network, if it is tuned."""
        return [self.trunk] if self.tuned else []

    def frozen_parameters(self) -> list[nn.Parameter]:
        """Those of a tuned network that its tuning does not let learn."""
        if not self.tuned:
            return []
        return [value for name, value in self.trunk.named_parameters() if name not in self._learning]

    def in_file(self) -> set[str]:
        """Of a tuned network all of its state that does not learn."""
        if not self.tuned:
            return set()
        return {f"trunk.{name}" for name in self.trunk.state_dict() if name not in self._learning}

    @classmethod
    def reads_file_again(cls, config: Mapping[str, Any]) -> bool:
        """True with a tuning."""
        return config.get("tuning") is not None

    def merge(self) -> None:
        """Adds what LoRA has learned to the network's own weights, whose answers stay; others stay as they are.

        The state can then no longer be loaded or saved as that of a tuned network.
        """
        learned = [part for part in self.adapters.children() if isinstance(part, LowRank)]
        for part, block in zip(learned, blocks_of(self.trunk) if learned else [], strict=True):
            part.merge(block)
        if learned:
            self.adapters = nn.ModuleList()


class FileOfTrunk(nn.Module):
    """Knows the weights that a tuned network was built on, and refuses the state of one that was built on others.

    Args:
        trunk: with its weights.
    """

    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        state = hashlib.blake2b(digest_size=7)  # fits into an int64
        for name, value in trunk.state_dict().items():
            if not value.is_meta:
                state.update(name.encode())
                state.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        self.value = torch.tensor(int.from_bytes(state.digest()), dtype=torch.int64)

    def get_extra_state(self) -> Tensor:
        """The hash of the weights."""
        return self.value

    def set_extra_state(self, state: Tensor) -> None:
        """Compares the hash in a checkpoint with its own.

        Raises:
            CheckpointError: if they differ.
        """
        if int(state) != int(self.value):
            raise CheckpointError(
                "backbone.weights is not the file that this was trained on: give that file, which holds the frozen part"
            )


def _network(name: str, image_size: int | None, options: dict[str, Any]) -> tuple[nn.Module, int]:
    """(timm's network without classifier, the side of its images)."""
    timm = _timm()
    if not timm.is_model(name.partition(".")[0]):
        near = nearest(name, timm.list_models())
        require(False, "name", name, "a network of timm" + (f"; did you mean '{near}'?" if near else ""))
    require(
        image_size is None or is_whole(image_size, 1), "image_size", image_size, "a whole number of 1 or more, or null"
    )
    try:
        usual = timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        raise ConfigError(f"timm has no '{name}': {str(error).splitlines()[0]}", "name") from None
    side = image_size or int((usual.input_size if usual else (3, 224, 224))[-1])
    sized = {"img_size": side} if usual is not None and usual.fixed_input_size else {}
    try:
        network: nn.Module = timm.create_model(name, pretrained=False, num_classes=0, **sized, **options)
    except (TypeError, AssertionError, ValueError, RuntimeError) as error:
        line = next(iter(str(error).splitlines()), type(error).__name__)
        raise ConfigError(f"timm cannot build {name} with these options and image_size: {line}", "options") from None
    patches = getattr(getattr(network, "patch_embed", None), "patch_size", (1, 1))
    fits = not sized or side % patches[0] == 0
    require(fits, "image_size", side, f"a multiple of the network's patches of {patches[0]} pixels")
    return network, side


def _timm() -> Any:
    try:
        import timm
    except ImportError:
        raise ConfigError('it needs timm, which is not installed: pip install "ltexp[vit]"') from None
    return timm


def read_weights(weights: str) -> Any:
    """What a file of weights holds, of torch.save or safetensors.

    Raises:
        CheckpointError: if it is not there, or damaged.
    """
    path = Path(weights).expanduser()
    if not path.is_file():
        raise CheckpointError(
            f"backbone.weights '{weights}' is no file: give one with the network's state_dict (.pth, .pt, .safetensors)"
        )
    if path.suffix != ".safetensors":
        try:
            return read_tensors(path)
        except CheckpointError as error:
            raise CheckpointError(f"backbone.weights {error}") from None
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"backbone.weights {path} is damaged, or no safetensors file ({error})") from None
