"""A model folder in and out. Finds the family by `model_type`, checks every tensor's name and shape, then reads them.

Weights go straight from the mapped file to their dtype and device; where both already fit, the file's pages *are* the
weights. A file must therefore never be overwritten in place while it is served: write beside it and rename.
"""

import json
import pkgutil
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Protocol

import structlog
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from trefoil_models import families
from trefoil_models.attend import Attend, Rows, Site
from trefoil_models.config_keys import CheckpointError, Keys
from trefoil_models.float8 import read_block_size, whole_blocks
from trefoil_models.heads import Head, Heads, NextToken, asked_heads
from trefoil_models.layers import WideLinear
from trefoil_models.mixture import Router
from trefoil_models.model_folder import ModelFolder, read_labels
from trefoil_models.slices import WHOLE, Share, Slices, narrow_head, rank_config
from trefoil_models.weight_files import Weights, open_weights

log = structlog.get_logger()

STRAY = re.compile(
    r"(^|\.)(attn(\.attention)?\.(masked_)?bias|rotary_emb\.inv_freq|rotary_pos_emb\.inv_freq|position_ids|lm_head\.decoder\.\w+|weight_scale_inv)$"
)
"""Buffers that old files carry and nothing needs, and scales that are read with their weights."""

REPLACED = frozenset({"dtype", "quantization_config"})
"""Keys of a config.json that are not true of weights that were saved again."""
OLD_LEAVES = {"gamma": "weight", "beta": "bias"}
HEAD_MATRIX = "lm_head.weight"
"""What the matrix of the head is called in every model that generates; in files it is the family's `vocab_matrix`."""
VOCAB_HEADS = frozenset({"next", "mask"})

PICKING = frozenset({"chatglm"})
"""Families of several architectures under one `model_type`."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class ModelConfig(Protocol):
    """What every family's Config answers."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def longest(self) -> int:
        """Most positions a sequence may have."""
        ...

    @property
    def length_pivot(self) -> int | None:
        """Prompts longer than this get rotary angles that depend on their length."""
        ...

    @property
    def is_tied(self) -> bool: ...


class Model(Protocol):
    """What the engine and the trainer ask of every family.

    `kind` is decoder, encoder or encoder-decoder. `heads` are those that read rows of one pass; a model that generates
    has `lm_head`, named "next", too. `outside` says which modules bear no base prefix in files, `vocab_matrix` is the
    tensor that may be tied to the input embedding, `aliases` are other names of tensors, and `signs` are tensors by
    which a folder shows a head that its `architectures` do not name.
    """

    kind: ClassVar[str]
    base_prefix: ClassVar[str]
    outside: ClassVar[frozenset[str]]
    vocab_matrix: ClassVar[str]
    transposed: ClassVar[frozenset[str]]
    aliases: ClassVar[Mapping[str, str]]
    signs: ClassVar[Mapping[str, str]]
    config: Any
    lm_head: NextToken

    @property
    def heads(self) -> dict[str, Head]: ...
    @property
    def sites(self) -> tuple[Site, ...]: ...
    def __call__(self, rows: Rows, attend: Attend) -> Tensor: ...
    def train(self, mode: bool = True) -> Any: ...
    def to(self, device: torch.device | str) -> Any: ...
    def get_submodule(self, target: str) -> nn.Module: ...
    def parameters(self) -> Iterator[nn.Parameter]: ...
    def state_dict(self, *, keep_vars: bool) -> dict[str, Any]: ...
    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]: ...


class EncoderDecoder(Model, Protocol):
    """A model whose forward recalls what `encode` let it remember."""

    def encode(self, rows: Rows, here: Attend, there: Attend) -> Tensor:
        """The encoder's output for these rows, [T, M], which the decoder's side remembers."""
        ...


@dataclass(frozen=True, slots=True)
class Blueprint:
    """A folder whose every tensor is there and of the right shape; `load` reads it, or a rank's `slices` of it."""

    folder: ModelFolder
    model: Model
    heads: Heads
    weights: Weights
    sources: dict[str, str]
    slices: Slices | None

    def load(self, *, dtype: torch.dtype, device: torch.device | str = "cpu") -> Model:
        """The model in eval mode, no gradients asked for."""
        shared: dict[int, Tensor] = {}
        for name, hollow in _stored(self.model).items():
            if id(hollow) not in shared:
                tensor = self._tensor(name, hollow.shape).to(device=device, dtype=_dtype(self.model, name, dtype))
                is_parameter = isinstance(hollow, nn.Parameter)
                shared[id(hollow)] = nn.Parameter(tensor, requires_grad=False) if is_parameter else tensor
            _put(self.model, name, shared[id(hollow)])
        self.model.to(device)  # the buffers that no file holds
        self.model.train(False)
        return self.model

    def _tensor(self, name: str, shape: torch.Size) -> Tensor:
        """What of a tensor this rank has; the rest is not looked at."""
        try:
            tensor = self.weights.read(self.sources[name])
        except (OSError, RuntimeError, ValueError) as error:
            raise CheckpointError(f"tensor {self.sources[name]} cannot be read: {error}") from error
        if tensor.dtype == torch.float8_e4m3fn:
            tensor = self._from_float8(tensor, self.sources[name])
        if not tensor.is_floating_point():
            raise CheckpointError(f"tensor {self.sources[name]} has dtype {tensor.dtype}, which is no weight's")
        tensor = tensor.t() if _is_transposed(self.model, name) else tensor
        tensor = (tensor if self.slices is None else self.slices.of(name, tensor, shape)).contiguous()
        if tensor.numel() and tensor.aminmax().min.isnan():  # at the speed of memory, other ways take 20 times as long
            raise CheckpointError(f"tensor {self.sources[name]} is damaged: it holds NaN")
        return tensor

    def _from_float8(self, tensor: Tensor, source: str) -> Tensor:
        """The numbers that a float8 weight and the scales of its blocks stand for."""
        scales = f"{source}_scale_inv"
        if scales not in self.weights.files:
            raise CheckpointError(f"tensor {source} is float8, and {scales} is missing")
        return whole_blocks(tensor, self.weights.read(scales), read_block_size(self.folder.config))


def inspect(folder: Path, share: Share = WHOLE) -> Blueprint:
    """Check a folder without reading its weights; of a rank of several, `load` reads its share.

    Raises CheckpointError naming the file, key or tensor: an unknown family, a key that is not implemented, a missing
    or damaged file, a tensor that is missing or of the wrong shape; and where that many ranks cannot share the model.
    """
    model_folder = ModelFolder.read(folder)
    family = _family(model_folder.config)
    _refuse_unimplemented(model_folder.config)
    config = family.read_config(model_folder.config)
    weights = open_weights(folder)
    heads = _heads(family.Model, model_folder, config, weights.files.keys())
    whole = _hollow(family, config, heads)
    sources = _match(whole, weights)
    if share.count == 1:
        return Blueprint(model_folder, whole, heads, weights, sources, None)
    own = _hollow_of_rank(family, config, heads, share.count)
    return Blueprint(model_folder, own, heads, weights, sources, Slices.between(whole, own, share))


def load(folder: Path, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Model:
    """The model of a folder, in eval mode. Raises CheckpointError as `inspect` does."""
    return inspect(folder).load(dtype=dtype, device=device)


def build(
    config: dict[str, Any],
    *,
    seed: int,
    dtype: torch.dtype = torch.float32,
    std_of: Callable[[str, nn.Parameter], float] | None = None,
) -> Model:
    """A fresh model for a config.json's content: normal weights of `initializer_range`, zero biases, unit norms.

    `std_of` tells the deviation of each matrix by its name instead.
    """
    keys = Keys(config)
    family = _family(keys)
    read = family.read_config(keys)
    names = asked_heads(keys.strings("architectures", []), family.Model.kind)
    is_tied = read.is_tied or not names & VOCAB_HEADS
    model: Model = family.Model(read, Heads(names, is_tied=is_tied, num_labels=len(read_labels(keys))))
    generator = torch.Generator().manual_seed(seed)
    std = keys.number("initializer_range", 0.02)
    for name, parameter in model.named_parameters():
        with torch.no_grad():
            if parameter.dim() > 1:
                parameter.normal_(0.0, std_of(name, parameter) if std_of else std, generator=generator)
            elif name.endswith("bias"):
                parameter.zero_()
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.to(_dtype(model, name, dtype))
    return model


def save(model: Model, folder: Path, config: dict[str, Any]) -> None:
    """Write config.json and model.safetensors under the names the family publishes; each appears whole or not at all.

    `config` is the content of config.json; its dtype is set from the weights, under the name every reader knows, and
    they are whole, however they were read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors, taken = {}, set()
    for name, stored in _stored(model).items():
        if id(stored) in taken:
            continue
        taken.add(id(stored))
        tensor = stored.detach().cpu()
        tensors[_file_name(model, name)] = (tensor.t() if _is_transposed(model, name) else tensor).contiguous()
    dtype = str(next(iter(tensors.values())).dtype).removeprefix("torch.")
    temporary = folder / ".model.safetensors.part"
    save_file(tensors, temporary, metadata={"format": "pt"})
    temporary.replace(folder / "model.safetensors")
    config = {**{key: value for key, value in config.items() if key not in REPLACED}, "torch_dtype": dtype}
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    temporary = folder / ".config.json.part"
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(folder / "config.json")


def known_families() -> list[str]:
    """Every `model_type` that has a file."""
    return sorted(module.name for module in pkgutil.iter_modules(families.__path__))


def _family(keys: Keys) -> Any:
    """The module of the `model_type`, or the one that it picks where it has several architectures."""
    model_type = keys.text("model_type")
    name = model_type.replace("-", "_")
    if name not in known_families():
        raise CheckpointError(
            f"config.json: model_type = {model_type!r} is not supported; known: {', '.join(known_families())}"
        )
    family = import_module(f"trefoil_models.families.{name}")
    return family.pick(keys) if name in PICKING else family


def _heads(model: type[Model], folder: ModelFolder, config: ModelConfig, files: Collection[str]) -> Heads:
    """What config.json promises and, beyond it, what the tensors show."""
    names = asked_heads(folder.architectures, model.kind) | {h for h, name in model.signs.items() if name in files}
    has_matrix = model.vocab_matrix in files
    if not has_matrix and not config.is_tied and names & VOCAB_HEADS:
        raise CheckpointError(
            f"tensor {model.vocab_matrix} is missing, and config.json does not tie it to the embedding"
        )
    return Heads(names, is_tied=not has_matrix, num_labels=len(folder.labels))


def _hollow(family: Any, config: ModelConfig, heads: Heads) -> Model:
    """The modules with shapes but no memory."""
    try:
        with torch.device("meta"):
            model: Model = family.Model(config, heads)
    except RuntimeError as error:  # a size in bytes beyond 64 bits
        raise CheckpointError(f"config.json asks for tensors that no machine holds: {error}".splitlines()[0]) from error
    return model


def _hollow_of_rank(family: Any, config: ModelConfig, heads: Heads, ranks: int) -> Model:
    """The same for a rank's share."""
    name = family.__name__.rpartition(".")[2]
    model = _hollow(family, rank_config(name, config, ranks), heads)
    narrow_head(model, ranks)
    return model


def _refuse_unimplemented(keys: Keys) -> None:
    if "quantization_config" in keys:
        read_block_size(keys)
    for name in ("attn_logit_softcapping", "final_logit_softcapping", "logit_scale", "residual_multiplier"):
        keys.refuse(name, 1.0)
    keys.refuse("use_parallel_residual", False)
    keys.refuse("alibi", False)


def _match(model: Model, weights: Weights) -> dict[str, str]:
    """Parameter name -> name in the files, after every shape was compared."""
    found = _found(model, weights)
    sources: dict[str, str] = {}
    first: dict[int, str] = {}
    for name, parameter in _stored(model).items():
        tied_to = first.setdefault(id(parameter), name)
        if name not in found and tied_to != name:
            sources[name] = sources[tied_to]
            continue
        if name not in found:
            missing = [n for n, _ in model.named_parameters() if n not in found]
            raise CheckpointError(f"tensor {_file_name(model, name)} is missing ({len(missing)} missing in all)")
        wanted = tuple(reversed(parameter.shape)) if _is_transposed(model, name) else tuple(parameter.shape)
        if weights.shape(found[name]) != wanted:
            raise CheckpointError(
                f"tensor {found[name]} has shape {list(weights.shape(found[name]))}, "
                f"config.json asks for {list(wanted)}"
            )
        sources[name] = found[name]
    left = sorted(found[name] for name in found.keys() - sources.keys() if not STRAY.search(name))
    if left:
        log.warning("tensors_not_used", count=len(left), first=left[0])
    return sources


def _stored(model: Model) -> dict[str, Tensor]:
    """What files hold, by name: parameters, tied ones twice, and the buffers that are learned without gradients."""
    return model.state_dict(keep_vars=True)


def _found(model: Model, weights: Weights) -> dict[str, str]:
    """Our name -> name in the files; where a tensor is there twice, not the alias.

    But a head that has its own matrix has the bias that stands beside it.
    """
    found: dict[str, str] = {}
    beside = model.vocab_matrix.removesuffix("weight") + "bias"
    first = {beside} if model.vocab_matrix in weights.files else set()
    for name in sorted(weights.files, key=lambda name: name not in first):
        own = _own_name(model, name)
        if own not in found or (own == name.removeprefix(model.base_prefix) and found[own] not in first):
            found[own] = name
    return found


def _own_name(model: Model, file_name: str) -> str:
    """Without the base prefix and in today's words: files of 2018 call a norm's weight gamma and its bias beta."""
    if file_name == model.vocab_matrix and model.kind != "encoder":
        return HEAD_MATRIX
    name = file_name.removeprefix(model.base_prefix)
    path, _, leaf = name.rpartition(".")
    name = f"{path}.{OLD_LEAVES[leaf]}" if leaf in OLD_LEAVES else name
    return model.aliases.get(name, name)


def _file_name(model: Model, name: str) -> str:
    if name == HEAD_MATRIX:
        return model.vocab_matrix
    return name if name.partition(".")[0] in model.outside else model.base_prefix + name


def _dtype(model: Model, name: str, dtype: torch.dtype) -> torch.dtype:
    module = model.get_submodule(name.rpartition(".")[0])
    is_wide = isinstance(module, Router) or (isinstance(module, WideLinear) and dtype == torch.float16)
    return torch.float32 if is_wide else dtype


def _is_transposed(model: Model, name: str) -> bool:
    return any(name.endswith("." + suffix) for suffix in model.transposed)


def _put(model: Any, name: str, tensor: Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(path), leaf, tensor)
