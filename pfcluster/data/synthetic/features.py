"""Features of a synthetic face, and the effect of each action unit on them.

Intensities of action units are fields over the image, so the two sides of a face may differ. The changes of appearance
follow the FACS manual (Ekman, Friesen & Hager 2002), as far as they are visible at 48 pixels.

Legend: b faces, h w pixels. Coordinates as in faces.py; `x` is |u|, the distance from the face's midline.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pfcluster.data.synthetic.geometry import View, between, bump, fill, line, paint, spot, step


@dataclass(frozen=True)
class Brows:
    """Coordinates of the brows."""

    along: Tensor
    """b h w: 0 at the inner end, 1 at the outer."""
    height: Tensor
    """b h w: v of the brow's middle."""


def brows(view: View, x: Tensor) -> Brows:
    """AU 1 raises the inner ends, 2 the outer ends, 4 lowers both and draws them together, 9 lowers them slightly."""
    a1, a2, a4, a9 = view.action_unit(1), view.action_unit(2), view.action_unit(4), view.action_unit(9)
    inner = 0.12 - 0.035 * view.mean_action_unit(4)
    along = (x - inner) / (view["eye_distance"] + 0.2 - inner)
    t = along.clamp(0, 1)
    rest = view["eye_height"] - view["brow_distance"] - view["brow_arch"] * (4 * t * (1 - t))
    slope = view["brow_slope"] * (t - 0.5)
    lift = a1 * (0.14 * (1 - t) * (1 - t)) + a2 * (0.17 * t * (1.6 - t))
    drop = a4 * (0.11 - 0.08 * t) + a9 * (0.05 - 0.03 * t)
    return Brows(along, rest + slope - lift + drop)


def paint_brows(view: View, canvas: Tensor, brow: Brows, hair: Tensor) -> None:
    """Two tapering strokes in the hair's colour: canvas b 3 h w in place, hair b 3 1 1."""
    t = brow.along.clamp(0, 1)
    half = view["brow_thickness"] * (1 - 0.55 * t)
    edge = view.edge
    alpha = between(view.v, brow.height - half, brow.height + half, edge)
    alpha = alpha * between(brow.along, 0.0, 1.0, edge * 2.2) * view["brow_darkness"]
    paint(canvas, hair * 0.55, alpha)


def forehead_relief(view: View, x: Tensor, brow: Brows) -> Tensor:
    """Lines across the forehead (1 in its middle, 2 at its sides), between the brows (4), and those of age: b h w."""
    v, edge = view.v, view.edge
    age = view["age"].clamp(min=0)
    middle = view["eye_height"] - view["brow_distance"]
    strength = (
        view.action_unit(1) * bump(x, 0.3) + view.action_unit(2) * bump(x - 0.28, 0.26) + 0.45 * age * bump(x, 0.5)
    )
    relief = torch.zeros_like(v)
    for row in range(3):
        course = middle - 0.17 - 0.09 * row + 0.12 * x * x - 0.05 * view.mean_action_unit(1)
        relief -= line(v - course, 0.024, edge) * strength * (0.42 - 0.07 * row)
    frown = view.action_unit(4)
    furrow = line(x - 0.05, 0.024, edge) * bump(v - middle - 0.03, 0.17)
    relief -= furrow * (0.5 * frown + 0.15 * age)
    relief -= spot(x, v - middle - 0.08, 0.16, 0.14) * frown * 0.18
    return relief - bump(v - brow.height - 0.05, 0.08) * bump(x - 0.3, 0.3) * (0.1 + 0.2 * frown)


@dataclass(frozen=True)
class Eyes:
    """Coordinates of the eyes: all b h w."""

    across: Tensor
    """-1 at the inner corner, 1 at the outer."""
    upper: Tensor
    """v of the upper lid's rim."""
    lower: Tensor
    """v of the lower lid's rim."""
    open: Tensor
    """1 where the eyeball is visible, else 0."""


def eyes(view: View, x: Tensor) -> Eyes:
    """AU 5 raises the upper lid, 7 tightens both (the lower goes straight), 6 pushes the lower lid up."""
    a5, a6, a7, a9 = view.action_unit(5), view.action_unit(6), view.action_unit(7), view.action_unit(9)
    across = (x - view["eye_distance"]) / view["eye_width"]
    arc = (1 - across * across).clamp_(min=-0.2)
    middle = view["eye_height"] - view["eye_tilt"] * across
    opening = view["eye_opening"] * view["lids"]
    up = opening * (1 + 0.85 * a5 - 0.35 * a7 - 0.22 * a6 - 0.25 * a9 - 0.12 * view.action_unit(4)).clamp_(min=0.1)
    down = opening * (0.62 + 0.12 * a5 - 0.42 * a7 - 0.55 * a6 - 0.3 * a9).clamp_(min=-0.05)
    upper, lower = middle - up * arc * (1 + 0.12 * across), middle + down * arc
    inside = between(view.v, upper, lower, view.edge) * between(across, -1.0, 1.0, view.edge / view["eye_width"])
    return Eyes(across, upper, lower, inside)


def paint_eyes(view: View, canvas: Tensor, eye: Eyes, x: Tensor, iris: Tensor) -> None:
    """Eyeball, iris, pupil, glint, lashes; canvas b 3 h w in place, iris b 3 1 1."""
    v, edge = view.v, view.edge
    side = 2 * view.side - 1
    gaze = x - view["eye_distance"] - view["gaze_x"] * side
    rise = v - view["eye_height"] + 0.012 - view["gaze_y"]
    radius = (gaze * gaze + rise * rise).sqrt_()
    white = torch.tensor([0.93, 0.91, 0.89])[None, :, None, None]
    shadow = 1 - 0.35 * bump(v - eye.upper, 0.05)
    paint(canvas, white * shadow[:, None], eye.open)
    paint(canvas, iris, eye.open * fill(radius - 0.074, edge))
    paint(canvas, iris * 0.12, eye.open * fill(radius - 0.034, edge))
    glint = spot(gaze + 0.022 * side, rise + 0.024, 0.014 + edge, 0.014 + edge) * (0.014 / (0.014 + edge))
    paint(canvas, torch.ones(1, 3, 1, 1), eye.open * glint)
    within = between(eye.across, -1.08, 1.12, edge / view["eye_width"])
    lashes = line(v - eye.upper + 0.006, 0.024, edge) * within
    paint(canvas, canvas.new_tensor([0.11, 0.08, 0.07])[None, :, None, None], lashes * 0.9)
    rim = line(v - eye.lower - 0.006, 0.016, edge) * within
    paint(canvas, canvas.new_tensor([0.38, 0.2, 0.17])[None, :, None, None], rim * 0.4)


def eye_relief(view: View, x: Tensor, eye: Eyes) -> Tensor:
    """Sockets, lid crease, bags and crow's feet (6, age): b h w."""
    v, edge = view.v, view.edge
    a6, a7 = view.action_unit(6), view.action_unit(7)
    age = view["age"].clamp(min=0)
    within = bump(eye.across, 1.4)
    relief = -0.16 * spot(x - view["eye_distance"] + 0.06, v - view["eye_height"] + 0.02, 0.27, 0.17)
    crease = eye.upper - 0.045 + 0.03 * view.action_unit(5)
    relief -= 0.3 * line(v - crease, 0.018, edge) * within
    relief -= (0.12 + 0.2 * age + 0.45 * a6 + 0.3 * a7) * line(v - eye.lower - 0.05, 0.022, edge) * within
    relief += (0.08 + 0.2 * a6 + 0.1 * a7) * line(v - eye.lower - 0.028, 0.02, edge) * within
    corner = x - view["eye_distance"] - view["eye_width"]
    feet = torch.zeros_like(v)
    for slope in (-0.55, 0.0, 0.55):
        feet += line(v - view["eye_height"] - 0.01 - slope * corner, 0.022, edge)
    return relief - feet * bump(corner - 0.09, 0.1) * (0.42 * a6 + 0.2 * age)


def nose_relief(view: View) -> Tensor:
    """Bridge, tip, wings and nostrils, which stand out and so move more with the yaw; 9 lifts and wrinkles: b h w."""
    v, edge = view.v, view.edge
    u = view.u - 0.16 * view["yaw"].sin() * bump(v - 0.15, 0.45)
    x, a9 = u.abs(), view.action_unit(9)
    tip = view["nose_length"] - 0.04 * view.mean_action_unit(9)
    wing = view["nose_width"] * (1 + 0.18 * view.mean_action_unit(9))
    bridge = view["nose_bridge"] * bump(v - tip + 0.22, 0.4)
    lit = view["light_x"] * 2.2
    relief = bridge * (lit * (bump(u - 0.055, 0.055) - bump(u + 0.055, 0.055)) * 0.16)
    relief += bridge * (0.14 * bump(x, 0.035) - 0.16 * bump(x - 0.07, 0.05))
    relief += 0.2 * spot(x, v - tip + 0.03, 0.07, 0.06)
    relief -= 0.75 * spot(x - 0.5 * wing, v - tip - 0.045, 0.034 + edge * 0.5, 0.02 + edge * 0.5)
    relief -= 0.2 * spot(x, v - tip - 0.075, wing, 0.05)
    away = ((x - wing) * (x - wing) + (v - tip - 0.01) * (v - tip - 0.01)).sqrt_()
    relief -= 0.38 * line(away - 0.045, 0.018, edge) * step(x - wing, -0.03, 0.02)
    top = view["eye_height"] + 0.03
    for row in range(3):
        wrinkle = line(v - top - 0.055 * row + 0.35 * x, 0.024, edge) * bump(x - 0.06, 0.09)
        relief -= 0.42 * a9 * wrinkle
    return relief


@dataclass(frozen=True)
class Mouth:
    """Contours of the lips: all b h w, values of v unless noted."""

    across: Tensor
    """0 on the midline, 1 at the corner."""
    half_width: Tensor
    corner: Tensor
    """v of the corner."""
    upper_outer: Tensor
    upper_inner: Tensor
    lower_inner: Tensor
    lower_outer: Tensor


def mouth(view: View, x: Tensor) -> Mouth:
    """AU 12 pulls the corners up and out, 15 down, 20 out, 14 in and tight; 23 thins the lips, 17 pushes the lower one
    up, 25 parts them, 26 drops the jaw, 9 lifts the upper lip."""
    a9, a12, a14, a15 = view.action_unit(9), view.action_unit(12), view.action_unit(14), view.action_unit(15)
    a17, a20, a23, a25, a26 = (view.mean_action_unit(number) for number in (17, 20, 23, 25, 26))
    side_width = 1 + 0.3 * a12 + 0.04 * a14 + 0.05 * a15
    half_width = view["mouth_width"] * side_width * (1 + 0.32 * a20 - 0.22 * a23 - 0.05 * a17 - 0.16 * a26)
    middle = view["mouth_height"] - 0.02 * view.mean_action_unit(9) - 0.012 * a17 + 0.03 * a26
    shift = view["corner_rest"] - 0.15 * a12 + 0.125 * a15 + 0.03 * a20 - 0.035 * a14
    across = x / half_width
    square = (across * across).clamp_(max=1.6)
    arc, round_arc = (1 - square).clamp_(min=0), (1 - square * square).clamp_(min=0)
    axis = middle + shift * (0.3 * square + 0.7 * square * square) - 0.03 * a17 * arc - 0.015 * a20 * arc
    thin = (1 - 0.6 * a23 - 0.3 * a20 - 0.25 * view.mean_action_unit(12)).clamp_(min=0.2)
    upper_lip = view["lip_thickness"] * 0.8 * thin * arc * (1 - 0.25 * bump(across, 0.28)) * (1 - 0.35 * a9)
    lower_lip = view["lip_thickness"] * 1.15 * (thin + 0.25 * a17) * round_arc
    part = 0.03 * a25 + 0.055 * a25 * view.mean_action_unit(12) + 0.035 * a26 + 0.022 * a20
    upper_inner = axis - part * arc - a9 * (0.028 * arc)
    lower_inner = axis + (0.7 * part + 0.24 * a26) * round_arc - 0.012 * view.mean_action_unit(9) * arc
    return Mouth(
        across=across,
        half_width=half_width,
        corner=middle + shift,
        upper_outer=upper_inner - upper_lip,
        upper_inner=upper_inner,
        lower_inner=lower_inner,
        lower_outer=lower_inner + lower_lip,
    )


def paint_mouth(view: View, canvas: Tensor, lips: Mouth, skin: Tensor) -> None:
    """Lips, teeth, tongue and the dark between; canvas b 3 h w in place, skin b 3 1 1."""
    v, edge = view.v, view.edge
    within = between(lips.across, -1.0, 1.0, edge / view["mouth_width"])
    red = view["lip_redness"][:, None]
    lip = skin * (1 - red * torch.tensor([0.18, 0.5, 0.42])[None, :, None, None]) * 0.92
    upper = between(v, lips.upper_outer, lips.upper_inner, edge) * within
    lower = between(v, lips.lower_inner, lips.lower_outer, edge) * within
    paint(canvas, lip * 0.86, upper)
    paint(canvas, lip, lower)
    opening = between(v, lips.upper_inner, lips.lower_inner, edge) * within
    paint(canvas, canvas.new_tensor([0.16, 0.05, 0.05])[None, :, None, None], opening)
    teeth = between(v, lips.upper_inner, lips.upper_inner + 0.06, edge) * bump(lips.across, 1.1)
    ivory = canvas.new_tensor([0.93, 0.89, 0.82])[None, :, None, None]
    paint(canvas, ivory, opening * teeth * 0.95)
    tongue = spot(lips.across, v - lips.lower_inner, 0.75, 0.1)
    paint(canvas, canvas.new_tensor([0.62, 0.27, 0.26])[None, :, None, None], opening * tongue)
    slit = line(v - (lips.upper_inner + lips.lower_inner) * 0.5, 0.018 + 0.008 * view.mean_action_unit(23), edge)
    closed = 1 - step(lips.lower_inner - lips.upper_inner, 0.01, 0.05)
    paint(canvas, lip * 0.3, slit * closed * between(lips.across, -1.04, 1.04, edge / view["mouth_width"]) * 0.9)


def mouth_relief(view: View, x: Tensor, lips: Mouth) -> Tensor:
    """Nasolabial fold (12, 9, age), dimple (14), lines at the corners (15, 20), philtrum, cheeks (6, 12): b h w."""
    v, edge = view.v, view.edge
    a6, a9, a12, a14 = view.action_unit(6), view.action_unit(9), view.action_unit(12), view.action_unit(14)
    age = view["age"].clamp(min=0)
    top = view["nose_length"] - 0.05
    down = (v - top) / (lips.corner - top + 0.02)
    reach = down.clamp(0, 1.2)
    course = view["nose_width"] + 0.045 + (lips.half_width - view["nose_width"] + 0.02) * reach * reach
    fold = line(x - course - 0.02 * a12, 0.038, edge) * bump(down - 0.55, 0.75)
    relief = -fold * (0.06 + 0.22 * age + 0.38 * a12 + 0.4 * a9 + 0.12 * view.action_unit(15))
    relief += spot(x - 0.36, v - 0.2 + 0.05 * a12, 0.2, 0.17) * (0.05 + 0.16 * a12 + 0.14 * a6)
    beside = x - lips.half_width - 0.03
    relief -= spot(beside - 0.01, v - lips.corner, 0.05 + edge * 0.4, 0.12) * (0.04 + 0.42 * a14)
    relief += spot(beside - 0.1, v - lips.corner, 0.09, 0.13) * 0.2 * a14
    under = v - lips.corner - 0.055
    relief -= (
        line(beside + 0.02 - 0.3 * under, 0.024, edge) * bump(under, 0.09) * (0.15 * age + 0.55 * view.action_unit(15))
    )
    relief -= line(beside - 0.05, 0.02, edge) * bump(v - lips.corner, 0.14) * 0.4 * view.action_unit(20)
    return relief - 0.1 * line(x - 0.025, 0.014, edge) * between(v, view["nose_length"] + 0.1, lips.upper_outer, edge)


def chin_relief(view: View, x: Tensor, lips: Mouth) -> Tensor:
    """The hollow below the lower lip and the chin, which 26 lowers and 17 pushes up and dimples: b h w."""
    v, edge = view.v, view.edge
    a17 = view.mean_action_unit(17)
    below = lips.lower_outer + 0.035
    relief = -(0.2 + 0.3 * a17) * line(v - below, 0.05, edge) * bump(x, 0.22)
    chin = view["face_height"] - 0.16 + 0.13 * view.mean_action_unit(26) - 0.03 * a17
    relief += (0.1 + 0.14 * a17) * spot(x, v - chin, 0.2, 0.12)
    pits = torch.zeros_like(v)
    for across, down in ((0.0, -0.035), (0.075, -0.02), (0.035, 0.03), (0.12, 0.03)):
        pits += spot(x - across, v - chin - down, 0.035 + edge * 0.3, 0.028 + edge * 0.3)
    return relief - 0.22 * a17 * pits


def glasses(view: View, canvas: Tensor, x: Tensor) -> None:
    """Frames around the eyes, for faces whose `glasses` lies above zero; canvas b 3 h w in place."""
    worn = (view["glasses"] > 0).float()
    across, down = (x - view["eye_distance"]) / 0.215, (view.v - view["eye_height"] - 0.02) / 0.165
    across, down = across * across, down * down
    rim = ((across * across + down * down).sqrt_().sqrt_() - 1) * 0.18
    bridge = line(view.v - view["eye_height"] + 0.01, 0.022, view.edge) * fill(
        x - view["eye_distance"] + 0.2, view.edge
    )
    frame = torch.maximum(line(rim, 0.028, view.edge), bridge)
    shade = canvas.new_tensor([0.12, 0.1, 0.1])[None, :, None, None] + 0.25 * (view["glasses"][:, None] - 0.5).clamp(0)
    paint(canvas, canvas.new_tensor([0.85, 0.9, 0.95])[None, :, None, None], fill(rim, view.edge) * worn * 0.1)
    paint(canvas, shade, frame * worn * 0.85)
