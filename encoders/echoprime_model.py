"""EchoPrime's networks: torchvision's MViT v2 and ConvNeXt and a BERT, under the names of the published files."""

from __future__ import annotations

import torch
from torch import nn
from torchvision.models import convnext_base
from torchvision.models.video import mvit_v2_s

from encoders.bert_model import Bert, BertSizes

__all__ = ["TextNetwork", "VideoTower", "video_network", "view_network", "view_trunk"]

_WIDTH = 768  # of the last block of mvit_v2_s


def video_network(*, dim: int) -> nn.Module:
    """Return the untrained video encoder, whose keys are those of ``echo_prime_encoder.pt``."""
    network = mvit_v2_s(weights=None)
    network.head[-1] = nn.Linear(_WIDTH, dim)
    return network


def view_network(*, n_views: int) -> nn.Module:
    """Return the untrained view classifier, whose keys are those of ``view_classifier.pt``."""
    network = convnext_base(weights=None)
    network.classifier[-1] = nn.Linear(network.classifier[-1].in_features, n_views)
    return network


def view_trunk(network: nn.Module) -> nn.Module:
    """Return the view classifier without its last layer."""
    return nn.Sequential(network.features, network.avgpool, network.classifier[:-1])


class VideoTower(nn.Module):
    """Windows to the vectors of the class token, and to the mean of all tokens of a time as steps.

    Parameters
    ----------
    network : torchvision.models.video.MViT
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, windows: torch.Tensor, *, with_steps: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Encode windows, ``(B, 3, T, H, W)``; steps are ``(B, T / 2, 768)``, after the last norm."""
        network = self.network
        tokens = network.pos_encoding(network.conv_proj(windows).flatten(2).transpose(1, 2))
        sides = (network.pos_encoding.temporal_size, *network.pos_encoding.spatial_size)
        for block in network.blocks:
            tokens, sides = block(tokens, sides)
        tokens = network.norm(tokens)
        vectors: torch.Tensor = network.head(tokens[:, 0])
        if not with_steps:
            return vectors, None
        return vectors, tokens[:, 1:].unflatten(1, (sides[0], -1)).mean(dim=2)


class TextNetwork(nn.Module):
    """Padded tokens to vectors, ``(B, dim)``: the state of the first token through one linear layer.

    The language model's own head, which the published file holds too, is left out.

    Parameters
    ----------
    sizes : BertSizes
    dim : int
    """

    def __init__(self, sizes: BertSizes, *, dim: int) -> None:
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.bert = Bert(sizes)
        self.text_projection = nn.Linear(sizes.width, dim)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return one vector a text, not normalised."""
        made: torch.Tensor = self.text_projection(self.backbone.bert(tokens)[:, 0])
        return made
