"""A small model that says nothing of transformers' own and is looked at as theirs are: blocks, routers and experts."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

HIDDEN, WIDTH, EXPERTS, TOP_K, VOCAB = 6, 4, 4, 2, 8


class ToyExperts(nn.Module):
    """Experts in two parameters, (E, 2I, H) and (E, H, I)."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.zeros(EXPERTS, 2 * WIDTH, HIDDEN))
        self.down_proj = nn.Parameter(torch.zeros(EXPERTS, HIDDEN, WIDTH))

    def forward(self, hidden: Any, top_k_index: Any, top_k_weights: Any) -> Any:  # noqa: ARG002 - as theirs are called
        """Return what it is given."""
        return hidden


class ToyRouter(nn.Module):
    """A router with a weight of its own, which chooses by logits."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(EXPERTS, HIDDEN))

    def forward(self, hidden: Any) -> Any:
        """Choose, and pass on."""
        weights, index = (hidden @ self.weight.T).topk(TOP_K, dim=-1)
        return weights, index


class ToyBlock(nn.Module):
    """A router, experts, and one that all tokens share."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = ToyRouter()
        self.experts = ToyExperts()
        self.shared_experts = nn.Linear(HIDDEN, HIDDEN, bias=False)

    def forward(self, hidden: Any) -> Any:
        """Choose, and pass on."""
        weights, index = self.gate(hidden)
        return self.experts(hidden, index, weights)


class ToyListBlock(nn.Module):
    """A router, and experts that are modules, each called with its own tokens, as transformers 4 has them."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(HIDDEN, EXPERTS, bias=False)
        self.experts = nn.ModuleList(nn.Linear(HIDDEN, HIDDEN, bias=False) for _ in range(EXPERTS))

    def forward(self, hidden: Any) -> Any:
        """Give each expert the tokens that choose it."""
        tokens = hidden.reshape(-1, HIDDEN)
        index = self.gate(tokens).topk(TOP_K, dim=-1)[1]
        found = torch.zeros_like(tokens)
        for number, expert in enumerate(self.experts):
            rows = (index == number).any(-1).nonzero()[:, 0]
            found[rows] += expert(tokens[rows])
        return found.view(hidden.shape)


class ToyAttention(nn.Module):
    """A projection, and an indexer that only chooses."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj = nn.Linear(HIDDEN, HIDDEN, bias=False)
        self.indexer = nn.ModuleDict({"wk": nn.Linear(HIDDEN, 2, bias=False)})


class ToyLayer(nn.Module):
    """Attention, and a dense MLP or a block of experts."""

    def __init__(self, *, sparse: bool) -> None:
        super().__init__()
        self.self_attn = ToyAttention()
        self.mlp: nn.Module = ToyBlock() if sparse else nn.ModuleDict({"up_proj": nn.Linear(HIDDEN, 5, bias=False)})


class ToyModel(nn.Module):
    """Dense first layers, then layers with experts; saved with every expert by itself and another name for the gate."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(VOCAB, HIDDEN)
        dense = range(config.num_hidden_layers)[: config.first_k_dense_replace]
        self.layers = nn.ModuleList(ToyLayer(sparse=number not in dense) for number in range(config.num_hidden_layers))
        self.lm_head = nn.Linear(HIDDEN, VOCAB, bias=False)
        self.register_buffer("table", torch.arange(3))

    @classmethod
    def _from_config(cls, config: Any) -> ToyModel:
        return cls(config)

    def get_input_embeddings(self) -> nn.Module:
        """Return the embeddings."""
        return self.embed_tokens

    def get_output_embeddings(self) -> nn.Module:
        """Return the head."""
        return self.lm_head

    def save_pretrained(self, folder: str) -> None:
        """Write each expert's gate, up and down apart, and routers under another name."""
        tensors: dict[str, Any] = {}
        for name, tensor in self.state_dict().items():
            path, _, leaf = name.rpartition(".")
            if leaf == "gate_up_proj":
                for expert, rows in enumerate(tensor):
                    gate, up = rows.chunk(2)
                    tensors |= {f"{path}.{expert}.w1": gate, f"{path}.{expert}.w3": up}
            elif leaf == "down_proj":
                tensors |= {f"{path}.{expert}.w2": rows for expert, rows in enumerate(tensor)}
            else:
                tensors[name.replace(".gate.weight", ".router.weight")] = tensor
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, Path(folder) / "model.safetensors")
        (Path(folder) / "config.json").write_text(json.dumps({"model_type": "toy"}))


class ToyConfig:
    """A configuration as transformers has them, as far as it is looked at."""

    def __init__(
        self, num_hidden_layers: int = 6, first_k_dense_replace: int = 3, hidden_size: int = 4096, **others: Any
    ) -> None:
        self.num_hidden_layers = num_hidden_layers
        self.first_k_dense_replace = first_k_dense_replace
        self.hidden_size = hidden_size
        self.kinds = others.get("kinds", ["a"] * num_hidden_layers)

    def to_dict(self) -> dict[str, Any]:
        """Return all settings."""
        return dict(vars(self))


def toy(**settings: Any) -> ToyModel:
    """Return a model with one dense layer and one with experts, unless told otherwise."""
    config: Any = SimpleNamespace(**{"num_hidden_layers": 2, "first_k_dense_replace": 1, **settings})
    return ToyModel(config)
