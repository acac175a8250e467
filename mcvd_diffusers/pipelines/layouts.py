"""
Where a window's frames stand before a network, as its config says what it can read; and whether it was trained so.

There are three kinds of network. Of blocks: with a number of past and future frames around each (`MCVDUNet2DModel`). Of windows,
with any frames in them (`SpaceTimeUNetModel`); [`takes_windows`] tells these from blocks. And of windows of neighbouring frames,
all of which are made, while a few of them, or none, are shown beside them ([`shows_beside`]: `LGCVDUNet2DModel`,
`RVDUNet2DModel`).
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from mcvd_diffusers.frame_schedules import Window
from mcvd_diffusers.masking import FrameRole


@dataclass(frozen=True)
class Layout:
    """
    A window as a network sees it.

    Args:
        positions (`tuple[int, ...]`): Position in the video of each of its frames; those before the video are negative.
        roles (`tuple[FrameRole, ...]`): Role of each. More frames may be LATENT than are asked for.
        made (`tuple[int, ...]`): Where the window's latent frames stand, in their order.
    """

    positions: tuple[int, ...]
    roles: tuple[FrameRole, ...]
    made: tuple[int, ...]

    def positions_of(self, role: FrameRole) -> list[int]:
        """Positions of the frames that have a role, in the order of the slots."""
        return [position for position, its in zip(self.positions, self.roles) if its == role]

    @property
    def sides(self) -> tuple[str, ...]:
        """For each frame `"past"` if it is before all that the network makes, else `"future"`."""
        first = min(self.positions_of(FrameRole.LATENT))
        return tuple("past" if position < first else "future" for position in self.positions)


def takes_windows(config: Mapping) -> bool:
    """Whether a network, by its config, takes windows of any frames; else it has a past, a block and a future."""
    return "max_frames" in config


def shows_beside(config: Mapping) -> bool:
    """Whether a network makes all frames of its windows, and is shown given ones in slots of their own."""
    return "num_context_frames" in config


def num_made(config: Mapping) -> int:
    """Frames that each window adds to a long video, by a network's config; of a network of windows its `max_frames`."""
    if not takes_windows(config):
        return config["num_frames"]
    return config["max_frames"] - config.get("num_context_frames", 0)


def lay_out(window: Window, config: Mapping, *, may_replace: bool = False) -> Layout:
    """
    Where a window's frames stand for a network, as its config says what it can read.

    * A network of past, block and future (`num_past_frames`, ...) reads consecutive frames. A window with fewer latent
      frames than its block lies at the block's start, or, if it reads frames after itself, at its end.
    * A network that is shown frames beside its window (`num_context_frames`) has slots for these, which may be ABSENT, and makes
      all `max_frames` of the window.
    * A network of windows (`max_frames`) reads any frames if it was trained with gaps between them (`has_frame_gaps`), observed
      ones first. Else it reads consecutive frames, too.

    Frames that have to be between others, but are not asked for, are made and thrown away.

    Args:
        window ([`Window`]): The window.
        config (`Mapping`): Of the network.
        may_replace (`bool`, *optional*, defaults to `False`):
            Whether observed frames may stand where the network makes frames, since they are put in their place.

    Returns:
        [`Layout`]: The window as the network sees it.

    Raises:
        ValueError: If the window's frames are not where the network could read or make them.
    """
    asked = f"The frame schedule asks for frames {_list(window.latent)} given {_list(window.observed)}; this network"
    if not takes_windows(config):
        past, size, future = (config[f"num_{part}frames"] for part in ("past_", "", "future_"))
        reads_future = bool(window.observed) and max(window.observed) > max(window.latent)
        start = max(window.latent) + 1 - size if reads_future and not may_replace else min(window.latent)
        block = range(start, start + size)
        positions = range(start - past, start + size + future)
        readable = set(positions) if may_replace else set(positions) - set(block)
        if not set(window.latent) <= set(block) or not set(window.observed) <= readable:
            raise ValueError(
                f"{asked} only takes {past} frames before a block of {size} and {future} after it. Leave `frame_schedule` out,"
                f" choose `max_frames` and `step` so that {past} are read at most, or give it Windows of these."
            )
        otherwise = dict.fromkeys(block, FrameRole.LATENT)
    elif shows_beside(config):
        return _beside(window, config, asked)
    else:
        most, frames = config["max_frames"], sorted({*window.observed, *window.latent})
        if len(frames) > most:
            raise ValueError(f"{asked} takes at most {most} frames at once.")
        if config["has_frame_gaps"]:
            positions = (*window.observed, *window.latent)
        else:
            positions = range(frames[0], frames[-1] + 1)
            if len(positions) > most:
                raise ValueError(
                    f"{asked} only takes consecutive frames, at most {most} of them, as it was trained"
                    ' (`unet.config.has_frame_gaps` is False). Choose the `frame_schedule` "autoreg", or a list of Windows.'
                )
        otherwise = dict.fromkeys(positions, FrameRole.LATENT)
    observed = set(window.observed)
    roles = tuple(FrameRole.OBSERVED if p in observed else otherwise.get(p, FrameRole.ABSENT) for p in positions)
    slots = {position: slot for slot, position in enumerate(positions)}
    return Layout(tuple(positions), roles, tuple(slots[position] for position in window.latent))


def _beside(window: Window, config: Mapping, asked: str) -> Layout:
    """A window of which some frames are shown beside it: slots for them, then all its frames, LATENT."""
    num_context, size = config["num_context_frames"], config["max_frames"]
    frames = {*window.observed, *window.latent}
    first = min(frames)
    if len(window.observed) > num_context or max(frames) >= first + size:
        raise ValueError(
            f"{asked} makes {size} neighbouring frames, of which it is given at most {num_context}. Leave `frame_schedule` out,"
            " or give it Windows of these."
        )
    shown = sorted(window.observed)
    num_absent = num_context - len(shown)
    roles = (FrameRole.OBSERVED,) * len(shown) + (FrameRole.ABSENT,) * num_absent + (FrameRole.LATENT,) * size
    made = tuple(num_context + position - first for position in window.latent)
    return Layout((*shown, *[first] * num_absent, *range(first, first + size)), roles, made)


def _list(positions: tuple[int, ...]) -> str:
    """Positions, not all of many."""
    shown = ", ".join(map(str, positions[:6]))
    return f"[{shown}, ... {positions[-1]}]" if len(positions) > 7 else f"[{', '.join(map(str, positions))}]"


# --------------------------------------------------------------------------------------------------------------------
# What the network was trained for


REPLACEMENTS = ("noised", "clean")


def replaced_sides(replacement: str | Mapping[str, str] | None) -> dict[str, str]:
    """
    How given frames before and after those to be made enter, as far as they are replaced.

    Args:
        replacement (`str`, `Mapping` or `None`): As in the pipeline's call.

    Returns:
        `dict[str, str]`: `"past"` and `"future"`, or one of them -> `"noised"` or `"clean"`.
    """
    if replacement is None:
        return {}
    return dict.fromkeys(("past", "future"), replacement) if isinstance(replacement, str) else dict(replacement)


def check_blocks(
    config,
    windows: list[Window],
    layouts: list[Layout],
    *,
    given: Collection[int],
    guided_by: str | None,
    replacement,
    is_open: bool,
) -> None:
    """
    Whether a network of past, block and future was trained with the frames missing that windows leave out.

    Args:
        config: Of the network.
        windows (`list[Window]`), layouts (`list[Layout]`): The windows, and how they stand before it.
        given (`Collection[int]`): Positions of the given frames.
        guided_by (`str`, *optional*): The argument by which given frames are compared with absent ones.
        replacement: As in the pipeline's call.
        is_open (`bool`): Whether further windows follow, which read what these make.

    Raises:
        ValueError: If it was not, with the way out.
    """
    made = [window.latent for window in windows]
    for side in ("past", "future"):
        if side in replaced_sides(replacement):
            continue
        needed, dropped = config[f"num_{side}_frames"], config[f"drop_{side}"]
        num_given = sum(x < min(made[0]) if side == "past" else x > max(made[0]) for x in given) if made else 0
        if num_given and dropped == 1:
            raise ValueError(
                f"`{side}_frames`: this network never had them in training (`unet.config.drop_{side}` is 1); leave"
                " them out."
            )
        if side == "past" and dropped == 1 and needed and is_open:
            raise ValueError(
                f"`num_frames` must be at most {config.num_frames}, one block: this network never had past frames in training"
                " (`unet.config.drop_past` is 1), which further blocks would read."
            )
        if needed == 0 or dropped > 0:
            continue
        for window in windows:
            is_side = [position < min(window.latent) for position in window.observed]
            have = sum(is_side) if side == "past" else len(is_side) - sum(is_side)
            if have < needed:
                raise ValueError(
                    f"This network always had its {needed} {side} frames in training (`unet.config.drop_{side}` is"
                    f" 0), and frames {window.latent[0]} to {window.latent[-1]} would be made with {have} of them."
                    f" `{side}_frames` has {num_given}: pass {needed}, or use a network that was trained with"
                    f" `drop_{side}` > 0" + ("." if side == "past" else ", one block at a time otherwise.")
                )
        if guided_by is not None:
            ways = {"guider": "set `pipe.guider = None`", "guidance_scale": "leave it at 1"}
            raise ValueError(
                f"`{guided_by}` compares with absent frames, which this network never saw absent in training"
                f" (`unet.config.drop_{side}` is 0):"
                f" {ways.get(guided_by, 'leave it out')}."
            )
    if replacement is None:
        return
    for window, layout in zip(windows, layouts):
        block = range(config.num_past_frames, config.num_past_frames + config.num_frames)
        for slot, (position, role, side) in enumerate(zip(layout.positions, layout.roles, layout.sides)):
            if role == FrameRole.OBSERVED and (slot in block) != (side in replaced_sides(replacement)):
                raise ValueError(
                    f"`replacement`: this network makes a block of {config.num_frames} frames, and frame {position} of the"
                    f" window that makes {list(window.latent)} is {'in' if slot in block else 'not in'} it: only given frames"
                    ' in the block are replaced. Pass {"future": ...} and a list of Windows as `frame_schedule`.'
                )


def check_windows(
    config, layouts: list[Layout], *, given: Collection[int], guided_by: str | None, replacement, is_open: bool
) -> None:
    """
    Whether a network of windows was trained with, or without, given frames, as windows need it.

    Args:
        config, layouts, given, guided_by, replacement, is_open: As in [`check_blocks`].

    Raises:
        ValueError: If it was not, with the way out.
    """
    dropped, replaced = config.drop_observed, replaced_sides(replacement)
    way_out = 'pass `replacement="noised"`, with `reconstruction_guidance` of 1 or more.'
    if is_open and dropped == 1 and "past" not in replaced:
        raise ValueError(
            "This network never had given frames in training (`unet.config.drop_observed` is 1), and later windows would read"
            f" what earlier ones make: {way_out}"
        )
    if not layouts and dropped == 0 and not given:
        raise ValueError(
            "This network always had given frames in training (`unet.config.drop_observed` is 0): pass `past_frames`,"
            " `future_frames` or `observed_frames`."
        )
    for layout in layouts:
        made = layout.positions_of(FrameRole.LATENT)
        native = [
            side
            for role, side in zip(layout.roles, layout.sides)
            if role == FrameRole.OBSERVED and side not in replaced
        ]
        if native and dropped == 1:
            raise ValueError(
                f"This network never had given frames in training (`unet.config.drop_observed` is 1), and frames {min(made)} to"
                f" {max(made)} would be made from {len(native)} of them: {way_out}"
            )
        if not native and dropped == 0:
            raise ValueError(
                f"This network always had given frames in training (`unet.config.drop_observed` is 0), and frames {min(made)}"
                f" to {max(made)} would be made from none: pass `past_frames`, `future_frames` or `observed_frames`."
            )
    if guided_by is not None and dropped in (0, 1):
        raise ValueError(
            f"`{guided_by}` compares given with absent frames, and this network never had"
            f" them {'given' if dropped == 1 else 'absent'} in training (`unet.config.drop_observed` is {dropped})."
        )


def check_beside(
    config, layouts: list[Layout], *, given: Collection[int], guided_by: str | None, replacement, is_open: bool
) -> None:
    """
    Whether a network that is shown frames beside its window was trained with, or without, them, as windows need it.

    Args:
        config, layouts, given, guided_by, replacement, is_open: As in [`check_blocks`].

    Raises:
        ValueError: If it was not, with the way out.
    """
    num_context, dropped = config["num_context_frames"], config["drop_observed"]
    if replacement is not None:
        raise ValueError(
            f"`replacement` must be None for this network, which is shown given frames beside those it makes, got"
            f" {replacement!r}: leave it out."
        )
    if guided_by is not None and (num_context == 0 or dropped in (0, 1)):
        raise ValueError(
            f"`{guided_by}` compares given with absent frames, and this network "
            + (
                "is shown none"
                if num_context == 0
                else f"never had them {'given' if dropped == 1 else 'absent'} in training (`unet.config.drop_observed` is"
                f" {dropped})"
            )
            + ": leave it out."
        )
    if dropped == 1 and num_context and (given or is_open):
        raise ValueError(
            "This network never had given frames in training (`unet.config.drop_observed` is 1): it generates one window of"
            f" {config['max_frames']} frames."
        )
    needs_given = dropped == 0 and not given
    if needs_given or (num_context == 0 and 0 not in given):
        raise ValueError(
            "This network always had given frames in training (`unet.config.drop_observed` is 0): pass `past_frames`"
            + (", `future_frames` or `observed_frames`." if num_context else ", one or more.")
        )
    if num_context:
        _check_task_shares(config, layouts, is_open=is_open)


def _check_task_shares(config: Mapping, layouts: list[Layout], *, is_open: bool) -> None:
    """Whether frames were given in training where windows are given them, as `task_shares` says."""
    num_context, size = config["num_context_frames"], config["max_frames"]
    prediction, generation, interpolation, anywhere = config["task_shares"]
    first_ones = list(range(num_context))
    needed = [first_ones] if is_open else []
    for layout in layouts:
        first = layout.positions[num_context]
        needed.append([p - first for p, role in zip(layout.positions, layout.roles) if role == FrameRole.OBSERVED])
    for shown in needed:
        share = anywhere
        if not shown:
            share = generation
        elif shown == first_ones:
            share = prediction + anywhere
        elif shown == [0, size - 1]:
            share = interpolation + anywhere
        if share == 0:
            raise ValueError(
                f"`past_frames`, `future_frames`, `observed_positions`: of the {size} frames of a window this network would be given"
                f" {shown or 'none'} (counted from 0), and never was in training (`unet.config.task_shares` is"
                f" {list(config['task_shares'])}: how often it was given the first {num_context}, none, the first and the last, any). Give"
                " others, or use a network that was trained with these."
            )


def check_holes(layouts: list[Layout], *, guided_by: str, history_guidance) -> None:
    """
    Refuse guidance that would show holes to a network that sees a window whole: without some frames it is a shorter clip.

    Args:
        layouts (`list[Layout]`), guided_by (`str`): As in [`check_blocks`].
        history_guidance: As in the pipeline's call.

    Raises:
        ValueError: If a history leaves out frames between others.
    """
    for layout in layouts:
        observed = [slot for slot, role in enumerate(layout.roles) if role == FrameRole.OBSERVED]
        latent = {slot for slot, role in enumerate(layout.roles) if role == FrameRole.LATENT}
        for chosen in [(), *(x for x, _ in history_guidance or () if x is not None)]:
            kept = latent | {observed[x] for x in chosen if -len(observed) <= x < len(observed)}
            if kept != set(range(min(kept), max(kept) + 1)):
                raise ValueError(
                    f"`{guided_by}` leaves frames out, and this network sees a window whole"
                    f" (its convolutions or attention go through time): without them frames"
                    f" {sorted(layout.positions[slot] for slot in kept)} would have holes between them. Give frames at the"
                    " ends only, and leave out those farthest away, or guide by nothing."
                )
