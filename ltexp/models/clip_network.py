"""The image tower of a CLIP of open_clip as a backbone, and its text tower for class names."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ltexp.config.require import is_whole, require
from ltexp.errors import CheckpointError, ConfigError
from ltexp.models.checkpoint import load_part
from ltexp.models.class_text import ClassText
from ltexp.models.foreign import state_below_prefix
from ltexp.models.timm_network import TimmNetwork, read_weights
from ltexp.models.tuning import Tuning
from ltexp.names import nearest

TO_TIMM = (  # what stands in open_clip's names, and in timm's, in this order
    *(("conv1", "patch_embed.proj"), ("positional_embedding", "pos_embed"), ("class_embedding", "cls_token")),
    *(("transformer.resblocks.", "blocks."), ("ln_pre", "norm_pre"), ("ln_post", "norm"), ("ln_", "norm")),
    *(("in_proj_", "qkv."), ("out_proj", "proj"), ("mlp.c_fc", "mlp.fc1"), ("mlp.c_proj", "mlp.fc2")),
)
OF_IMAGES = {"image_size", "layers", "width", "patch_size", "head_width", "mlp_ratio"}
OF_TEXT = {"context_length", "vocab_size", "width", "heads", "layers"}


class ClipNetwork(TimmNetwork):
    """The vision transformer of a CLIP, built of timm's parts: a `TimmNetwork` with every tuning.

    Its features are those after the last norm, before the projection to where image and text meet (D = 768 of
    ViT-B/16; LIFT, Shi et al., ICML 2024, its code). The text tower is read from the file when class names are asked
    for, and is no part of the network.

    Args:
        name: open_clip's, such as "ViT-B-16"; with "-quickgelu" for weights that were trained so, as OpenAI's.
        weights: file with a `state_dict` in open_clip's names, behind any prefix, of torch.save or safetensors. None: a
            random start, without text.
        image_size: see `TimmNetwork`; so are `tuning` and `gradient_checkpointing`.
        options: changes of open_clip's config of that name, such as `{vision_cfg: {layers: 2}}`.

    Raises:
        ConfigError: without open_clip, or for a name or config that is not of two plain transformers.
        CheckpointError: for weights that are not there or another network's.
    """

    reads_text: ClassVar[bool] = True

    def __init__(
        self,
        name: str,
        weights: str | None = None,
        image_size: int | None = None,
        options: Mapping[str, Any] | None = None,
        tuning: Tuning | None = None,
        gradient_checkpointing: bool = False,
    ) -> None:
        self._config, self._weights = _config(name, options or {}), weights
        super().__init__(name, weights, image_size, options, tuning, gradient_checkpointing)

    def _build(self, name: str, image_size: int | None, options: dict[str, Any]) -> tuple[nn.Module, int]:
        from timm.models.vision_transformer import VisionTransformer

        given = self._config["vision_cfg"]
        require(
            image_size is None or is_whole(image_size, 1),
            "image_size",
            image_size,
            "a whole number of 1 or more, or null",
        )
        side, patch = image_size or given.get("image_size", 224), given.get("patch_size", 16)
        require(side % patch == 0, "image_size", side, f"a multiple of the network's patches of {patch} pixels")
        width = given.get("width", 768)
        trunk = VisionTransformer(
            img_size=side,
            patch_size=patch,
            num_classes=0,
            embed_dim=width,
            depth=given.get("layers", 12),
            num_heads=width // given.get("head_width", 64),
            mlp_ratio=given.get("mlp_ratio", 4.0),
            pre_norm=True,
            norm_layer=partial(nn.LayerNorm, eps=1e-5),
            act_layer="quick_gelu" if self._config.get("quick_gelu") else "gelu",
        )
        return trunk, side

    def _state_in(self, content: Any, what: str) -> dict[str, Tensor]:
        names = {
            "visual.conv1.weight",
            "visual.class_embedding",
            "visual.ln_post.weight",
            "visual.positional_embedding",
        }
        state = state_below_prefix(content, names, what)
        own = {name.removeprefix("visual."): value for name, value in state.items() if name.startswith("visual.")}
        own.pop("proj", None)
        converted = {}
        for name, value in own.items():
            for theirs, timms in TO_TIMM:
                name = name.replace(theirs, timms)
            wanted = {"cls_token": 3, "pos_embed": 3}.get(name, value.ndim)
            converted[name] = value.reshape((1,) * (wanted - value.ndim) + tuple(value.shape))
        return converted

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """Refuses a prompt of more tokens than the text tower reads."""
        most, tokenizer = self._context_length, self._tokenizer()
        for prompt in prompts:
            tokens = len(tokenizer.encode(prompt)) + 2  # of a start and of an end
            if tokens > most:
                shown = prompt if len(prompt) < 60 else f"{prompt[:57]}..."
                raise ConfigError(
                    f"'{shown}' has {tokens} tokens, and the text tower reads {most}: shorten template or name"
                )

    @torch.no_grad()
    def class_text(self, prompts: Sequence[Sequence[str]]) -> ClassText:
        """The text features of each class, the mean over its prompts, on the CPU.

        Raises:
            CheckpointError: for weights without this text tower.
        """
        from open_clip.transformer import QuickGELU, TextTransformer

        assert self._weights is not None
        what = f"backbone.weights '{self._weights}'"
        settings, act = self._config["text_cfg"], QuickGELU if self._config.get("quick_gelu") else nn.GELU
        tower = TextTransformer(**settings, output_dim=self._config["embed_dim"], act_layer=act).eval()
        named = {*tower.state_dict(), "visual.proj", "logit_scale"}
        state = state_below_prefix(read_weights(self._weights), named, what)
        if missing := sorted(named - state.keys()):
            raise CheckpointError(f"{what} has no text tower of this kind: it lacks {missing[0]}")
        load_part(tower, {name: state[name] for name in tower.state_dict()}, f"{what}, text")
        found, tokenizer = [], self._tokenizer()
        for own in prompts:
            tokens = tokenizer(list(own), context_length=self._context_length)
            found.append(F.normalize(F.normalize(tower(tokens)).mean(0), dim=0))
        return ClassText(torch.stack(found), state["visual.proj"].float(), math.exp(float(state["logit_scale"])))

    @property
    def _context_length(self) -> int:
        return int(self._config["text_cfg"].get("context_length", 77))

    def _tokenizer(self) -> Any:
        from open_clip.tokenizer import SimpleTokenizer

        return SimpleTokenizer(context_length=self._context_length)


def _config(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """open_clip's config of that name with `options` in it."""
    try:
        import open_clip
    except ImportError:
        raise ConfigError('it needs open_clip, which is not installed: pip install "ltexp[vit]"') from None
    if name not in open_clip.list_models():
        near = nearest(name, open_clip.list_models())
        require(False, "name", name, "a network of open_clip" + (f"; did you mean '{near}'?" if near else ""))
    config: dict[str, Any] = {**open_clip.get_model_config(name)}
    for key, value in options.items():
        known = key in ("embed_dim", "quick_gelu", "vision_cfg", "text_cfg")
        require(known, f"options.{key}", value, "embed_dim, quick_gelu, vision_cfg or text_cfg")
        config[key] = {**config[key], **value} if key.endswith("_cfg") else value
    for key, plain in (("vision_cfg", OF_IMAGES), ("text_cfg", OF_TEXT)):
        further = sorted(config[key].keys() - plain) or [
            own for own in ("layers",) if not is_whole(config[key][own], 1)
        ]
        if further:
            raise ConfigError(
                f"open_clip's {name} is not of two plain transformers ({key} has {further[0]}): choose one such as "
                "ViT-B-16, or backbone=timm for its image tower",
                "name",
            )
    return config
