"""PF-ViT: separates emotion from identity and generates the face without emotion (docs/concepts/method.md, section 3).

Legend: b images, g images of them to generate from, n patches, k visible patches, t = k + 1 tokens with the class token
first, d channels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from pfcluster.models.erasure import EmotionErasure
from pfcluster.models.generator import Generator
from pfcluster.models.mae import kept_count
from pfcluster.models.vit import ViT, init_linear


class PFViTOutput(NamedTuple):
    """Outputs of PF-ViT. Images are g 3 h w with values around -1..1, tokens g t d.

    A tuple, because FSDP2 and ZeRO find the tensors in tuples but not in dataclasses.
    """

    logits: Tensor
    """b classes, from the emotion tokens."""
    reconstruction: Tensor
    """I_rec."""
    poker: Tensor | None
    """I_p; None without a separator, as are `emotion` and `identity_tokens`."""
    emotion: Tensor | None
    """I_e; None unless `emotion_view` was requested."""
    emotion_tokens: Tensor
    """f_e."""
    identity_tokens: Tensor | None
    """f_p."""
    mask: Tensor | None = None
    """The separator's mask a, g t d in 0..1, detached."""
    unerased_tokens: Tensor | None = None
    """f_p of all images before the erasure, b t d, detached; in training with an erasure only."""
    unswapped: Tensor | None = None
    """Poker faces of swapped images, g 3 h w; None unless `swap_rows` was given."""


def visible_count(patches: int, mask_ratio: float) -> int:
    """Number of patches that the encoder sees in training: all with mask_ratio 0, else as in MAE."""
    return kept_count(patches, mask_ratio) if mask_ratio else patches


class Separator(nn.Module):
    """A squeeze-and-excitation mask for each token: a = σ(W₂ GELU(W₁ f)) (Hu et al. 2018, with GELU for ReLU)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.squeeze = nn.Linear(width, hidden)
        self.excite = nn.Linear(hidden, width)
        self.apply(init_linear)
        self.class_bias: nn.Parameter | None = None
        self.patch_bias: nn.Parameter | None = None

    def add_biases(self, class_token: float | None, patches: float | None) -> None:
        """Add learned biases d to the mask logits of the class token and of all patch tokens, so that their masks start
        near σ(value); None adds none.
        """
        if class_token is not None:
            self.class_bias = nn.Parameter(torch.full_like(self.excite.bias, class_token))
        if patches is not None:
            self.patch_bias = nn.Parameter(torch.full_like(self.excite.bias, patches))

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """f b t d -> emotion tokens f_e = a f, identity tokens f_p = f - f_e, and the mask a; each b t d."""
        logits = self.excite(functional.gelu(self.squeeze(tokens)))
        if self.class_bias is not None or self.patch_bias is not None:
            biases = self.class_bias, self.patch_bias
            parts = zip((logits[:, :1], logits[:, 1:]), biases, strict=True)
            logits = torch.cat([part if bias is None else part + bias.to(part.dtype) for part, bias in parts], dim=1)
        mask = torch.sigmoid(logits)
        emotion = mask * tokens
        return emotion, tokens - emotion, mask


def scale_gradient(values: Tensor, share: float) -> Tensor:
    """The values unchanged; their gradient multiplied by `share`."""
    return values if share == 1 else share * values + (1 - share) * values.detach()


class PFViT(nn.Module):
    """Encoder E, separator S, fusion F, generator G and classifier C in one module with one optimizer."""

    def __init__(
        self,
        encoder: ViT,
        generator: Generator,
        *,
        width: int,
        classes: int,
        separator_ratio: float = 0.25,
        mask_ratio: float = 0.0,
        encoder_grad_share: float = 1.0,
    ) -> None:
        """`separator_ratio` 0 removes the separator (docs/concepts/method.md, Ablations 2): the classifier reads the
        encoder's class token, and only the reconstruction is generated. `mask_ratio` is the fraction of patches hidden
        in training (Ablations 4), `encoder_grad_share` scales the gradient that reaches the encoder from the generated
        images and from the tokens f_e and f_p.
        """
        super().__init__()
        self.encoder = encoder
        self.separator = Separator(width, max(1, int(width * separator_ratio))) if separator_ratio else None
        self.generator = generator
        self.classifier = nn.Linear(width, classes)
        nn.init.trunc_normal_(self.classifier.weight, std=0.02)
        nn.init.zeros_(self.classifier.bias)
        self.mask_ratio, self.encoder_grad_share = mask_ratio, encoder_grad_share
        self.erasure: EmotionErasure | None = None

    def add_erasure(self) -> None:
        """Erase the emotion from f_p (models/erasure.py). f_e = f - f_p then contains what was erased; the classifier
        still reads a f. Needs a separator, and the tokens of all patches.
        """
        tokens = 1 + len(self.encoder.positions)
        self.erasure = EmotionErasure(tokens, self.classifier.in_features, self.classifier.out_features)

    def forward(
        self,
        images: Tensor,
        order: Tensor | None = None,
        *,
        emotion_view: bool = True,
        generate_every: int = 1,
        swap_rows: Tensor | None = None,
    ) -> PFViTOutput:
        """b 3 h w -> all outputs; the two or three images per face are generated in one batch, from every
        `generate_every`-th image of `images`.

        order: a permutation of the patches b n, visible ones first; None if all are visible. swap_rows: indices of
        g of the images; each is given the expression of another one of the images to generate from, and
        the poker face of the result is the output `unswapped`. None for none.
        """
        tokens = self.encoder(images, None if order is None else order[:, : self.kept])
        share = self.encoder_grad_share if tokens.requires_grad else 1.0
        chosen = scale_gradient(tokens[::generate_every] if generate_every > 1 else tokens, share)
        order = order if order is None or generate_every == 1 else order[::generate_every]
        if self.separator is None:
            return PFViTOutput(self.classifier(tokens[:, 0]), self.generator(chosen, order), None, None, chosen, None)
        emotion, identity, mask = self.separator(chosen)
        class_tokens = emotion[:, :1] if chosen is tokens else self.separator(tokens[:, :1])[0]
        logits = self.classifier(class_tokens[:, 0])
        unerased = None
        if self.erasure is not None:
            unerased = self._unerased(tokens, identity) if self.training and self.erasure.running is not None else None
            identity = self.erasure(identity, logits[::generate_every])
            emotion = chosen - identity
        sources = [chosen, identity, emotion] if emotion_view else [chosen, identity]
        orders = None if order is None else order.repeat(len(sources), 1)
        generated = self.generator(torch.cat(sources), orders).chunk(len(sources))
        unswapped = None
        if swap_rows is not None:
            swapped = self._swap(tokens[swap_rows], logits[swap_rows], emotion)
            unswapped = self.generator(self._identity(scale_gradient(self.encoder(swapped), share)))
        return PFViTOutput(
            logits=logits,
            reconstruction=generated[0],
            poker=generated[1],
            emotion=generated[2] if emotion_view else None,
            emotion_tokens=emotion,
            identity_tokens=identity,
            mask=mask.detach(),
            unerased_tokens=unerased,
            unswapped=unswapped,
        )

    @torch.no_grad()
    def _swap(self, tokens: Tensor, logits: Tensor, emotion: Tensor) -> Tensor:
        """Images from f_p of the tokens g t d, whose logits are g k, with f_e g t d of rows 2 j and 2 j + 1
        exchanged: g 3 h w. The last one of an odd number keeps its own.
        """
        assert self.separator is not None
        emotion = emotion[(torch.arange(len(emotion), device=emotion.device) ^ 1).clamp(max=len(emotion) - 1)]
        identity = self.separator(tokens)[1]
        if self.erasure is not None:
            identity = self.erasure(identity, logits)
        images: Tensor = self.generator(identity + emotion).clamp(-1, 1)
        return images

    def _identity(self, tokens: Tensor) -> Tensor:
        """f b t d -> f_p b t d."""
        assert self.separator is not None
        emotion, identity = self.separator(tokens)[:2]
        if self.erasure is not None:
            identity = self.erasure(identity, self.classifier(emotion[:, 0]))
        return identity

    @torch.no_grad()
    def _unerased(self, tokens: Tensor, identity: Tensor) -> Tensor:
        """f_p of the tokens b t d before the erasure, b t d; `identity` is that of the images to generate from."""
        assert self.separator is not None
        return identity.detach() if len(identity) == len(tokens) else self.separator(tokens)[1]

    def separate(self, images: Tensor, keep: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
        """b 3 h w -> f, f_e and f_p, each b t d; without a separator f, f and None. keep: indices of the visible
        patches b k, None for all; not with an erasure.
        """
        tokens = self.encoder(images, keep)
        if self.separator is None:
            return tokens, tokens, None
        emotion, identity = self.separator(tokens)[:2]
        if self.erasure is None:
            return tokens, emotion, identity
        identity = self.erasure(identity, self.classifier(emotion[:, 0]))
        return tokens, tokens - identity, identity

    def transfer(self, emotion_images: Tensor, identity_images: Tensor) -> Tensor:
        """Expression transfer: images of the faces in `identity_images` with the emotions of `emotion_images`, from f_e
        of one and f_p of the other: b 3 h w twice -> b 3 h w. Needs a separator.
        """
        emotion, identity = self.separate(emotion_images)[1], self.separate(identity_images)[2]
        assert identity is not None
        images: Tensor = self.generator(emotion + identity)
        return images

    def classify(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Inference with E, S and C only: b 3 h w -> logits b classes."""
        logits: Tensor = self.classifier(self.class_features(images, keep))
        return logits

    def class_features(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """What the classifier reads: the class token of a f, before any erasure: b 3 h w -> b d. `keep` as for
        `separate`.
        """
        tokens = self.encoder(images, keep)
        features: Tensor = tokens if self.separator is None else self.separator(tokens)[0]
        return features[:, 0]

    @property
    def kept(self) -> int:
        """Number of patches visible to the encoder in training."""
        return visible_count(len(self.encoder.positions), self.mask_ratio)

    def shard_units(self) -> list[nn.Module]:
        """The blocks of encoder and generator."""
        return [*self.encoder.blocks, self.generator.fusion, *self.generator.blocks]
