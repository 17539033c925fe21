"""What stands beside weights: settings of pictures and of tokenizers are obeyed as transformers obeys them, or refused."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import PIL
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from qavit._base.arguments import image_size
from qavit.checkpoints._pictures import folder_preprocessing, from_image_processor, from_open_clip
from qavit.images import CLIP_MEAN, CLIP_STD, Preprocessing, preprocess
from qavit.text import Tokenizer

transformers = pytest.importorskip("transformers")
needs_pillow_13 = pytest.mark.skipif(int(PIL.__version__.split(".")[0]) < 13, reason="Pillow 13 resizes in another order")
EDGES = st.integers(1, 90)
NUMBERS = st.floats(0.05, 3).map(lambda value: round(value, 3))
COLOURS = st.one_of(NUMBERS, st.lists(NUMBERS, min_size=3, max_size=3))


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([height, width, seed]).integers(0, 256, (height, width, 3), dtype=np.uint8)


def processor_of(kind: str) -> Any:
    """The processor over Pillow: the others compute in torch, with other rounding."""
    return getattr(transformers, f"{kind}ImageProcessorPil", None) or getattr(transformers, f"{kind}ImageProcessor")


sizes = st.one_of(
    st.fixed_dictionaries({"height": EDGES, "width": EDGES}),
    st.fixed_dictionaries({"shortest_edge": EDGES}),
    st.tuples(EDGES, EDGES).map(lambda two: {"shortest_edge": min(two), "longest_edge": max(two)}),
    EDGES,
)
configurations = st.fixed_dictionaries(
    {},
    optional={
        "do_resize": st.booleans(), "size": sizes, "resample": st.integers(0, 5), "do_center_crop": st.booleans(),
        "crop_size": st.one_of(EDGES, st.fixed_dictionaries({"height": EDGES, "width": EDGES})),
        "do_rescale": st.booleans(), "rescale_factor": st.sampled_from([1 / 255, 1 / 127.5, 0.01, 1.0]),
        "do_normalize": st.booleans(), "image_mean": COLOURS, "image_std": COLOURS, "do_convert_rgb": st.booleans(),
    },
)  # fmt: skip


def _exact(kind: str, size: Any) -> bool:
    """Whether a resize makes both edges what they are to be."""
    return "height" in size if isinstance(size, dict) else kind in ("Blip", "ViT")


@needs_pillow_13
@settings(max_examples=300, deadline=None)
@given(st.sampled_from(["CLIP", "Blip", "Siglip", "ViT"]), configurations, st.integers(1, 120), st.integers(1, 120))
def test_image_processors_are_obeyed(kind, config, height, width):
    config = {"do_resize": True, "do_center_crop": kind == "CLIP", "size": 40, "crop_size": 40, **config}
    picture = noise(height, width)
    try:
        theirs = processor_of(kind)(**config)(Image.fromarray(picture), return_tensors="np")["pixel_values"][0]
    except ValueError:  # a resize to no pixels at all
        assume(False)
    whole = {**config, "image_processor_type": f"{kind}ImageProcessor"}
    size = image_size(theirs.shape[1:], "size")
    if not (config["do_center_crop"] or (config["do_resize"] and _exact(kind, config["size"]))):
        with pytest.raises(ValueError, match=r"any ratio|the model takes"):
            from_image_processor(whole, size)
        return
    pixels, _ = preprocess(picture, Preprocessing.from_dict(from_image_processor(whole, size)))
    # Without scale and mean the values are the bytes themselves.
    assert np.array_equal(pixels, np.asarray(theirs, np.float32))


@needs_pillow_13
@pytest.mark.parametrize("kind", ["CLIP", "Blip", "Siglip", "ViT"])
def test_saved_processors_are_obeyed(kind, tmp_path):
    processor = processor_of(kind)(image_mean=[0.1, 0.2, 0.3], resample=2)
    processor.save_pretrained(tmp_path)
    edge = processor.crop_size["height"] if kind == "CLIP" else processor.size["height"]
    picture = noise(97, 150)
    found = folder_preprocessing(tmp_path, "blip_itm" if kind == "Blip" else "clip", edge, None, {})
    theirs = processor(Image.fromarray(picture), return_tensors="np")["pixel_values"][0]
    assert np.array_equal(preprocess(picture, Preprocessing.from_dict(found))[0], theirs)
    # transformers 5 puts the same into processor_config.json.
    inner = json.loads((tmp_path / "preprocessor_config.json").read_text())
    (tmp_path / "preprocessor_config.json").unlink()
    (tmp_path / "processor_config.json").write_text(json.dumps({"processor_class": "X", "image_processor": inner}))
    assert folder_preprocessing(tmp_path, "clip", edge, None, {}) == found


def test_the_resize_grows_with_an_image_size_that_is_asked_for(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": {"shortest_edge": 256}, "crop_size": 224}))
    assert folder_preprocessing(tmp_path, "clip", 224, None, {})["resize_to"] == 256
    larger = folder_preprocessing(tmp_path, "clip", 224, 336, {})
    assert (larger["size"], larger["resize_to"]) == (336, 384)
    given_whole = {"resize": "exact", "crop": False, "mean": 0.5, "std": 0.5}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"crop_pct": 0.9}))
    with pytest.raises(ValueError, match=r"preprocessor_config\.json: crop_pct 0\.9 is not known"):
        folder_preprocessing(tmp_path, "clip", 224, None, {})
    assert folder_preprocessing(tmp_path, "clip", 224, None, given_whole)["mean"] == 0.5


@pytest.mark.parametrize("mode", ["shortest", "squash", "longest", None])
@pytest.mark.parametrize("shape", [(50, 91), (91, 50), (20, 11), (64, 64)])
def test_open_clips_settings_are_obeyed(mode, shape):
    """torchvision's Resize and CenterCrop, and open_clip's own for "longest", written out."""
    size = 24
    config = {"size": size, "mean": CLIP_MEAN, "std": CLIP_STD, "interpolation": "bilinear"}
    how = Preprocessing.from_dict(from_open_clip({**config, **({"resize_mode": mode} if mode else {})}, size))
    height, width = shape
    picture = noise(height, width, 5)
    short, long = sorted(shape)
    if mode == "squash":
        new = (size, size)
    elif mode == "longest":
        new = tuple(round(edge / (long / size)) for edge in shape)
    else:
        grown = int(size * long / short)
        new = (size, grown) if height <= width else (grown, size)
    resized = np.asarray(Image.fromarray(picture).resize(new[::-1], Image.Resampling.BILINEAR))
    square = np.zeros((size, size, 3), np.uint8)
    top, left = (round((edge - size) / 2) if edge >= size else 0 for edge in new)
    cut = resized[top : top + size, left : left + size]
    above, before = ((size - edge) // 2 for edge in cut.shape[:2])
    square[above : above + cut.shape[0], before : before + cut.shape[1]] = cut
    expected = (square / np.float32(255) - np.float32(CLIP_MEAN)) / np.float32(CLIP_STD)
    if int(PIL.__version__.split(".")[0]) >= 13:
        # Observed: 2e-7, a division by 255 in float32 in place of a product in float64.
        np.testing.assert_allclose(preprocess(picture, how)[0], expected.transpose(2, 0, 1), rtol=0, atol=1e-6)


def test_open_clips_settings_are_refused_by_name():
    for config, message in (
        ({"resize_mode": "random"}, "resize_mode is 'random', expected one of shortest, longest, squash"),
        ({"size": [224, 200]}, "size is"),
        ({"mode": "L"}, "mode is 'L'"),
        ({"interpolation": "random"}, "resample is 'random'"),
        ({"timm": True}, "timm is not known"),
        ({"resize_mode": "longest", "fill_color": 255}, "fill_color is 255, only black"),
    ):
        with pytest.raises(ValueError, match=message):
            from_open_clip(config, 224)


VOCABULARY = [
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "der", "grune", "gr\u00fcne", "Gr\u00fcne", "Grune", "ball", "Ball", "b",
    "##all", "##a", "##l", ",", ".", "-", "a-b", "\u4f60", "\u597d", "##\u597d", "\u4f60\u597d", "caf\u00e9", "cafe",
    "<x>", "x", "<", ">",
]  # fmt: skip
PIECES = [
    "der", "gr\u00fcne", "Gr\u00fcne", "gru\u0308ne", "ball", "BALL", "Ball", " ", "  ", ",", ".", "-", "a-b",
    "\u4f60\u597d",
    "caf\u00e9", "Caf\u00c9", "<x>", "x", "[MASK]", "\t", "\u0301", "zebra",
]  # fmt: skip
text_settings = st.fixed_dictionaries(
    {},
    optional={
        "do_lower_case": st.booleans(), "strip_accents": st.sampled_from([True, False, None]),
        "tokenize_chinese_chars": st.booleans(), "model_max_length": st.sampled_from([4, 7, 512, int(1e30)]),
        "truncation_side": st.sampled_from(["left", "right"]),
        "additional_special_tokens": st.sampled_from([["<x>"], ["<new>"], []]),
    },
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(text_settings, st.lists(st.sampled_from(PIECES), max_size=12), st.booleans())
def test_berts_settings_are_obeyed(tmp_path_factory, config, pieces, as_json):
    folder = tmp_path_factory.mktemp("bert")
    text = "".join(pieces)
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    if as_json:  # written by other settings, which those beside it overrule
        (folder / "tokenizer.json").write_text(Tokenizer.from_folder(folder).to_json())
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer", **config}))
    theirs = transformers.BertTokenizer.from_pretrained(folder)
    expected = theirs(text, truncation=True)["input_ids"]
    ours = Tokenizer.from_folder(folder)
    assert ours.encode([text], 512).ids[0].tolist() == expected
    again = Tokenizer(ours.to_json())
    assert again.encode([text], 512).ids[0].tolist() == expected
    assert again.pad == theirs.pad_token_id


def test_other_settings_of_tokenizers(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    path = tmp_path / "tokenizer_config.json"

    def ids(text: str, **config: Any) -> list[int]:
        path.write_text(json.dumps(config))
        return [VOCABULARY[number] for number in Tokenizer.from_folder(tmp_path).encode([text], 30).ids[0].tolist()][1:-1]

    assert ids("Der a-b Ball") == ["der", "[UNK]", "-", "b", "ball"]
    assert ids("Der a-b Ball", never_split=["a-b", "Ball"]) == ["der", "a-b", "Ball"]
    assert ids("der Ball, x", do_basic_tokenize=False) == ["der", "[UNK]", "x"]
    assert ids("der x x", unk_token="x", pad_token="b") == ["der", "x", "x"]
    assert Tokenizer.from_folder(tmp_path).pad == VOCABULARY.index("b")
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<y>": len(VOCABULARY), "<z>": len(VOCABULARY) + 1}))
    path.unlink()
    found = Tokenizer.from_folder(tmp_path).encode(["der <z>ball"], 30).ids[0].tolist()
    assert found[1:-1] == [VOCABULARY.index("der"), len(VOCABULARY) + 1, VOCABULARY.index("ball")]
    for files, message in (
        ({"added_tokens.json": '{"<y>": 90}'}, r"'<y>' is to have the number 90, it gets"),
        ({"added_tokens.json": '{"<y>": "1"}'}, "expected an object of token numbers"),
        ({"tokenizer_config.json": '{"do_lower_case": "yes"}'}, "do_lower_case is 'yes', expected true or false"),
        ({"tokenizer_config.json": '{"never_split": ["zebra"]}'}, r"never_split: 'zebra' is not in vocab\.txt"),
        ({"tokenizer_config.json": '{"split_special_tokens": true}'}, "split_special_tokens is True, which cannot be"),
        ({"tokenizer_config.json": '{"truncation_side": "up"}'}, "truncation_side is 'up'"),
        ({"tokenizer_config.json": '{"added_tokens_decoder": {"x": "y"}}'}, "'x' is no number"),
        ({"tokenizer_config.json": "[1]"}, "expected a JSON object, got list"),
        ({"special_tokens_map.json": "{"}, r"special_tokens_map\.json: not the JSON"),
    ):
        for old in tmp_path.glob("*.json"):
            old.unlink()
        for name, content in files.items():
            (tmp_path / name).write_text(content)
        with pytest.raises(ValueError, match=message):
            Tokenizer.from_folder(tmp_path)
