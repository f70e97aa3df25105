"""Small video transformers in the published containers, wired here from torch's layers or transformers' models.

Widths are the published ones, since a vector's dimension shows them; depths and perceptrons are small. Each function
that takes a folder writes the published files there and returns the reference model.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

INNER = 64


def close(found: np.ndarray | None, expected: np.ndarray) -> None:
    """Hold two float32 arrays against each other to 1e-5 of the largest number."""
    assert found is not None and found.shape == expected.shape and found.dtype == np.float32
    off = np.abs(found - expected).max()
    assert off <= 1e-5 * np.abs(expected).max(), f"{off} of {np.abs(expected).max()}"


class MaskedVideo(nn.Module):
    """EchoFM as published, from layers of torch: `nn.MultiheadAttention` stands for its separate projections."""

    def __init__(self, width: int = 1024, depth: int = 2, inner: int = INNER) -> None:
        super().__init__()
        self.conv = nn.Conv3d(3, width, (4, 16, 16), (4, 16, 16))
        layers = [
            nn.TransformerEncoderLayer(
                width,
                width // 64,
                inner,
                dropout=0.0,
                activation="gelu",
                layer_norm_eps=1e-6,
                batch_first=True,
                norm_first=True,
            )
            for _ in range(depth)
        ]
        self.layers = nn.ModuleList(layers)
        self.last = nn.LayerNorm(width, eps=1e-6)
        self.cls = nn.Parameter(torch.zeros(1, 1, width))
        self.place = nn.Parameter(torch.zeros(1, 196, width))
        self.time = nn.Parameter(torch.zeros(1, 8, width))
        self.cls_place = nn.Parameter(torch.zeros(1, 1, width))

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        """Return the tokens of windows (B, 3, 32, 224, 224), (B, 1568, width)."""
        rows = []
        for window in windows:
            grid = self.conv(window[None])[0]  # width, 8, 14, 14
            tokens = [self.cls[0, 0] + self.cls_place[0, 0]]
            for step in range(8):
                for place in range(196):
                    token = grid[:, step, place // 14, place % 14]
                    tokens.append(token + self.place[0, place] + self.time[0, step])
            rows.append(torch.stack(tokens))
        states = torch.stack(rows)
        for layer in self.layers:
            states = layer(states)
        return self.last(states)[:, 1:]

    def published(self) -> dict[str, torch.Tensor]:
        """Return the encoder's tensors under the published names."""
        state = {
            "cls_token": self.cls,
            "pos_embed_spatial": self.place,
            "pos_embed_temporal": self.time,
            "pos_embed_class": self.cls_place,
            "patch_embed.proj.weight": self.conv.weight,
            "patch_embed.proj.bias": self.conv.bias,
            "norm.weight": self.last.weight,
            "norm.bias": self.last.bias,
        }
        for number, layer in enumerate(self.layers):
            block = f"blocks.{number}"
            for kind in ("weight", "bias"):
                fused = getattr(layer.self_attn, f"in_proj_{kind}")
                for letter, piece in zip("qkv", fused.chunk(3), strict=True):
                    state[f"{block}.attn.{letter}.{kind}"] = piece
                for name, part in (
                    ("attn.proj", layer.self_attn.out_proj),
                    ("norm1", layer.norm1),
                    ("norm2", layer.norm2),
                    ("mlp.fc1", layer.linear1),
                    ("mlp.fc2", layer.linear2),
                ):
                    state[f"{block}.{name}.{kind}"] = getattr(part, kind)
        return {key: tensor.detach().clone() for key, tensor in state.items()}


def pretraining_shapes() -> dict[str, tuple[int, ...]]:
    """Return the 158 tensors beside EchoFM's encoder."""
    shapes: dict[str, tuple[int, ...]] = {
        "decoder_cls_token": (1, 1, 512),
        "decoder_prj_cls_token": (1, 1, 1024),
        "mask_token": (1, 1, 512),
        "decoder_pos_embed_spatial": (1, 196, 512),
        "decoder_pos_embed_temporal": (1, 8, 512),
        "decoder_pos_embed_class": (1, 1, 512),
        "decoder_embed.weight": (512, 1024),
        "decoder_embed.bias": (512,),
        "decoder_norm.weight": (512,),
        "decoder_norm.bias": (512,),
        "decoder_pred.weight": (768, 512),
        "decoder_pred.bias": (768,),
        "prj_norm.weight": (1024,),
        "prj_norm.bias": (1024,),
    }
    for block, width in (("decoder_block", 1024), *((f"decoder_blocks.{number}", 512) for number in range(8))):
        for name, n_out, n_in in (
            *((f"attn.{part}", width, width) for part in ("q", "k", "v", "proj")),
            ("mlp.fc1", 4 * width, width),
            ("mlp.fc2", width, 4 * width),
        ):
            shapes[f"{block}.{name}.weight"], shapes[f"{block}.{name}.bias"] = (n_out, n_in), (n_out,)
        for name in ("norm1", "norm2"):
            shapes[f"{block}.{name}.weight"] = shapes[f"{block}.{name}.bias"] = (width,)
    return shapes


def echofm(folder: Path, filled: Any, depth: int) -> nn.Module:
    network = MaskedVideo(depth=depth)
    filled(network, seed=11)
    state = network.published()
    # The dropped tensors are many and large: their names are the published ones, their sides are one.
    state |= {key: torch.zeros([1] * len(shape)) for key, shape in pretraining_shapes().items()}
    torch.save({"model": state, "model_args": {"num_frames": 32, "t_patch_size": 4}}, folder / "echofm_vitl.pth")
    return network


def vjepa2(folder: Path, filled: Any, depth: int) -> nn.Module:
    from transformers import VJEPA2Config, VJEPA2Model

    config = VJEPA2Config(
        num_hidden_layers=depth,
        mlp_ratio=INNER / 1024,
        pred_num_hidden_layers=1,
        pred_hidden_size=48,
        pred_num_attention_heads=1,
        attn_implementation="eager",
    )
    network = VJEPA2Model(config)
    filled(network, seed=12)
    network.save_pretrained(folder)
    return network


def fused(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a V-JEPA 2 encoder of transformers under its authors' names."""
    made: dict[str, torch.Tensor] = {}
    for key, tensor in state.items():
        parts = key.split(".")
        if parts[0] == "embeddings":
            made[f"patch_embed.proj.{parts[-1]}"] = tensor
        elif parts[0] == "layernorm":
            made[f"norm.{parts[-1]}"] = tensor
        elif parts[2] != "attention":
            made[".".join(["blocks", *parts[1:]])] = tensor
        elif parts[3] == "proj":
            made[f"blocks.{parts[1]}.attn.proj.{parts[-1]}"] = tensor
        elif parts[3] == "query":
            pieces = [state[key.replace("query", part)] for part in ("query", "key", "value")]
            made[f"blocks.{parts[1]}.attn.qkv.{parts[-1]}"] = torch.cat(pieces)
    return made


def echojepa(folder: Path, filled: Any, depth: int) -> nn.Module:
    from transformers import VJEPA2Config, VJEPA2Model

    config = VJEPA2Config(
        num_hidden_layers=depth,
        mlp_ratio=INNER / 1024,
        crop_size=224,
        frames_per_clip=16,
        pred_num_hidden_layers=1,
        pred_hidden_size=48,
        pred_num_attention_heads=1,
        attn_implementation="eager",
    )
    network = VJEPA2Model(config)
    filled(network, seed=13)
    target = fused(network.encoder.state_dict())
    torch.save(
        {
            "encoder": {f"module.backbone.{key}": torch.zeros(1) for key in target},
            "predictor": {"module.backbone.predictor_proj.bias": torch.zeros(4)},
            "opt": {"state": {}, "param_groups": [{"lr": 1e-4, "betas": (0.9, 0.999)}]},
            "scaler": None,
            "target_encoder": {f"module.backbone.{key}": tensor.clone() for key, tensor in target.items()},
            "epoch": 55,
            "loss": 0.5,
            "batch_size": 16,
            "world_size": 8,
            "lr": 1e-4,
        },
        folder / "vitl-vmix22m-pt220-c55.pt",
    )
    return network.encoder


def videomae(folder: Path, filled: Any, depth: int, *, seed: int, norm: bool) -> nn.Module:
    from transformers import VideoMAEConfig, VideoMAEForPreTraining

    config = VideoMAEConfig(
        num_hidden_layers=depth,
        intermediate_size=INNER,
        decoder_num_hidden_layers=1,
        decoder_hidden_size=64,
        decoder_num_attention_heads=1,
        decoder_intermediate_size=32,
        use_mean_pooling=not norm,
        attn_implementation="eager",
    )
    network = VideoMAEForPreTraining(config)
    state = filled(network, seed=seed)
    if norm:
        (folder / "config.json").write_text(json.dumps(config.to_dict()))
        save_file(state, folder / "model.safetensors")
    else:
        torch.save(state, folder / "pytorch_model.bin")
    return network.videomae
