"""The losses of docs/concepts/method.md as pure functions, an equation beside each.

Legend: b images, n patches, m hidden patches, k emotion classes, f features, p patch side.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def normalised(patches: Tensor) -> Tensor:
    """Each patch by its own mean and variance: b m (3 p p) -> the same (He et al. 2021; unbiased variance, as
    theirs).
    """
    mean, variance = patches.mean(2, keepdim=True), patches.var(2, keepdim=True)
    return (patches - mean) / (variance + 1e-6).sqrt()


def mae(prediction: Tensor, target: Tensor, *, norm_pixels: bool) -> Tensor:
    """L_mae: the mean over hidden patches of (prediction - norm(target))²; b m (3 p p) twice -> scalar."""
    target = normalised(target) if norm_pixels else target
    return functional.mse_loss(prediction.float(), target.float())


def classification(
    logits: Tensor,
    labels: Tensor,
    weights: Tensor | None,
    label_smoothing: float = 0.0,
    partners: tuple[Tensor, float] | None = None,
) -> Tensor:
    """L_cls = CE(ŷ, y): b k, b -> scalar. `weights` k scales each sample by its class.

    Of mixed images, whose `partners` are their partners' labels b and the own share s: s CE(ŷ, y) + (1 - s) CE(ŷ, y').
    The mean is over samples, not over weights, so that the means of equal slices average to the mean of the whole.
    """

    def towards(targets: Tensor) -> Tensor:
        each = functional.cross_entropy(logits.float(), targets, reduction="none", label_smoothing=label_smoothing)
        return (each if weights is None else each * weights[targets]).mean()

    if partners is None:
        return towards(labels)
    others, share = partners
    return share * towards(labels) + (1 - share) * towards(others)


def inverse_frequency(counts: Tensor) -> Tensor:
    """Weights of classes with the given counts, k -> k: the mean over all samples is one. Absent classes get zero."""
    present = counts > 0
    weights = counts.sum() / (present.sum() * counts.clamp(min=1))
    return torch.where(present, weights, torch.zeros_like(weights))


def discriminator(
    logits_real: Tensor,
    logits_fake: Tensor | None,
    labels: Tensor,
    *,
    fake_class_targets: str = "ignore",
    emotions: bool = True,
    emotion_weight: float = 1.0,
    real_label_smoothing: float = 0.0,
) -> Tensor:
    """L_Δ, the discriminator's turn: BCE over its outputs, b (k+1), (v b) (k+1), b -> scalar.

    Real images: emotions = one-hot(y), real = 1 - real_label_smoothing. Reconstructions and poker faces: real = 0; their emotions
    are left out ("ignore"), all zero ("zero") or those of the photo that they were made from ("source"). The mean over
    real outputs plus the mean over fake outputs. Without `emotions` only the real/fake outputs count
    (docs/concepts/method.md,
    Ablations 2). `emotion_weight` w makes the mean over outputs with an emotion's target (w Σ BCE of emotions + BCE of
    real) / (k + 1). Without fakes the real output does not count either: there is nothing to tell it from.
    """
    classes = logits_real.shape[1] - 1
    target = functional.one_hot(labels, classes + 1).float()
    made = target.clone()
    target[:, classes] = 1.0 - real_label_smoothing
    judged = slice(0 if emotions else classes, None)
    weights = None
    if logits_fake is None or emotion_weight != 1:
        weights = torch.full_like(target[0], emotion_weight)
        weights[classes] = 0.0 if logits_fake is None else 1.0
        weights = weights[judged]
    real = functional.binary_cross_entropy_with_logits(logits_real.float()[:, judged], target[:, judged], weights)
    if logits_fake is None:
        return real
    if emotions and fake_class_targets == "source":
        made = made.repeat(len(logits_fake) // len(made), 1)
        return real + functional.binary_cross_entropy_with_logits(logits_fake.float(), made, weights)
    fake = logits_fake.float()[:, slice(0 if emotions and fake_class_targets == "zero" else classes, None)]
    return real + functional.binary_cross_entropy_with_logits(fake, torch.zeros_like(fake))


def gradient_penalty(slope: Tensor) -> Tensor:
    """R1 = ½ E‖∇ₓ Δ(x)‖² on real images (Mescheder et al. 2018, eq. 9): the gradients b 3 h w -> scalar."""
    return 0.5 * slope.float().square().flatten(1).sum(1).mean()


def adversarial(
    logits_rec: Tensor, logits_poker: Tensor | None, labels: Tensor, neutral: int | None, *, emotions: bool = True
) -> Tensor:
    """L_adv, PF-ViT's turn: both images shall pass for real, I_rec for emotion y and I_p for neutral.

    b (k+1) twice, b -> scalar, the sum of two mean BCEs; of one where there is no poker face. Where the dataset has no
    neutral class (`neutral` None) the poker face's target is no emotion at all. Without `emotions` real/fake counts
    alone.
    """
    classes = logits_rec.shape[1] - 1
    judged = slice(0 if emotions else classes, None)
    target = functional.one_hot(labels, classes + 1).float()
    target[:, classes] = 1.0
    loss = functional.binary_cross_entropy_with_logits(logits_rec.float()[:, judged], target[:, judged])
    if logits_poker is None:
        return loss
    calm = torch.zeros_like(target)
    calm[:, classes] = 1.0
    if neutral is not None:
        calm[:, neutral] = 1.0
    return loss + functional.binary_cross_entropy_with_logits(logits_poker.float()[:, judged], calm[:, judged])


def reconstruction(images: Tensor, rec: Tensor, poker: Tensor | None, labels: Tensor, neutral: int | None) -> Tensor:
    """L_rec = ‖I_rec - x‖² + 1[y = neutral] ‖I_p - x‖², each norm a mean over pixels; b 3 h w, b -> scalar."""
    loss = functional.mse_loss(rec.float(), images.float())
    if neutral is None or poker is None:
        return loss
    own = (poker.float() - images.float()).square().flatten(1).mean(1)
    return loss + (own * (labels == neutral)).mean()


def orthogonality(emotion: Tensor, poker: Tensor) -> Tensor:
    """L_ort = |cos(φ(I_e), φ(I_p))| of features b f (or tokens, flattened) -> scalar, the mean over images."""
    cosine = functional.cosine_similarity(emotion.float().flatten(1), poker.float().flatten(1), dim=1)
    return cosine.abs().mean()


def confusion(logits: Tensor) -> Tensor:
    """L_sep = CE(uniform, softmax(answer)) = log Σ exp(a) - mean(a), the mean over b: b k -> scalar, at least log k.

    Least where an answer favours no class (domain confusion, Tzeng et al. 2015). Turning the gradient of the answer's
    own loss round (Ganin et al. 2016) has no least value: it rewards answers that are wrong with confidence.
    """
    logits = logits.float()
    return (logits.logsumexp(1) - logits.mean(1)).mean()
