"""Arguments at the door: questions, samples, arrays of NumPy or torch."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]


def one_line(error: BaseException) -> str:
    """What went wrong, as a person says it: without the number that the system gives it."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


def is_pixel_values(image: Any) -> bool:
    """Whether this is an array of normalised floats rather than a picture."""
    if isinstance(image, np.ndarray):
        return bool(image.dtype.kind == "f")
    return "float" in str(getattr(image, "dtype", "")) and hasattr(image, "shape")


def finite_numbers(values: Any, argument: str, dtype: type[np.floating[Any]] = np.float32) -> npt.NDArray[Any]:
    """An array of real, finite numbers in a floating type; TypeError or ValueError where it is anything else."""
    array = np.asarray(values)
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{argument}: expected an array of real numbers, got {array.dtype} ({type(values).__name__})")
    with np.errstate(over="ignore"):
        array = array.astype(dtype, copy=False)
    if not np.isfinite(array).all():
        raise ValueError(f"{argument}: NaN or infinity among the values, expected finite numbers")
    return array


def question_list(questions: Any) -> list[str]:
    """Questions as a list; TypeError or ValueError when they are not."""
    listed = [questions] if isinstance(questions, str) else list(questions) if isinstance(questions, Iterable) else None
    if listed is None or not all(isinstance(question, str) for question in listed):
        raise TypeError(f"questions: expected a str or a list of str, got {type(questions).__name__}")
    if not listed:
        raise ValueError("questions: the list is empty")
    return listed


def read_samples(samples: Any) -> tuple[Any, list[str]]:
    """``samples['image']`` and ``samples['text_input']``, one question a picture."""
    try:
        image, text = samples["image"], samples["text_input"]
    except (TypeError, KeyError) as error:
        raise ValueError("samples: expected a mapping with 'image' [B, 3, H, W] and 'text_input', a list of str") from error
    questions = question_list(text)
    shape = tuple(getattr(image, "shape", ()))
    if len(shape) == 4 and shape[0] != len(questions):
        raise ValueError(f"samples: {shape[0]} pictures and {len(questions)} questions; expected one question a picture")
    return image, questions


def unique_images(images: FloatArray) -> tuple[FloatArray, npt.NDArray[np.int32]]:
    """The different pictures of a batch, and which of them each row is."""
    seen: dict[bytes, int] = {}
    index = np.empty(len(images), np.int32)
    first: list[int] = []
    for row, image in enumerate(images):
        key = hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16).digest()
        if key not in seen:
            seen[key] = len(first)
            first.append(row)
        index[row] = seen[key]
    return (images if len(first) == len(images) else images[first]), index
