"""PF-ViT: separate the emotion from the face and paint the face without it (METHOD.md, section 3).

Legend: b images, n patches, t = n + 1 tokens with the class token first, d encoder, c decoder channels, v views, p
patch side.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from pfcluster.nn.mae import Decoder
from pfcluster.nn.vit import ViT, attend, init_linear, unpatchify


class Views(NamedTuple):
    """What PF-ViT makes of a batch. Images are b 3 h w with values around -1..1; logits b classes; tokens b t d.

    A tuple, because FSDP2 and ZeRO look for tensors in a module's outputs and would not see those of a dataclass.
    """

    logits: Tensor
    reconstruction: Tensor
    poker: Tensor
    emotion: Tensor | None
    """None where nobody asked for the emotion view."""
    emotion_tokens: Tensor
    face_tokens: Tensor

    def detach(self) -> Views:
        """The same values without their history."""
        emotion = None if self.emotion is None else self.emotion.detach()
        own = {name: value.detach() for name, value in self._asdict().items() if name != "emotion"}
        return Views(**own, emotion=emotion)


class Separator(nn.Module):
    """A squeeze-and-excitation mask for each token: a = σ(W₂ GELU(W₁ f)) (Hu et al. 2018, with GELU for ReLU)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.squeeze = nn.Linear(width, hidden)
        self.excite = nn.Linear(hidden, width)
        self.apply(init_linear)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """b t d -> emotion tokens f_e = a f and the rest f_p = f - f_e, both b t d: they add up to the input."""
        mask = torch.sigmoid(self.excite(functional.gelu(self.squeeze(tokens))))
        emotion = mask * tokens
        return emotion, tokens - emotion


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


class Generator(nn.Module):
    """Cross fusion and G: tokens to pixels.

    G starts as the pre-trained MAE decoder, but that one predicts *normalised* patches: each patch's mean and
    contrast, which make an image of it, were never its business. So the last layer is made anew (small weights,
    mid-grey bias) and learns raw pixels; training begins with a warm-up on reconstruction before any adversary looks
    at the result (`PfMagConfig.warmup_steps`).
    """

    positions: Tensor

    def __init__(self, decoder: Decoder, *, width: int, heads: int, patch: int) -> None:
        super().__init__()
        self.patch = patch
        self.embed = decoder.embed
        self.mask_token = decoder.mask_token
        self.register_buffer("positions", decoder.positions, persistent=False)
        self.fusion = CrossFusion(width, heads)
        self.blocks = decoder.blocks
        self.norm = decoder.norm
        self.head = nn.Linear(width, 3 * patch * patch)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """b (1 + n) d -> images b 3 h w, not bounded."""
        embedded = self.embed(tokens)
        positions = functional.pad(self.positions, (0, 0, 1, 0)).to(embedded.dtype)
        hidden = self.fusion(self.mask_token + self.positions, embedded + positions)
        for block in self.blocks:
            hidden = block(hidden)
        return unpatchify(self.head(self.norm(hidden)), self.patch)


class PFViT(nn.Module):
    """E, S, F, G and C in one module, trained by one optimizer."""

    def __init__(
        self, encoder: ViT, generator: Generator, *, width: int, classes: int, separator_ratio: float = 0.25
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.separator = Separator(width, max(1, int(width * separator_ratio)))
        self.generator = generator
        self.classifier = nn.Linear(width, classes)
        nn.init.trunc_normal_(self.classifier.weight, std=0.02)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, images: Tensor, *, emotion_view: bool = True) -> Views:
        """b 3 h w -> all views; the generator paints its images, two or three of each face, in one batch."""
        tokens = self.encoder(images)
        emotion, face = self.separator(tokens)
        wanted = [tokens, face, emotion] if emotion_view else [tokens, face]
        painted = self.generator(torch.cat(wanted)).chunk(len(wanted))
        return Views(
            logits=self.classifier(emotion[:, 0]),
            reconstruction=painted[0],
            poker=painted[1],
            emotion=painted[2] if emotion_view else None,
            emotion_tokens=emotion,
            face_tokens=face,
        )

    def classify(self, images: Tensor) -> Tensor:
        """What remains at test time, E, S and C: b 3 h w -> logits b classes."""
        emotion, _ = self.separator(self.encoder(images))
        return self.classifier(emotion[:, 0])

    def shard_units(self) -> list[nn.Module]:
        """The blocks of encoder and generator."""
        return [*self.encoder.blocks, self.generator.fusion, *self.generator.blocks]
