"""Arguments at the door: questions, samples, arrays of NumPy or torch."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from .tensors import detached
from .types import FloatArray, ImageSize

#: What PnP-VQA's forward_itm reads unless told otherwise.
PNP_VQA_BLOCK = 7


def nearest(given: str, names: Iterable[str]) -> str:
    """The name that is nearest to what was given; "" where none is near."""
    near = difflib.get_close_matches(given.lower(), list(names), 1, 0.6)
    return near[0] if near else ""


def one_line(error: BaseException) -> str:
    """What went wrong, as a person says it: without the number that the system gives it."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


def whole_number(value: Any, argument: str) -> int:
    """An int of Python or NumPy; TypeError for anything else, True and False among it."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{argument}: expected a whole number, got {type(value).__name__}")
    return int(value)


def whole_numbers(values: Any, argument: str) -> list[int]:
    """Several of them; TypeError for anything else."""
    if not isinstance(values, Iterable):
        raise TypeError(f"{argument}: expected several whole numbers, got {type(values).__name__}")
    return [whole_number(value, argument) for value in values]


def height_and_width(size: ImageSize) -> tuple[int, int]:
    """A square's side twice, or (height, width) as it is."""
    return size if isinstance(size, tuple) else (size, size)


def image_size(size: Any, argument: str) -> ImageSize:
    """A side, or (height, width), where equal ones become a side; TypeError or ValueError for anything else."""
    if not isinstance(size, (list, tuple)):
        return whole_number(size, argument)
    if len(size) != 2:
        raise ValueError(f"{argument}: got {size!r:.60}, expected a side or (height, width)")
    height, width = (whole_number(one, argument) for one in size)
    return height if height == width else (height, width)


_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}


def byte_count(value: Any, argument: str) -> int:
    """A number of bytes, or a text such as "256MB" or "1.5 GiB"; TypeError or ValueError for anything else."""
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,9})?)\s*([A-Za-z]*)\s*", value)
        if match is None or match[2].upper() not in _UNITS:
            raise ValueError(f"{argument}: got {value!r:.60}, expected a number of bytes, as 256_000_000 or '256MB'")
        return int(float(match[1]) * _UNITS[match[2].upper()])
    count = whole_number(value, argument)
    if count < 0:
        raise ValueError(f"{argument}: got {count}, expected a number of bytes, 0 for none")
    return count


def real_number(value: Any, argument: str) -> float:
    """A number of Python or NumPy; TypeError for anything else."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{argument}: expected a number, got {type(value).__name__}")
    return float(value)


def is_pixel_values(image: Any) -> bool:
    """Whether these are normalised floats rather than a picture: an array, or a list of such arrays."""
    if isinstance(image, (list, tuple)):
        return len(image) > 0 and all(not isinstance(one, (list, tuple)) and is_pixel_values(one) for one in image)
    if isinstance(image, np.ndarray):
        return bool(image.dtype.kind == "f")
    return "float" in str(getattr(image, "dtype", "")) and hasattr(image, "shape")


def finite_numbers(values: Any, argument: str, dtype: type[np.floating[Any]] = np.float32) -> npt.NDArray[Any]:
    """An array of real, finite numbers in a floating type; TypeError or ValueError where it is anything else."""
    array = np.asarray(detached(values))
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{argument}: expected an array of real numbers, got {array.dtype} ({type(values).__name__})")
    with np.errstate(over="ignore"):
        array = array.astype(dtype, copy=False)
    if not np.isfinite(array).all():
        raise ValueError(f"{argument}: NaN or infinity among the values, expected finite numbers")
    return array


def question_list(questions: Any, argument: str = "questions") -> list[str]:
    """Questions as a list; TypeError or ValueError when they are not."""
    if isinstance(questions, (bytes, bytearray)) or not isinstance(questions, Iterable):
        raise TypeError(f"{argument}: expected a str or a list of str, got {type(questions).__name__}")
    listed = [questions] if isinstance(questions, str) else list(questions)
    for question in listed:
        if not isinstance(question, str):
            kind = type(questions).__name__
            raise TypeError(f"{argument}: expected a str or a list of str, got {kind} with {type(question).__name__} in it")
        try:
            question.encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError(f"{argument}: {question!r} holds a surrogate or bytes that are not UTF-8") from None
    if not listed:
        raise ValueError(f"{argument}: the list is empty")
    return listed


def read_samples(samples: Any) -> tuple[Any, list[str]]:
    """``samples['image']`` and ``samples['text_input']``, one question a picture."""
    try:
        image, text = samples["image"], samples["text_input"]
    except (TypeError, KeyError) as error:
        raise ValueError("samples: expected a mapping with 'image' [B, 3, H, W] and 'text_input', a list of str") from error
    questions = question_list(text, "samples['text_input']")
    if isinstance(image, (list, tuple)):
        count = len(image)
    else:
        shape = tuple(getattr(image, "shape", ()))
        count = shape[0] if len(shape) == 4 else 1 if len(shape) == 3 else len(questions)
    if count != len(questions):
        raise ValueError(f"samples: {count} pictures and {len(questions)} questions; expected one a picture")
    return image, questions


def unique_images(images: FloatArray) -> tuple[FloatArray, npt.NDArray[np.int32]]:
    """The different pictures of a batch, and which of them each row is."""
    if len(images) < 2:
        return images, np.zeros(len(images), np.int32)
    # Some items tell most pictures apart; those that agree in them are compared whole.
    bits = np.ascontiguousarray(images).reshape(len(images), -1).view(np.uint32)
    some = bits[:, :: max(1, bits.shape[1] // 256)]
    alike: dict[bytes, list[int]] = {}
    index = np.empty(len(images), np.int32)
    first: list[int] = []
    for row in range(len(images)):
        candidates = alike.setdefault(some[row].tobytes(), [])
        same = next((number for number in candidates if np.array_equal(bits[first[number]], bits[row])), len(first))
        if same == len(first):
            candidates.append(same)
            first.append(row)
        index[row] = same
    return (images if len(first) == len(images) else images[first]), index
