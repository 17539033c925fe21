"""What the reader is given: captions in groups, each behind the question, by the rules of LAVIS's forward_qa."""

from __future__ import annotations

from collections.abc import Sequence

from .._base.arguments import whole_number


def grouped(captions: Sequence[str], num_captions: int, num_captions_fid: int) -> list[str]:
    """Captions of one question, `num_captions_fid` to a text.

    The last text may have fewer, where there are `num_captions` captions; where there are not so many, an unfinished text is
    left out, as in LAVIS.

    Raises
    ------
    ValueError
        There is no caption, or not enough for one text.
    """
    for name, number in (("num_captions", num_captions), ("num_captions_fid", num_captions_fid)):
        if whole_number(number, name) < 1:
            raise ValueError(f"{name}: got {number}, expected at least 1")
    if not captions:
        raise ValueError("captions: the list is empty; the reader needs at least one")
    used = [f"{caption.strip()}. " for caption in captions[:num_captions]]
    groups = ["".join(used[start : start + num_captions_fid]) for start in range(0, len(used), num_captions_fid)]
    if len(used) < num_captions and len(used) % num_captions_fid:
        groups.pop()
    if not groups:
        raise ValueError(
            f"captions: {len(captions)}, too few for one text of {num_captions_fid} (num_captions_fid); "
            f"expected {num_captions} (num_captions)"
        )
    return groups
