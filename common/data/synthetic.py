"""Two synthetic data sets, shapes10 and shapes100, that stand in for CIFAR (and, in grey, for MNIST) in demo and tests.

Why: a pruning comparison needs a task a small network learns in minutes but not perfectly, and it should run
without a download. The images come from a fixed seed, so every run sees the same ones.

    generate("shapes10")["x_train"]     uint8 (10000, 32, 32, 3); grey=True: (10000, 28, 28)
    generate("shapes10")["y_train"]     uint8 (10000,); the classes are exactly balanced and in shuffled order
    ... "x_test", "y_test"          the same for 2,000 test images

shapes10: one form (disc, ring, square, triangle, cross, star, crescent, two bars, L, heart) of random place, size,
turn and color, over a wavy background, with stray patches below it and one on top.
shapes100: a large form and a small one diagonally below it; class = 10 * large + small.
No two classes are mirror images, so random flips are safe, and colors are chosen independently of the class. In grey
the forms are bright on dark, and in shapes100 they move and turn less, as an MLP does not learn large displacements.

Difficulty: on shapes10 a VGG-13 with batch norm reaches about 89 % in 5 epochs on 4,000 images; in grey, LeNet-5
about 93 % and LeNet-300-100 about 65 % in 10 epochs on all of them.
Time: 0.4 to 2 s a data set on one core. Only +, -, *, /, sqrt, floor and comparisons touch the pixels, and sines are
rounded before use, so the bytes do not depend on a platform's maths library or on numpy's vectorised kernels.
"""

import math

import numpy as np

CLASSES = {"shapes10": 10, "shapes100": 100}
BATCH = 250  # images made at once, few enough for the processor's cache; changing it changes the images

# How hard each data set is: radius of the form in pixels, greatest shift of its centre, greatest turn in radians,
# stray patches below the form, their opacity, and amplitude of the pixel noise (full scale = 1).
LEVELS = {
    ("shapes10", False): ((8.0, 12.0), 2.5, 0.45, 2, 0.6, 0.20),
    ("shapes100", False): ((7.5, 9.0), 1.0, 0.5, 2, 0.4, 0.15),
    ("shapes10", True): ((5.5, 10.0), 4.0, 0.8, 3, 0.8, 0.60),
    ("shapes100", True): ((6.5, 8.0), 1.5, 0.4, 2, 0.6, 0.50),
}


def generate(name, grey=False):
    """The data set `name` as a dict of uint8 arrays x_train, y_train, x_test, y_test; always the same bytes."""
    rng = np.random.Generator(np.random.PCG64(CLASSES[name] + int(grey)))
    data = {}
    for part, count in (("train", 10000), ("test", 2000)):
        # Not rng.permutation, whose stream may change between numpy versions.
        labels = (np.arange(count) % CLASSES[name])[np.argsort(rng.random(count), kind="stable")]
        chunks = [_images(rng, labels[i:i + BATCH], name, grey) for i in range(0, count, BATCH)]
        data[f"x_{part}"] = np.concatenate(chunks)
        data[f"y_{part}"] = labels.astype(np.uint8)
    return data


def _images(rng, labels, name, grey):
    (low, high), shift, turn, patches, opacity, noise = LEVELS[name, grey]
    n, side, depth = len(labels), 28 if grey else 32, 1 if grey else 3
    mid = (side - 1) / 2
    axis = np.arange(side, dtype=np.float32) - mid
    x, y = axis[None, None, :], axis[None, :, None]

    def uniform(a, b, channels=None):
        shape = (n, 1, 1) if channels is None else (n, channels, 1, 1)
        return (a + (b - a) * rng.random(shape)).astype(np.float32)

    def local(cx, cy, angle, size):
        turns = (angle, angle - math.pi / 2)
        cos, sin = (np.round(np.cos(t.astype(np.float64)), 5).astype(np.float32) for t in turns)
        return ((x - cx) * cos + (y - cy) * sin) / size, ((y - cy) * cos - (x - cx) * sin) / size

    def patch(spread, a, b):
        u, v = local(uniform(-spread, spread), uniform(-spread, spread), uniform(0, 6.3), 1.0)
        return np.clip(0.5 - _box(u, v, uniform(*a), uniform(*b)), 0, 1)

    ground = uniform(0.05, 0.25, 1) if grey else uniform(0, 1, 3)

    def color():
        # In grey: bright. Otherwise every channel is a quarter or more away from the background's, so that the form
        # is always visible although neither color says anything about the class.
        if grey:
            return uniform(0.55, 1, 1)
        other = ground + uniform(0.25, 0.75, 3)
        return other - np.floor(other)

    # Triangle waves, not sines: same look, exact arithmetic.
    wave, _ = local(uniform(-16, 16), uniform(-16, 16), uniform(0, 6.3), uniform(5, 14))
    wave = np.abs(wave - np.floor(wave) - 0.5) - 0.25
    image = ground + (uniform(0, 0.4, depth) if grey else uniform(-0.8, 0.8, depth)) * wave[:, None]
    for _ in range(patches):
        shade = uniform(0, 0.7, 1) if grey else uniform(0, 1, 3)
        _paint(image, opacity * patch(mid, (1, 5), (1, 4)), shade)

    def form(kinds, cx, cy, scale=1.0):
        size = scale * uniform(low, high)
        u, v = local(cx, cy, uniform(-turn, turn), size)
        for kind, distance in enumerate(FORMS.values()):
            pick = kinds == kind
            u[pick] = distance(u[pick], v[pick])
        _paint(image, np.clip(0.5 - u * size, 0, 1), color())

    cx, cy = uniform(-shift, shift), uniform(-shift, shift)
    if name == "shapes10":
        form(labels, cx, cy)
        _paint(image, patch(8, (2, 5), (0.5, 1.5)), uniform(0, 0.7, 1) if grey else uniform(0, 1, 3))
    else:
        # The large form moves up and to one side to leave room for the small one, which is always diagonally below.
        # The side is random, so a mirror image stays in its class.
        way = np.where(uniform(0, 1) < 0.5, -1, 1).astype(np.float32)
        form(labels // 10, cx - 3.5 * way, cy - 3.5)
        form(labels % 10, cx + 8 * way, cy + 8, scale=0.6)

    image += noise * (rng.random(image.shape, dtype=np.float32) - 0.5)
    image = (np.clip(image, 0, 1) * 255).astype(np.uint8)
    return image[:, 0] if grey else np.ascontiguousarray(image.transpose(0, 2, 3, 1))


def _paint(image, mask, color):
    image += mask[:, None] * (color - image)


def _length(u, v):
    return np.sqrt(u * u + v * v)


def _box(u, v, width, height):
    return np.maximum(np.abs(u) - width, np.abs(v) - height)


def _star(u, v):
    # Five half-planes bound a pentagon; the points inside all but at most one of them make the five-pointed star.
    turns = [(0.4 * k + 0.5) * math.pi for k in range(5)]
    return np.sort([u * round(math.cos(t), 5) + v * round(math.sin(t), 5) for t in turns], axis=0)[-2] - 0.4


def _heart(u, v):
    # A square on its corner and a disc on each of its two upper sides, which abs() folds into one.
    p, q = 0.7071 * (np.abs(u) + v - 0.15), 0.7071 * (np.abs(u) - v + 0.15)
    return np.minimum(_box(p, q, 0.5, 0.5), _length(p, q - 0.5) - 0.5)


# For each form, in the order of the labels: about the distance from (u, v), v pointing down, to its edge at radius 1;
# negative inside.
FORMS = {
    "disc": lambda u, v: _length(u, v) - 0.85,
    "ring": lambda u, v: np.abs(_length(u, v) - 0.7) - 0.22,
    "square": lambda u, v: _box(u, v, 0.75, 0.75),
    "triangle": lambda u, v: np.maximum(0.866 * np.abs(u) - 0.5 * v, v) - 0.5,
    "cross": lambda u, v: np.minimum(_box(u, v, 0.27, 0.95), _box(u, v, 0.95, 0.27)),
    "star": _star,
    "crescent": lambda u, v: np.maximum(_length(u, v) - 0.95, 0.75 - _length(u - 0.45, v)),
    "bars": lambda u, v: _box(u, np.abs(v) - 0.5, 0.85, 0.22),
    "ell": lambda u, v: np.minimum(_box(u + 0.5, v, 0.25, 0.85), _box(u, v - 0.6, 0.75, 0.25)),
    "heart": _heart,
}
