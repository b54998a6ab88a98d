"""The losses of docs/concepts/method.md as pure functions, with their equations.

Legend: b images, n patches, m hidden patches, k emotion classes, f features, p patch side, v generated images per
photo.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def normalised(patches: Tensor) -> Tensor:
    """Normalise each patch by its own mean and unbiased variance: b m (3 p p) -> b m (3 p p) (He et al. 2021)."""
    mean, variance = patches.mean(2, keepdim=True), patches.var(2, keepdim=True)
    return (patches - mean) / (variance + 1e-6).sqrt()


def mae(prediction: Tensor, target: Tensor, *, norm_pixels: bool) -> Tensor:
    """L_mae = mean over hidden patches of (prediction - norm(target))² (section 1); b m (3 p p) twice -> scalar."""
    target = normalised(target) if norm_pixels else target
    return functional.mse_loss(prediction.float(), target.float())


def classification(
    logits: Tensor,
    labels: Tensor,
    weights: Tensor | None,
    label_smoothing: float = 0.0,
    partners: tuple[Tensor, float] | None = None,
) -> Tensor:
    """L_cls = CE(ŷ, y) (section 2): b k, b -> scalar. `weights` (k) scale each sample by its class.

    For mixed images `partners` are the labels y' (b) of the images mixed in and the share s of the image itself:
    s CE(ŷ, y) + (1 - s) CE(ŷ, y'). The mean is over samples, not over weights, so that the means of equal slices
    average to the mean of the whole batch.
    """

    def cross_entropy(targets: Tensor) -> Tensor:
        each = functional.cross_entropy(logits.float(), targets, reduction="none", label_smoothing=label_smoothing)
        return (each if weights is None else each * weights[targets]).mean()

    if partners is None:
        return cross_entropy(labels)
    partner_labels, share = partners
    return share * cross_entropy(labels) + (1 - share) * cross_entropy(partner_labels)


def inverse_frequency(counts: Tensor) -> Tensor:
    """Class weights from class counts, k -> k, with mean 1 over all samples. Absent classes get 0."""
    present = counts > 0
    weights = counts.sum() / (present.sum() * counts.clamp(min=1))
    return torch.where(present, weights, torch.zeros_like(weights))


def discriminator(
    logits_real: Tensor,
    logits_fake: Tensor,
    labels: Tensor,
    *,
    fake_class_targets: str = "ignore",
    emotions: bool = True,
) -> Tensor:
    """L_Δ (section 3): BCE over the discriminator's outputs, b (k+1), (v b) (k+1), b -> scalar: mean over the outputs
    of real images plus mean over those of generated images.

    Targets of real images: one-hot(y) for emotions, 1 for real. Generated images: 0 for real; their emotions are left
    out ("ignore"), all 0 ("zero") or those of their source photo ("source"). Without `emotions` only the real/fake
    outputs count (Ablations 2).
    """
    classes = logits_real.shape[1] - 1
    target = functional.one_hot(labels, classes + 1).float()
    source_target = target.clone()
    target[:, classes] = 1.0
    used = slice(0 if emotions else classes, None)
    real = functional.binary_cross_entropy_with_logits(logits_real.float()[:, used], target[:, used])
    if emotions and fake_class_targets == "source":
        source_target = source_target.repeat(len(logits_fake) // len(source_target), 1)
        return real + functional.binary_cross_entropy_with_logits(logits_fake.float(), source_target)
    fake = logits_fake.float()[:, slice(0 if emotions and fake_class_targets == "zero" else classes, None)]
    return real + functional.binary_cross_entropy_with_logits(fake, torch.zeros_like(fake))


def gradient_penalty(gradient: Tensor) -> Tensor:
    """R1 = ½ E‖∇ₓ Δ(x)‖² on real images (Mescheder et al. 2018, eq. 9): the gradients b 3 h w -> scalar."""
    return 0.5 * gradient.float().square().flatten(1).sum(1).mean()


def adversarial(
    logits_rec: Tensor, logits_poker: Tensor | None, labels: Tensor, neutral: int | None, *, emotions: bool = True
) -> Tensor:
    """L_adv (section 3): BCE with the targets real for both images, emotion y for I_rec and neutral for I_p.

    b (k+1) twice, b -> scalar, the sum of two mean BCEs, or one without a poker face. If the dataset has no neutral
    class (`neutral` None) all emotion targets of I_p are 0. Without `emotions` only the real/fake outputs count.
    """
    classes = logits_rec.shape[1] - 1
    used = slice(0 if emotions else classes, None)
    target = functional.one_hot(labels, classes + 1).float()
    target[:, classes] = 1.0
    loss = functional.binary_cross_entropy_with_logits(logits_rec.float()[:, used], target[:, used])
    if logits_poker is None:
        return loss
    neutral_target = torch.zeros_like(target)
    neutral_target[:, classes] = 1.0
    if neutral is not None:
        neutral_target[:, neutral] = 1.0
    return loss + functional.binary_cross_entropy_with_logits(logits_poker.float()[:, used], neutral_target[:, used])


def reconstruction(images: Tensor, rec: Tensor, poker: Tensor | None, labels: Tensor, neutral: int | None) -> Tensor:
    """L_rec = ‖I_rec - x‖² + 1[y = neutral] ‖I_p - x‖² (section 3), squared norms as means over pixels; b 3 h w, b ->
    scalar.
    """
    loss = functional.mse_loss(rec.float(), images.float())
    if neutral is None or poker is None:
        return loss
    poker_error = (poker.float() - images.float()).square().flatten(1).mean(1)
    return loss + (poker_error * (labels == neutral)).mean()


def orthogonality(emotion: Tensor, poker: Tensor) -> Tensor:
    """L_ort = |cos(φ(I_e), φ(I_p))| (section 3) of features b f, or tokens, flattened -> scalar, mean over images."""
    cosine = functional.cosine_similarity(emotion.float().flatten(1), poker.float().flatten(1), dim=1)
    return cosine.abs().mean()


def anchor(poker: Tensor, reconstruction: Tensor) -> Tensor:
    """|I_p - sg(I_rec)| of images b 3 h w twice -> scalar, mean over pixels; no gradient reaches the reconstruction."""
    return (poker.float() - reconstruction.detach().float()).abs().mean()


def swap(unswapped: Tensor, images: Tensor, chosen: Tensor) -> Tensor:
    """L_swap = 1[c] ‖G(f_p(I_s)) - x‖², the mean over pixels and over all images, of images b 3 h w twice and c b ->
    scalar: the poker face of an image I_s that was generated from f_p of the photo x and f_e of another one.
    """
    errors = (unswapped.float() - images.float()).square().flatten(1).mean(1)
    return (errors * chosen).mean()


def confusion(logits: Tensor) -> Tensor:
    """Domain confusion (Tzeng et al. 2015): CE(uniform, softmax(a)) = log Σ exp(a) - mean(a), the mean over b:
    b k -> scalar, at least log k.

    It is smallest for a uniform output. The reversed gradient of the adversary's own loss (Ganin et al. 2016) has no
    minimum: it rewards confidently wrong outputs.
    """
    logits = logits.float()
    return (logits.logsumexp(1) - logits.mean(1)).mean()
