"""Frame plans: what the windows of a whole video cost, and which of them may run at once. Pure Python, as the schedules."""

import itertools
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from mcvd_diffusers.frame_schedules import Window


@dataclass(frozen=True)
class FramePlan:
    """
    The windows of a whole video, made ahead: what they cost, and which may run at once. Make it with `FramePlan.of`.

    Args:
        num_frames (`int`): Frames of the whole video, given ones included.
        given (`tuple[int, ...]`): Positions of the given frames, in increasing order.
        windows (`tuple[Window, ...]`): In the order of the schedule. Windows are called by their number in it.

    Example:
        >>> windows = frame_schedule("like-google", 40, observed=range(1), max_frames=10)
        >>> plan = FramePlan.of(windows, 40, observed=range(1))
        >>> plan.waves()
        [[0], [1, 2, 3], [4, 5, 6]]
    """

    num_frames: int
    given: tuple[int, ...]
    windows: tuple[Window, ...]

    @classmethod
    def of(cls, windows: Iterable[Window], num_frames: int, *, observed: Collection[int]) -> "FramePlan":
        """
        The plan of a schedule that ends and does not look at frames: any but adaptive ones.

        Args:
            windows (`Iterable[Window]`): What a schedule gives.
            num_frames (`int`): As the schedule was given it.
            observed (`Collection[int]`): As the schedule was given it.

        Returns:
            `FramePlan`: The plan, checked.

        Raises:
            ValueError: As [`FramePlan.check`].
        """
        plan = cls(num_frames, tuple(sorted(set(observed))), tuple(windows))
        plan.check()
        return plan

    def check(self) -> None:
        """
        Whether the windows, one after the other, make the video.

        Raises:
            ValueError: If a window reads a frame that is neither given nor made before, makes one that is given or
                made already or not of this video, or if a frame is missing in the end.
        """
        known = set(self.given)
        for number, window in enumerate(self.windows):
            if unknown := sorted(set(window.observed) - known):
                raise ValueError(
                    f"Window {number} reads frames {unknown}, which are neither given nor made before it."
                )
            if again := sorted(p for p, count in Counter(window.observed).items() if count > 1):
                raise ValueError(f"Window {number} reads frames {again} more than once.")
            if not window.latent:
                raise ValueError(f"Window {number} makes no frame: leave it out.")
            repeated = {position for position, count in Counter(window.latent).items() if count > 1}
            if again := sorted(known & set(window.latent) | repeated):
                raise ValueError(f"Window {number} makes frames {again}, which are there already.")
            known.update(window.latent)
        if outside := sorted(known - set(range(self.num_frames))):
            raise ValueError(
                f"`num_frames` must be more than every position: {self.num_frames} frames have no {outside}."
            )
        if missing := sorted(set(range(self.num_frames)) - known):
            raise ValueError(f"No window makes frames {missing}, and they are not given.")

    def waves(self) -> list[list[int]]:
        """
        Windows by how long they must wait, each in the earliest wave that it can be in.

        Returns:
            `list[list[int]]`: Numbers of windows. Those of a wave read only what is given or made in waves before, so
            they may run in any order or as batches. There are as many waves as windows in the longest chain of which
            each reads what the one before makes.
        """
        wave_of: dict[int, int] = {}  # of the window that makes a frame
        waves: list[list[int]] = []
        for number, window in enumerate(self.windows):
            wave = max((wave_of[position] + 1 for position in window.observed if position in wave_of), default=0)
            wave_of.update(dict.fromkeys(window.latent, wave))
            waves += [[] for _ in range(wave + 1 - len(waves))]
            waves[wave].append(number)
        return waves

    def batches(self) -> list[list[int]]:
        """
        Waves, cut by shape.

        Returns:
            `list[list[int]]`: Numbers of windows, wave after wave. Those of a batch belong to one wave and have the
            same numbers of observed and of latent frames.
        """
        batches = []
        for wave in self.waves():
            by_shape: dict[tuple[int, int], list[int]] = {}
            for number in wave:
                window = self.windows[number]
                by_shape.setdefault((len(window.observed), len(window.latent)), []).append(number)
            batches += by_shape.values()
        return batches

    def num_network_calls(
        self,
        num_inference_steps: int,
        *,
        num_resamples: int = 1,
        calls_per_step: int = 1,
        is_batched: bool = False,
    ) -> int:
        """
        How often the network is called for one video.

        Args:
            num_inference_steps (`int`): Denoising steps of a window.
            num_resamples (`int`, *optional*, defaults to 1): How often each step is made.
            calls_per_step (`int`, *optional*, defaults to 1): Calls for one step: 2 with guidance that calls twice.
            is_batched (`bool`, *optional*, defaults to `False`): Whether each of [`FramePlan.batches`] is one call.

        Returns:
            `int`: The number of calls.
        """
        num_runs = len(self.batches() if is_batched else self.windows)
        return num_runs * num_inference_steps * num_resamples * calls_per_step

    def num_kept(self, *, is_in_time_order: bool = False, is_batched: bool = False) -> int:
        """
        The most frames that must be held at once.

        A window holds the frames that it reads and makes. A frame is forgotten after the last window that reads it, so
        a given one that no window reads is not held.

        Args:
            is_in_time_order (`bool`, *optional*, defaults to `False`):
                Whether frames are given out in time order: they are then kept until all before them are finished too.
            is_batched (`bool`, *optional*, defaults to `False`): Whether the windows of a batch run at once.

        Returns:
            `int`: Frames of one video, given ones that are still needed included.
        """
        runs = self.batches() if is_batched else [[number] for number in range(len(self.windows))]
        made = dict.fromkeys(self.given, -1)  # in which run
        needed = dict(made)  # until which run
        for run, numbers in enumerate(runs):
            for window in (self.windows[number] for number in numbers):
                made.update(dict.fromkeys(window.latent, run))
                needed.update(dict.fromkeys((*window.observed, *window.latent), run))
        changes, latest = Counter(), -1
        for position in sorted(made):
            latest = max(latest, made[position])
            end = max(needed[position], latest) if is_in_time_order else needed[position]
            changes[max(made[position], 0)] += end >= 0
            changes[end + 1] -= end >= 0
        return max(itertools.accumulate(changes[run] for run in range(len(runs))), default=0)

    def describe(self) -> str:
        """
        The plan in a few lines.

        Returns:
            `str`: Lines with the numbers of frames, windows, waves and batches, and of frames held at once.
        """
        num_made = self.num_frames - len(self.given)
        lines = [f"{self.num_frames} frames: {len(self.given)} given, {num_made} made by {len(self.windows)} windows"]
        if self.windows:
            sizes = [(len(window.observed), len(window.latent)) for window in self.windows]
            num_observed, num_latent = map(max, zip(*sizes))
            waves = self.waves()
            num_kept, num_in_order = self.num_kept(), self.num_kept(is_in_time_order=True)
            lines += [
                f"windows of at most {max(map(sum, sizes))} frames: up to {num_observed} observed, up to {num_latent} latent",
                f"longest chain: {len(waves)} windows, each of which waits for the one before",
                f"windows that can run at once: {max(map(len, waves))} at most; {len(self.batches())} batches of equal shape",
                f"frames held at once: {num_kept}"
                + (f", or {num_in_order} to give them out in time order" if num_in_order != num_kept else ""),
            ]
        return "\n".join(lines)
