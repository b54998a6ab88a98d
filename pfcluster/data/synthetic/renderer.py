"""Render faces: background, hair, head, features, light, camera.

    images = render(dataset.faces(range(64)), size=48)      # uint8, 64 3 48 48

Legend: b faces, h w pixels, c colours (3). Coordinates as in faces.py. Colours are in [0, 1] until the last line.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pfcluster.data.synthetic import features
from pfcluster.data.synthetic.faces import Faces
from pfcluster.data.synthetic.geometry import View, between, bump, camera_view, fill, paint, spot, step

SMALLEST, LARGEST = 32, 224
SKIN = ((0.96, 0.83, 0.76), (0.91, 0.73, 0.63), (0.80, 0.61, 0.49), (0.60, 0.42, 0.32), (0.38, 0.26, 0.20))
HAIR = ((0.07, 0.06, 0.06), (0.20, 0.12, 0.08), (0.36, 0.21, 0.12), (0.55, 0.27, 0.12), (0.80, 0.62, 0.34))
IRIS = ((0.20, 0.11, 0.06), (0.36, 0.22, 0.11), (0.34, 0.40, 0.22), (0.30, 0.45, 0.62), (0.42, 0.50, 0.55))
PIXELS_AT_ONCE = 64 * 48 * 48
"""Chosen to fit into the CPU's cache."""


def render(faces: Faces, size: int) -> Tensor:
    """Render faces: -> uint8 b c size size. Raises ValueError if `size` lies outside 32..224."""
    if not SMALLEST <= size <= LARGEST:
        raise ValueError(f"size must lie in {SMALLEST}..{LARGEST} pixels, got {size}")
    chunk = max(1, PIXELS_AT_ONCE // size**2)
    images = torch.empty(len(faces), 3, size, size, dtype=torch.uint8)
    for start in range(0, len(faces), chunk):
        rows = slice(start, start + chunk)
        images[rows] = render_chunk(camera_view(faces[rows], size))
    return images


def render_chunk(view: View) -> Tensor:
    """Render one chunk of faces: -> uint8 b c h w."""
    skin, hair = skin_colour(view), hair_colour(view)
    clothes = colour(view, "clothes")
    canvas = background(view)
    hair_behind(view, canvas, hair)
    neck(view, canvas, skin, clothes)
    head(view, canvas, skin, hair)
    hair_in_front(view, canvas, hair)
    occluder(view, canvas, skin, clothes)
    return camera(view, canvas)


def between_stops(stops: tuple[tuple[float, float, float], ...], place: Tensor) -> Tensor:
    """Interpolate colours between evenly spaced stops; `place` in [0, 1]: b 1 1 -> b c 1 1."""
    table = torch.tensor(stops)
    position = place.flatten().clamp(0, 1) * (len(stops) - 1)
    first = position.long().clamp(max=len(stops) - 2)
    share = (position - first)[:, None]
    return (table[first] + share * (table[first + 1] - table[first]))[:, :, None, None]


def colour(view: View, name: str) -> Tensor:
    """Colour of three nuisance parameters: b c 1 1."""
    return torch.stack([view[f"{name}_{part}"] for part in ("red", "green", "blue")], 1)


def skin_colour(view: View) -> Tensor:
    """b c 1 1."""
    blush = view["skin_redness"]
    return between_stops(SKIN, view["skin_tone"]) + torch.stack([blush, -0.5 * blush, -0.7 * blush], 1)


def hair_colour(view: View) -> Tensor:
    """b c 1 1: darker where the skin is dark, grey with age."""
    natural = between_stops(HAIR, view["hair_colour"] * (1 - 0.75 * view["skin_tone"]))
    grey = ((view["age"] - 0.6) * 2.2).clamp(0, 0.9)[:, None]
    return natural + grey * (0.72 - natural)


def background(view: View) -> Tensor:
    """A linear gradient with one vertical stripe, blurred: b c h w."""
    ramp = view.x * view["background_angle"] + view.y * (1 - view["background_angle"].abs())
    stripe = bump(view.x - view["background_x"], 0.4)
    tone = view["background_contrast"] * (ramp - 0.8 * stripe)
    full = colour(view, "background")
    grey = full.mean(1, keepdim=True)
    return grey + 0.45 * (full - grey) + tone[:, None]


def hair_behind(view: View, canvas: Tensor, hair: Tensor) -> None:
    """Hair around the head, down to `hair_length`: canvas b c h w in place."""
    amount = view["hair_amount"].clamp(min=0)
    volume = 0.02 + 0.16 * amount
    above = (view.y + 0.15).clamp(max=0)
    across, up = view.x / (view["face_width"] + volume), above / (view["face_height"] + volume - 0.15)
    outline = ((across * across + up * up).sqrt_() - 1) * view["face_width"]
    worn = (amount > 0).float()
    alpha = fill(outline, view.edge * 1.5) * fill(view.y - view["hair_length"], view.edge * 2) * worn
    paint(canvas, hair * (0.62 + 0.3 * strands(view))[:, None], alpha)


def strands(view: View) -> Tensor:
    """A soft stripe pattern along the hair: b h w in [0, 1]."""
    phase = view.u * (4 + 3 * view["hair_curl"]) + view["hair_curl"] * view.v * view.v * 2 + view["hairline_slope"] * 8
    wave = phase - phase.floor()
    wave = 4 * wave * (1 - wave)
    return 0.5 * wave + 0.5 * bump(view.v + 0.75, 0.35)


def neck(view: View, canvas: Tensor, skin: Tensor, clothes: Tensor) -> None:
    """Neck and shoulders below the head: canvas b c h w in place."""
    throat = fill(view.x.abs() - 0.36, view.edge) * step(view.y, 0.3, 0.35)
    paint(canvas, skin * 0.62, throat)
    shoulders = view.y - 0.98 - 0.25 * view.x * view.x + 0.1 * bump(view.x.abs() - 0.4, 0.2)
    paint(canvas, clothes * 0.8, fill(-shoulders, view.edge))


def head_outline(view: View) -> Tensor:
    """Roughly the distance from the head's outline, negative inside: b h w. The jaw drops with AU 26."""
    lower = step(view.y, 0.0, 1.0)
    square = 1 + 0.16 * view["chin_squareness"] * bump(view.y - 0.6, 0.5)
    width = view["face_width"] * square * (1 - view["jaw_taper"] * lower)
    height = (
        view["face_height"]
        + 0.13 * view.mean_action_unit(26) * step(view.y, 0.0, 0.2)
        - 0.02 * view.mean_action_unit(17)
    )
    across, down = view.x / width, view.y / height
    return ((across * across + down * down).sqrt_() - 1) * view["face_width"]


def head(view: View, canvas: Tensor, skin: Tensor, hair: Tensor) -> None:
    """Ears, skin and features under the light: canvas b c h w in place."""
    ear = view.x.abs() - view["face_width"] - 0.01
    ear_light = 0.78 - 0.2 * bump(ear - 0.01, 0.04)
    paint(canvas, skin * ear_light[:, None], fill(spot_outline(ear, view.y - 0.06, 0.075, 0.17), view.edge))

    x = view.u.abs()
    brow, eye, lips = features.brows(view, x), features.eyes(view, x), features.mouth(view, x)
    face = skin.expand(canvas.shape).clone()
    blush(view, face, x, hair, lips)
    features.paint_brows(view, face, brow, hair)
    features.paint_mouth(view, face, lips, skin)
    relief = features.forehead_relief(view, x, brow) + features.eye_relief(view, x, eye)
    relief += features.nose_relief(view)
    relief += features.mouth_relief(view, x, lips) + features.chin_relief(view, x, lips)
    face = shade(view, face, relief)
    eyeball = face.clone()
    features.paint_eyes(view, eyeball, eye, x, between_stops(IRIS, view["eye_colour"] * (1 - 0.8 * view["skin_tone"])))
    face = face + (eyeball - face) * (0.55 + 0.45 * light(view).clamp(0, 1))[:, None]
    features.glasses(view, face, x)
    paint(canvas, face, fill(head_outline(view), view.edge))


def spot_outline(x: Tensor, y: Tensor, width: float, height: float) -> Tensor:
    """Roughly the distance from an ellipse, negative inside: b h w."""
    across, down = x / width, y / height
    return ((across * across + down * down).sqrt_() - 1) * min(width, height)


def blush(view: View, face: Tensor, x: Tensor, hair: Tensor, lips: features.Mouth) -> None:
    """Redder cheeks and nose, and the beard's shadow: face b c h w in place."""
    red = 0.14 * spot(x - 0.36, view.v - 0.18, 0.3, 0.26) + 0.14 * spot(x, view.v - 0.22, 0.12, 0.14)
    face *= 1 - red[:, None] * torch.tensor([0.02, 0.5, 0.45])[None, :, None, None]
    around = step(view.v, 0.12, 0.5) * step(x + 0.9 * view.v, 0.5, 0.72)
    lip = between(view.v, lips.upper_outer - 0.03, lips.lower_outer + 0.03, view.edge) * bump(x, lips.half_width * 1.4)
    paint(face, hair * 0.7, around * (1 - lip) * (view["beard"].clamp(min=0) * 0.6))


def light(view: View) -> Tensor:
    """Lambertian shading of the head's ellipsoid: b h w, about 1 towards the light."""
    toward = view.x / view["face_width"] * view["light_x"] + view.y / view["face_height"] * view["light_y"]
    facing = (0.25 + 0.75 * view.depth + 0.6 * toward).clamp_(0, 1.3)
    return view["ambient"] + (1 - view["ambient"]) * facing


def shade(view: View, face: Tensor, relief: Tensor) -> Tensor:
    """Apply light and relief to the skin; shadows of the relief are reddish: b c h w."""
    tint = torch.tensor([0.85, 1.05, 1.12])[None, :, None, None]
    return face * (1 + relief.clamp(-0.85, 0.5)[:, None] * tint).clamp_(min=0.08) * light(view)[:, None]


def hair_in_front(view: View, canvas: Tensor, hair: Tensor) -> None:
    """The hair above the hairline and beside the temples: canvas b c h w in place."""
    worn = (view["hair_amount"] > 0).float()
    temples = 0.75 * (view.u * view.u).clamp(max=0.8) * (1.2 - view["hairline"].abs())
    line_height = view["hairline"] + temples + view["hairline_slope"] * view.u * 0.7
    line_height = line_height + 0.05 * view["hair_curl"] * (strands(view) - 0.5)
    on_head = fill(head_outline(view) - 0.02, view.edge)
    alpha = fill(view.v - line_height, view.edge * 1.5) * on_head * worn
    shade = (0.62 + 0.38 * strands(view)) * (0.5 + 0.5 * light(view))
    paint(canvas, hair * shade[:, None], alpha)


def occluder(view: View, canvas: Tensor, skin: Tensor, clothes: Tensor) -> None:
    """A hand or object in front of faces with `occluder` above zero: canvas b c h w in place."""
    held = (view["occluder"] > 0).float()
    dx, dy = view.x - view["occluder_x"], view.y - view["occluder_y"]
    lean = view["occluder_angle"]
    length = (1 + lean * lean).sqrt()
    along, across = (dy + lean * dx) / length, (dx - lean * dy) / length
    beyond = (along.abs() - view["occluder_length"]).clamp_(min=0)
    outline = (across * across + beyond * beyond).sqrt_() - view["occluder_width"]
    hand = (view["occluder_skin"] > 0.5).float()[:, None]
    tone = clothes + hand * (skin * 0.9 - clothes)
    round_light = 0.65 + 0.35 * bump(across + 0.05, view["occluder_width"] * 1.6)
    paint(canvas, tone * round_light[:, None], fill(outline, view.edge) * held)


def camera(view: View, canvas: Tensor) -> Tensor:
    """Apply exposure, white balance, noise and rounding: b c h w -> uint8 b c h w."""
    warmth = view["warmth"]
    balance = torch.stack([1 + warmth, torch.ones_like(warmth), 1 - warmth], 1) * view["exposure"][:, None]
    canvas = canvas * balance + (noise(view) * view["noise"].clamp(min=0) * 3.4)[:, None]
    return canvas.clamp_(0, 1).mul_(255).add_(0.5).to(torch.uint8)


def noise(view: View) -> Tensor:
    """Uniform noise in [-1/2, 1/2), a hash of the pixel's number and the face's key: b h w."""
    height, width = view.x.shape[1:]
    number = torch.arange(height * width, dtype=torch.int32).view(1, height, width)
    key = (view["noise_key"] * 2**24).to(torch.int32)
    mixed = (number * 747796405 + key * 277803737) ^ (key >> 5)
    mixed = (mixed ^ ((mixed >> 15) & 0x1FFFF)) * 739982445
    mixed = mixed ^ ((mixed >> 13) & 0x7FFFF)
    return (mixed & 0xFFFF).float() / 2**16 - 0.5
