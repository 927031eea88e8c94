"""The base's weights by the spelling that all names of a thing share, and its expert parameters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from harness.merge.base.checkpoint import Checkpoint
from harness.merge.base.expert_parameters import ExpertParameter, read_expert_parameter
from harness.merge.base.families import PLAIN, Family, family_of
from harness.merge.base.installed import InstalledNames, installed_names
from harness.merge.base.names import (
    ExpertKeys,
    common,
    expert_keys,
    expert_module,
    fused_module,
    fused_parameter,
    parts_of,
)
from harness.merge.base.weight import Weight
from harness.merge.base.weights import FLOAT_DTYPES, Weights, read_weights
from harness.merge.errors import (
    AdapterMismatchError,
    InconsistentCheckpointError,
    UnsupportedBaseError,
)

EMBEDDING_NAMES = ("embed_tokens", "wte", "transformer.wte")
"""What models call the input embedding, in the common spelling."""


class Index:
    """A base, its family and its weights; every lookup is by a path as some release of transformers spells it."""

    def __init__(self, base: Checkpoint, installed: InstalledNames | None = None) -> None:
        """Index a base.

        Args:
            base: the base.
            installed: what an installed transformers calls its tensors in memory, where that is needed.
        """
        self.base = base
        self.installed = installed
        self.family: Family = family_of(base.config)
        self.weights: Weights = read_weights(base)
        self._keys: dict[str, list[str]] = {}
        for key in self.weights.by_key:
            self._keys.setdefault(self.common(self.in_memory(key)), []).append(key)
        self.experts: Mapping[str, ExpertKeys] = expert_keys(
            (spelling, key) for spelling, keys in self._keys.items() for key in keys
        )
        self._expert_parameters: dict[tuple[str, str], ExpertParameter | None] = {}
        self.embedding: Weight | None = self._embedding()
        self.head: Weight | None = self._tied_head()

    def _embedding(self) -> Weight | None:
        """Return the input embedding of the language model, where its name is one of the usual ones."""
        found = [keys for name in EMBEDDING_NAMES if len(keys := self._keys.get(f"{name}.weight", [])) == 1]
        return self.weights[found[0][0]] if found else None

    def _tied_head(self) -> Weight | None:
        """Return the head that a tied base does not store: the embedding's tensor under the name that an untied one
        has.
        """
        if self.embedding is None or not self.base.ties_word_embeddings or "lm_head.weight" in self._keys:
            return None
        prefix = "language_model." if self.embedding.key.startswith("language_model.model.") else ""
        return replace(self.embedding, key=f"{prefix}lm_head.weight")

    def in_memory(self, key: str) -> str:
        """Return what a key on disk is called in memory, where an installed transformers was asked; else the key."""
        return key if self.installed is None else self.installed.in_memory.get(key, key)

    def joined(self, path: str) -> str | None:
        """Return how a weight lies in a tensor with others, in an installed transformers' words; None where not."""
        return None if self.installed is None else self.installed.joined.get(path)

    def common(self, path: str) -> str:
        """Return the common spelling of a path or key."""
        return common(path, self.family)

    @property
    def notes(self) -> tuple[str, ...]:
        """What is worth saying of how the base was read."""
        if self.installed is None:
            return ()
        return (f"which tensor on disk is which module in memory was asked of {self.installed.said_by}.",)

    def has(self, module: str) -> bool:
        """Say whether an adapter's module has a weight here: of its own, or as an expert's or several experts'."""
        spelling = self.common(f"{module}.weight")
        if spelling in self._keys or spelling == "lm_head.weight":
            return True
        fused = fused_parameter(spelling)
        path = fused[0] if fused else fused_module(module)
        single = expert_module(self.common(module))
        path = self.common(path) if path else single[0] if single else None
        return path is not None and path in self.experts

    def find(self, path: str) -> Weight | None:
        """Return the weight at ``path``, or None when there is none.

        Raises:
            AdapterMismatchError: the base holds several under different prefixes, and nothing says which is meant.
        """
        found = self._keys.get(self.common(path), [])
        if len(found) > 1:
            raise AdapterMismatchError(f"{path} could be any of {', '.join(sorted(found))}: the base holds them all.")
        if not found and self.head is not None and self.common(path) == "lm_head.weight":
            return self.head
        return self.weights[found[0]] if found else None

    def expert_parameters(self, path: str) -> dict[str, ExpertParameter]:
        """Return the expert parameters of the module whose common spelling is ``path``.

        Their dtypes and orientation are checked.
        """
        if path not in self.experts:
            return {}
        names = parts_of(self.family)
        for name in names:
            if (path, name) not in self._expert_parameters:
                self._expert_parameters[path, name] = self._read(path, name)
        found = {name: parameter for name in names if (parameter := self._expert_parameters[path, name]) is not None}
        self._check_orientation(path, found)
        return found

    def _read(self, path: str, name: str) -> ExpertParameter | None:
        stored = self.experts[path]
        keys = [stored.fused[name]] if name in stored.fused else []
        keys += [key for part in parts_of(self.family)[name] for key in stored.linears.get(part, {}).values()]
        for key in keys:
            self.check_dtype(self.weights[key])
        if len(keys) != len(set(keys)) or any(len(self._keys[self.common(self.in_memory(key))]) > 1 for key in keys):
            raise AdapterMismatchError(f"the base holds the experts of {path} under several prefixes.")
        return read_expert_parameter(self.base, self.weights, path, stored, name, family=self.family)

    def _check_orientation(self, path: str, found: Mapping[str, ExpertParameter]) -> None:
        """Prove by shapes that fused parameters are stored the way round that the family says.

        gate_up_proj is (2I, H) beside down_proj (H, I), or (H, 2I) beside (I, H); both cannot hold, as 2I is not I.
        """
        if len(found) != len(parts_of(self.family)):
            return
        gate_up, down = (found[name] for name in parts_of(self.family))
        if gate_up.out_features == len(gate_up.parts) * down.in_features and gate_up.in_features == down.out_features:
            return
        shapes = f"gate_up_proj {(gate_up.rows, gate_up.columns)}, down_proj {(down.rows, down.columns)}"
        if self.family is PLAIN and gate_up.columns == 2 * down.rows and gate_up.rows == down.columns:
            raise UnsupportedBaseError(
                f"the experts of {path} are stored transposed ({shapes}), and nothing is known of how this model type"
                f" ({str(self.base.text_config.get('model_type'))[:40]}) holds them in memory."
            )
        raise InconsistentCheckpointError(f"the shapes of the experts of {path} do not belong together: {shapes}.")

    def check_dtype(self, weight: Weight) -> None:
        """Refuse a weight that is not floating point and in no format that is decoded here."""
        if self.installed is not None and weight.key in self.installed.converted:
            raise UnsupportedBaseError(
                f"{weight.key} is not stored as it is in memory ({self.installed.converted[weight.key]}); deltas are"
                " merged only into weights that are."
            )
        if weight.dtype in FLOAT_DTYPES:
            return
        method = self.base.config.get("quantization_config")
        named = f" (quant_method {str(method.get('quant_method'))[:40]})" if isinstance(method, dict) else ""
        raise UnsupportedBaseError(
            f"{weight.key} is stored as {weight.dtype}{named}; deltas are merged into {', '.join(FLOAT_DTYPES)}"
            " weights only.",
            "Merge into the 16-bit original of this model.",
        )


def index_for(base: Checkpoint, modules: Iterable[str]) -> Index:
    """Return the index of a base in which these modules are found, if they are to be found at all.

    The names that all families share come first. Where a module has no weight by these, an installed transformers is
    asked for the names of all tensors, and the whole base is read by what it says: two ways are never mixed.
    """
    plain = Index(base)
    wanted = tuple(modules)
    if all(plain.has(module) for module in wanted):
        return plain
    installed = installed_names(base.config, base.shard_of)
    if installed is None or not installed.in_memory:
        return plain
    return Index(base, installed)
