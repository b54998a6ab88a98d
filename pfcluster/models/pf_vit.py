"""PF-ViT: separate the emotion from the face and paint the face without it (docs/concepts/method.md, section 3).

Legend: b images, n patches, k of them visible, t = k + 1 tokens with the class token first, d encoder, c decoder
channels, v views, p patch side.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from pfcluster.models.mae import Decoder, kept_count
from pfcluster.models.vit import Attention, ViT, attend, init_linear, take, unpatchify


class PFViTOutput(NamedTuple):
    """What PF-ViT makes of a batch. Images are b 3 h w with values around -1..1; logits b classes; tokens b t d.

    A tuple, because FSDP2 and ZeRO look for tensors in a module's outputs and would not see those of a dataclass.
    """

    logits: Tensor
    reconstruction: Tensor
    poker: Tensor | None
    """None without a separator, as the emotion view and f_p are."""
    emotion: Tensor | None
    """None where nobody asked for the emotion view."""
    emotion_tokens: Tensor
    face_tokens: Tensor | None
    mask: Tensor | None = None
    """The separator's a, b t d in 0..1, to look at: without gradient."""


def shown_count(patches: int, ratio: float) -> int:
    """Number of patches that a share of hidden ones leaves: all where nothing hides, else as MAE counts."""
    return kept_count(patches, ratio) if ratio else patches


class Separator(nn.Module):
    """A squeeze-and-excitation mask for each token: a = σ(W₂ GELU(W₁ f)) (Hu et al. 2018, with GELU for ReLU)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.squeeze = nn.Linear(width, hidden)
        self.excite = nn.Linear(hidden, width)
        self.apply(init_linear)
        self.class_bias: nn.Parameter | None = None

    def begin_at(self, class_bias: float) -> None:
        """Let the class token's mask start at a = σ(class_bias + about 0), with a bias d of its own."""
        self.class_bias = nn.Parameter(torch.full_like(self.excite.bias, class_bias))

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """b t d -> emotion tokens f_e = a f, the rest f_p = f - f_e, which add up to the input, and a; each b t d."""
        logits = self.excite(functional.gelu(self.squeeze(tokens)))
        if self.class_bias is not None:
            logits = torch.cat([logits[:, :1] + self.class_bias.to(logits.dtype), logits[:, 1:]], dim=1)
        mask = torch.sigmoid(logits)
        emotion = mask * tokens
        return emotion, tokens - emotion, mask


class CrossFusion(nn.Module):
    """F(t) = softmax(Q Kᵀ / √d) V: mask tokens, one for each patch, ask the encoder's tokens.

    Q comes from mask token + position, K and V from the tokens projected to the decoder's width, with their positions
    as the pre-trained decoder saw them. The paper's parameter count leaves room for an MLP behind it, its equation has
    none; without it a training step keeps within its FLOPs (benchmarks/flops.py).
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_query = nn.LayerNorm(width, eps=1e-6)
        self.norm_tokens = nn.LayerNorm(width, eps=1e-6)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        self.apply(init_linear)

    def forward(self, queries: Tensor, tokens: Tensor) -> Tensor:
        """1 n c, b t c -> b n c."""
        b, n = len(tokens), queries.shape[1]
        query = self.query(self.norm_query(queries)).view(1, n, self.heads, -1).transpose(1, 2).expand(b, -1, -1, -1)
        key_value = self.key_value(self.norm_tokens(tokens)).view(b, tokens.shape[1], 2, self.heads, -1)
        key, value = key_value.permute(2, 0, 3, 1, 4).unbind(0)
        return queries + self.proj(attend(query, key, value))


class SelfFusion(nn.Module):
    """Self-attention in place of the cross fusion (docs/concepts/method.md, Ablations 3 and 4): the encoder's
    tokens, and mask tokens where patches are hidden, look at each other.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.apply(init_linear)

    def forward(self, tokens: Tensor) -> Tensor:
        """b (1 + n) c -> the same."""
        return tokens + self.attn(self.norm(tokens))


class Smooth(nn.Module):
    """A residual 3x3 convolution over a painted image: what a head that paints patches one by one cannot do is to look
    across their edges. Not the paper's. Its second layer begins with zeros, so the whole begins as the identity.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, 3, 3, padding=1)
        nn.init.zeros_(self.second.weight)
        assert self.second.bias is not None
        nn.init.zeros_(self.second.bias)

    def forward(self, images: Tensor) -> Tensor:
        """b 3 h w -> the same."""
        images = images.contiguous(memory_format=torch.channels_last)  # else the convolutions copy, uncounted
        return images + self.second(functional.gelu(self.first(images)))


class Generator(nn.Module):
    """Fusion and G: tokens to pixels.

    G starts as the pre-trained MAE decoder, but that one predicts *normalised* patches: each patch's mean and
    contrast, which make an image of it, were never its business. So the last layer is made anew (small weights,
    mid-grey bias) and learns raw pixels; training begins with a warm-up on reconstruction before any adversary looks
    at the result (`PfMagConfig.warmup_steps`).
    """

    positions: Tensor

    def __init__(
        self, decoder: Decoder, *, width: int, heads: int, patch: int, self_fusion: bool = False, smooth: int = 0
    ) -> None:
        """`self_fusion` takes SelfFusion in place of CrossFusion; `smooth` is the width of a Smooth behind the head."""
        super().__init__()
        self.patch = patch
        self.embed = decoder.embed
        self.mask_token = decoder.mask_token
        self.register_buffer("positions", decoder.positions, persistent=False)
        self.fusion = SelfFusion(width, heads) if self_fusion else CrossFusion(width, heads)
        self.blocks = decoder.blocks
        self.norm = decoder.norm
        self.head = nn.Linear(width, 3 * patch * patch)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)
        with torch.random.fork_rng(devices=[]):  # the other nets start as they do without it
            self.smooth = Smooth(smooth) if smooth else None

    def forward(self, tokens: Tensor, order: Tensor | None = None) -> Tensor:
        """b (1 + k) d -> images b 3 h w, not bounded. order: b n, whose first k patches the tokens show, in that order;
        None means that they show all.
        """
        painted = self._whole(self.embed(tokens), order)
        return painted if self.smooth is None else self.smooth(painted)

    def _whole(self, embedded: Tensor, order: Tensor | None) -> Tensor:
        """The image, patch by patch."""
        if isinstance(self.fusion, SelfFusion):
            return self._joined(embedded, order)
        assert order is None
        positions = functional.pad(self.positions, (0, 0, 1, 0)).to(embedded.dtype)
        patches = self._paint(self.fusion(self.mask_token + self.positions, embedded + positions))
        return unpatchify(patches, self.patch)

    def _joined(self, embedded: Tensor, order: Tensor | None) -> Tensor:
        """The tokens, with mask tokens behind them, through self-attention; then back into the image's order."""
        b, kept = len(embedded), embedded.shape[1] - 1
        positions = self.positions.expand(b, -1, -1) if order is None else self.positions[order]
        seen = embedded[:, 1:] + positions[:, :kept]
        hidden = self.mask_token.to(embedded.dtype) + positions[:, kept:]
        tokens = torch.cat([embedded[:, :1], seen, hidden.to(embedded.dtype)], dim=1)
        patches = self._paint(self.fusion(tokens), skip=1)
        return unpatchify(patches if order is None else take(patches, order.argsort(dim=1)), self.patch)

    def _paint(self, hidden: Tensor, skip: int = 0) -> Tensor:
        """G without its fusion: b (skip + n) c -> patches b n (3 p p)."""
        for block in self.blocks:
            hidden = block(hidden)
        return self.head(self.norm(hidden[:, skip:]))


class PFViT(nn.Module):
    """E, S, F, G and C in one module, trained by one optimizer."""

    def __init__(
        self,
        encoder: ViT,
        generator: Generator,
        *,
        width: int,
        classes: int,
        separator_ratio: float = 0.25,
        mask_ratio: float = 0.0,
    ) -> None:
        """`separator_ratio` 0 leaves the separator out (docs/concepts/method.md, Ablations 2): C reads the encoder's
        own class token,
        and G paints the reconstruction alone. `mask_ratio` is the share of patches hidden in training (Multi-Task MAE,
        Ablations 4).
        """
        super().__init__()
        self.encoder = encoder
        self.separator = Separator(width, max(1, int(width * separator_ratio))) if separator_ratio else None
        self.generator = generator
        self.classifier = nn.Linear(width, classes)
        nn.init.trunc_normal_(self.classifier.weight, std=0.02)
        nn.init.zeros_(self.classifier.bias)
        self.mask_ratio = mask_ratio

    def forward(self, images: Tensor, order: Tensor | None = None, *, emotion_view: bool = True) -> PFViTOutput:
        """b 3 h w -> all views; the generator paints its images, two or three of each face, in one batch.

        order: a permutation of the patches b n, whose first ones the encoder sees; None shows it all.
        """
        tokens = self.encoder(images, None if order is None else order[:, : self.kept])
        if self.separator is None:
            painted = self.generator(tokens, order)
            return PFViTOutput(self.classifier(tokens[:, 0]), painted, None, None, tokens, None)
        emotion, face, mask = self.separator(tokens)
        wanted = [tokens, face, emotion] if emotion_view else [tokens, face]
        orders = None if order is None else order.repeat(len(wanted), 1)
        painted = self.generator(torch.cat(wanted), orders).chunk(len(wanted))
        return PFViTOutput(
            logits=self.classifier(emotion[:, 0]),
            reconstruction=painted[0],
            poker=painted[1],
            emotion=painted[2] if emotion_view else None,
            emotion_tokens=emotion,
            face_tokens=face,
            mask=mask.detach(),
        )

    def separate(self, images: Tensor, keep: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
        """b 3 h w, the patches to look at b k or None for all -> f, f_e and f_p, each b t d; without a separator f
        twice and None.
        """
        tokens = self.encoder(images, keep)
        return (tokens, tokens, None) if self.separator is None else (tokens, *self.separator(tokens)[:2])

    def classify(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """What remains at test time, E, S and C: b 3 h w -> logits b classes."""
        return self.classifier(self.separate(images, keep)[1][:, 0])

    @property
    def kept(self) -> int:
        """Number of patches that training shows to the encoder where it hides some."""
        return shown_count(len(self.encoder.positions), self.mask_ratio)

    def shard_units(self) -> list[nn.Module]:
        """The blocks of encoder and generator."""
        return [*self.encoder.blocks, self.generator.fusion, *self.generator.blocks]
