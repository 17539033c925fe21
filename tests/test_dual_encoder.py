"""Dual encoders: the public code's own embeddings, transformers' at small sizes, and what is given wrongly."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import shutil
import string
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_torch
from test_towers import randomised
from tokenizers import processors

import qavit
from qavit import DualEncoder, LowScoreWarning, QuestionBlindWarning, QuestionCutWarning
from qavit.checkpoints import convert, describe, description_text, open_model
from qavit.text import Tokenizer

GOLDEN = Path(__file__).parent / "data" / "golden"
# Of the largest value. Observed: 1.3e-6.
CLOSE = 1e-5
TEXTS = ["a dog", "the cat's ear", "a photo of a red car on the left", ""]
Array = np.ndarray


def unit(values: Any) -> Array:
    array = np.asarray(values.detach() if isinstance(values, torch.Tensor) else values, np.float64)
    return array / np.linalg.norm(array, axis=-1, keepdims=True)


def close(found: Array, wanted: Any, tolerance: float = CLOSE) -> None:
    wanted = np.asarray(wanted)
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= tolerance * np.abs(wanted).max()


def dual(*arguments: Any, **options: Any) -> DualEncoder:
    model = qavit.load(*arguments, **options)
    assert isinstance(model, DualEncoder)
    return model


def golden(name: str) -> dict[str, Array]:
    with np.load(GOLDEN / name / "golden.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def clip() -> DualEncoder:
    return dual(GOLDEN / "methods_clip")


@pytest.fixture(scope="module")
def siglip() -> DualEncoder:
    return dual(GOLDEN / "methods_siglip")


# ---- the public code's own numbers ----


@pytest.mark.every_level
@pytest.mark.parametrize("name", ["clipa", "quickgelu"])
def test_open_clip_folders(name: str) -> None:
    arrays, model = golden("open_clip"), dual(GOLDEN / "open_clip" / name)
    close(model.encode_image(arrays["pixels"]), unit(arrays[f"{name}_image"]))
    close(model.encode_text(arrays[f"{name}_ids"]), unit(arrays[f"{name}_text"]))
    attention = model.vision(arrays["pixels"], blocks=[2]).attentions
    assert attention is not None
    assert np.abs(attention[2] - arrays[f"{name}_attention2"]).max() < 1e-5


@pytest.mark.every_level
def test_openais_archive(tmp_path: Path) -> None:
    arrays, file = golden("openai_clip"), GOLDEN / "openai_clip" / "archive.pt"
    model = dual(file)
    assert np.array_equal(model.encode_image(arrays["pixels"]), dual(checkpoint=file).encode_image(arrays["pixels"]))
    close(model.encode_image(arrays["pixels"]), unit(arrays["image"]))
    close(model.encode_text(arrays["ids"]), unit(arrays["text"]))
    state = torch.jit.load(file).state_dict()
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, tmp_path / "again.pt")
    again = dual(tmp_path / "again.pt")
    for both in ("encode_image", "encode_text"):
        given = arrays["pixels" if both == "encode_image" else "ids"]
        assert np.array_equal(getattr(again, both)(given), getattr(model, both)(given))


@pytest.mark.every_level
def test_clip_embeddings(clip: DualEncoder) -> None:
    arrays = golden("methods_clip")
    assert (clip.kind, clip.embedding_dim, clip.max_tokens) == ("clip", 48, 32)
    close(clip.encode_text(TEXTS), np.concatenate([arrays["text_embeddings"], arrays["empty_text_embedding"]]))
    close(clip.encode_text(arrays["token_ids"]), clip.encode_text(TEXTS))
    close(clip.encode_image(arrays["pixel_values"]), arrays["image_embeddings"])
    close(clip.similarity(arrays["pixel_values"], TEXTS[:3]), arrays["cosine"])
    assert clip.logit_scale == pytest.approx(float(arrays["logit_scale_exp"]), rel=1e-6)


@pytest.mark.every_level
def test_siglip_embeddings(siglip: DualEncoder) -> None:
    arrays = golden("methods_siglip")
    assert (siglip.kind, siglip.embedding_dim) == ("siglip", 64)
    close(siglip.encode_text(arrays["token_ids"][:3]), arrays["text_embeddings"])
    close(siglip.encode_text(arrays["token_ids"][3:]), arrays["empty_text_embedding"])
    close(siglip.encode_image(arrays["pixel_values"]), arrays["image_embeddings"])
    close(siglip.similarity(arrays["pixel_values"], arrays["text_embeddings"]), arrays["cosine"])


@pytest.mark.every_level
def test_clips_maps_of_texts(clip: DualEncoder) -> None:
    arrays = golden("methods_clip")
    for number, picture in enumerate(arrays["image_u8"]):
        result = clip.heatmaps(picture, TEXTS[:3], method="maskclip")
        assert result.scores is not None
        close(result.raw, arrays["maskclip"][number], 1e-4)
        assert np.abs(result.scores - arrays["cosine"][number]).max() < 1e-5
        given = clip.heatmaps(picture, clip.encode_text(TEXTS[:3]), method="maskclip")
        assert np.array_equal(given.raw, result.raw)
        assert given.questions == ["embedding 0", "embedding 1", "embedding 2"]


# ---- transformers, at small sizes ----


SIZES = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 3}
SENTENCES = ["A Red Car!", "where's the cat's ear?", "  two   dogs, (one) ball ", "", "3.5 %", "a" * 300]


def pixels(count: int, side: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal((count, 3, side, side)).astype(np.float32)


def preprocessor(folder: Path, kind: str, side: int, **changes: Any) -> None:
    settings = {
        "image_processor_type": f"{kind}ImageProcessor", "size": {"height": side, "width": side}, "do_resize": True,
        "do_rescale": True, "do_normalize": True, "rescale_factor": 1 / 255, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
        "resample": 3, **changes,
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))


def siglip_folder(folder: Path, vocabulary: int, seed: int, **text: Any) -> Any:
    config = transformers.SiglipConfig(
        text_config={**SIZES, "vocab_size": vocabulary, "max_position_embeddings": 12, "projection_size": 24, **text},
        vision_config={**SIZES, "image_size": 20, "patch_size": 4},
    )
    model = randomised(transformers.SiglipModel(config), seed)
    with torch.no_grad():
        model.logit_scale.fill_(2.0)
        model.logit_bias.fill_(-1.5)
    model.save_pretrained(folder)
    preprocessor(folder, "Siglip", 20)
    return model


@pytest.fixture(scope="module")
def siglip_1(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any]:
    spm = pytest.importorskip("sentencepiece")
    folder = tmp_path_factory.mktemp("siglip")
    out = io.BytesIO()
    words = ["red", "car", "dog", "cat", "ear", "ball", "photo", "the", "where", "two", "one", "of"]
    lines = (" ".join(np.random.default_rng(i).choice(words, 6)) for i in range(400))
    spm.SentencePieceTrainer.train(
        sentence_iterator=lines, model_writer=out, model_type="unigram", vocab_size=60, hard_vocab_limit=False,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2, num_threads=1,
    )  # fmt: skip
    (folder / "spiece.model").write_bytes(out.getvalue())
    tokenizer = transformers.SiglipTokenizer(vocab_file=str(folder / "spiece.model"), model_max_length=12)
    settings = {"tokenizer_class": "SiglipTokenizer", "do_lower_case": True, "pad_token": "</s>", "model_max_length": 12}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder, siglip_folder(folder, len(tokenizer), 1), tokenizer


@pytest.fixture(scope="module")
def siglip_2(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any]:
    folder = tmp_path_factory.mktemp("siglip2")
    names = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "\u2581", *string.ascii_lowercase]
    names += [f"<0x{number:02X}>" for number in range(256)]
    merges = [("r", "e"), ("re", "d"), ("c", "a"), ("ca", "r"), ("\u2581", "red"), ("d", "o"), ("do", "g")]
    names += ["".join(pair) for pair in merges]
    tokenizer = transformers.Siglip2Tokenizer(
        vocab={name: number for number, name in enumerate(names)}, merges=merges, padding_side="right"
    )
    end = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    tokenizer.backend_tokenizer.post_processor = end
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"pad_token": "<pad>", "padding_side": "right"}))
    return folder, siglip_folder(folder, len(names), 2), tokenizer


@pytest.mark.every_level
@pytest.mark.parametrize("edition", [1, 2])
def test_siglip_is_that_of_transformers(edition: int, siglip_1: Any, siglip_2: Any) -> None:
    folder, reference, tokenizer = siglip_1 if edition == 1 else siglip_2
    model = dual(folder)
    given = tokenizer(SENTENCES, padding="max_length", truncation=True, max_length=12, return_tensors="pt")["input_ids"]
    images = pixels(2, 20)
    with torch.no_grad():
        whole = reference(input_ids=given, pixel_values=torch.from_numpy(images))
    with pytest.warns(QuestionCutWarning, match="left out"):
        found = model.encode_text(SENTENCES)
    close(found, unit(whole.text_embeds))
    close(model.encode_text(given.numpy()), unit(whole.text_embeds))
    close(model.encode_image(images), unit(whole.image_embeds))
    close(model.similarity(images, found), unit(whole.image_embeds) @ unit(whole.text_embeds).T)
    with pytest.warns(QuestionBlindWarning, match="method 'pool' knows no text"):
        result = model.heatmaps(images[0], found, method="pool")
    assert result.scores is not None
    assert np.abs(result.scores - torch.sigmoid(whole.logits_per_image[0]).numpy()).max() < 1e-5
    with torch.no_grad():
        vision = reference.vision_model
        tokens = vision(torch.from_numpy(images[:1])).last_hidden_state
        _, looks = vision.head.attention(vision.head.probe, tokens, tokens, average_attn_weights=True)
    close(result.raw, np.broadcast_to(looks.numpy().reshape(1, 5, 5), (6, 5, 5)))


def open_clips_names(reference: Any) -> dict[str, torch.Tensor]:
    """A SigLIP of transformers under open_clip's names: timm's tower, and open_clip's text half one level down."""
    state, made = reference.state_dict(), {}
    v, t = "vision_model.", "text_model."
    made["visual.trunk.pos_embed"] = state[v + "embeddings.position_embedding.weight"][None]
    made["visual.trunk.attn_pool.latent"] = state[v + "head.probe"]
    made["text.positional_embedding"] = state[t + "embeddings.position_embedding.weight"]
    made["text.token_embedding.weight"] = state[t + "embeddings.token_embedding.weight"]
    made["logit_scale"], made["logit_bias"] = state["logit_scale"].reshape(()), state["logit_bias"].reshape(())
    for w in ("weight", "bias"):
        trunk = "visual.trunk."
        made[f"{trunk}patch_embed.proj.{w}"] = state[f"{v}embeddings.patch_embedding.{w}"]
        made[f"{trunk}norm.{w}"], made[f"text.ln_final.{w}"] = (
            state[f"{v}post_layernorm.{w}"],
            state[f"{t}final_layer_norm.{w}"],
        )
        made[f"text.text_projection.{w}"] = state[f"{t}head.{w}"]
        query, *rest = state[f"{v}head.attention.in_proj_{w}"].chunk(3)
        made[f"{trunk}attn_pool.q.{w}"], made[f"{trunk}attn_pool.kv.{w}"] = query, torch.cat(rest)
        made[f"{trunk}attn_pool.proj.{w}"] = state[f"{v}head.attention.out_proj.{w}"]
        made[f"{trunk}attn_pool.norm.{w}"] = state[f"{v}head.layernorm.{w}"]
        for one in ("fc1", "fc2"):
            made[f"{trunk}attn_pool.mlp.{one}.{w}"] = state[f"{v}head.mlp.{one}.{w}"]
        for i in range(SIZES["num_hidden_layers"]):
            b, own, block = f"{trunk}blocks.{i}.", f"{v}encoder.layers.{i}.", f"text.transformer.resblocks.{i}."
            made[f"{b}attn.qkv.{w}"] = torch.cat([state[f"{own}self_attn.{q}_proj.{w}"] for q in "qkv"])
            made[f"{b}attn.proj.{w}"] = state[f"{own}self_attn.out_proj.{w}"]
            for n in "12":
                made[f"{b}norm{n}.{w}"], made[f"{b}mlp.fc{n}.{w}"] = (
                    state[f"{own}layer_norm{n}.{w}"],
                    state[f"{own}mlp.fc{n}.{w}"],
                )
            own = f"{t}encoder.layers.{i}."
            made[f"{block}attn.in_proj_{w}"] = torch.cat([state[f"{own}self_attn.{q}_proj.{w}"] for q in "qkv"])
            made[f"{block}attn.out_proj.{w}"] = state[f"{own}self_attn.out_proj.{w}"]
            for n, name in (("1", "c_fc"), ("2", "c_proj")):
                made[f"{block}ln_{n}.{w}"], made[f"{block}mlp.{name}.{w}"] = (
                    state[f"{own}layer_norm{n}.{w}"], state[f"{own}mlp.fc{n}.{w}"],
                )  # fmt: skip
    return {name: tensor.contiguous() for name, tensor in made.items()}


@pytest.mark.every_level
def test_open_clips_siglip_is_that_of_transformers(siglip_1: tuple[Path, Any, Any], tmp_path: Path) -> None:
    folder, reference, tokenizer = siglip_1
    text = {
        "context_length": 12, "vocab_size": len(tokenizer), "width": 24, "heads": 3, "layers": 2, "no_causal_mask": True,
        "proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6}, "hf_tokenizer_name": "timm/ViT-B-16-SigLIP",
        "act_kwargs": {"approximate": "tanh"}, "tokenizer_kwargs": {"clean": "canonicalize"},
    }  # fmt: skip
    vision = {
        "image_size": 20, "timm_model_name": "vit_so400m_patch14_siglip_224", "timm_model_pretrained": False,
        "timm_pool": "map", "timm_proj": "none",
    }  # fmt: skip
    pictures = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}
    config = {"model_cfg": {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text}, "preprocess_cfg": pictures}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    names = open_clips_names(reference)
    save_torch(names, tmp_path / "open_clip_model.safetensors")
    for name in ("spiece.model", "tokenizer_config.json"):
        shutil.copy(folder / name, tmp_path)
    with pytest.raises(ValueError, match="num_attention_heads 16 does not divide the width 24"):
        qavit.load(tmp_path)
    heads = {"num_attention_heads": 3, "text": {"num_attention_heads": 3}}
    model, whole = dual(tmp_path, config={"num_attention_heads": 3}), dual(folder)
    images = pixels(2, 20)
    assert np.array_equal(model.encode_image(images), whole.encode_image(images))
    assert np.array_equal(model.encode_text(SENTENCES[:5]), whole.encode_text(SENTENCES[:5]))
    assert np.array_equal(model.encode_text("the_red,  CAR"), whole.encode_text("the red car"))
    assert (model.logit_scale, model.logit_bias, model.preprocessing.resize) == (
        whole.logit_scale,
        whole.logit_bias,
        "exact",
    )
    file = tmp_path / "open_clip_model.safetensors"
    with pytest.raises(ValueError, match="nothing tells the activation of an open_clip file"):
        qavit.load(file, config=heads)
    bare = dual(file, config={**heads, "hidden_act": "gelu_pytorch_tanh"})
    assert np.array_equal(bare.encode_image(images), whole.encode_image(images))
    ids = np.random.default_rng(0).integers(0, len(tokenizer), (2, 12))
    assert np.array_equal(bare.encode_text(ids), whole.encode_text(ids))


def test_siglip_at_another_size(siglip_1: tuple[Path, Any, Any]) -> None:
    folder, reference, _ = siglip_1
    model = dual(folder, image_size=28)
    images = pixels(1, 28)
    with torch.no_grad():
        wanted = reference.get_image_features(torch.from_numpy(images), interpolate_pos_encoding=True)
    wanted = getattr(wanted, "pooler_output", wanted)
    assert model.grid == (7, 7)
    close(model.encode_image(images), unit(wanted))


def test_halves_one_by_one(siglip_1: tuple[Path, Any, Any], tmp_path: Path) -> None:
    folder, reference, _ = siglip_1
    reference.vision_model.save_pretrained(tmp_path / "vision")
    alone = qavit.load(tmp_path / "vision")
    assert (alone.kind, alone.takes_questions, alone.methods) == ("siglip", False, ("pool", "rollout"))
    images = pixels(1, 20)
    assert alone.heatmaps(images[0]).maps.shape == (1, 5, 5)
    both = dual(vision=tmp_path / "vision", text=folder)
    whole = dual(folder)
    assert np.array_equal(both.encode_image(images), whole.encode_image(images))
    assert np.array_equal(both.encode_text(["a dog"]), whole.encode_text(["a dog"]))
    assert (both.logit_scale, both.logit_bias) == (whole.logit_scale, whole.logit_bias)


VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "一", "只", "狗", "猫", "红", "车", "a", "dog", "##s", "?"]


@pytest.fixture(scope="module")
def chinese(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any]:
    folder = tmp_path_factory.mktemp("chinese")
    config = transformers.ChineseCLIPConfig(
        text_config={**SIZES, "vocab_size": len(VOCABULARY), "max_position_embeddings": 60},
        vision_config={**SIZES, "image_size": 20, "patch_size": 4, "hidden_act": "quick_gelu"},
        projection_dim=10,
    )
    model = transformers.ChineseCLIPModel(config)
    for part in (model.text_model, model.vision_model, model.text_projection, model.visual_projection):
        randomised(part, 3)
    model.eval().save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    preprocessor(folder, "ChineseCLIP", 20)
    return folder, model, transformers.BertTokenizer(str(folder / "vocab.txt"))


@pytest.mark.every_level
def test_chinese_clip_is_that_of_transformers(chinese: tuple[Path, Any, Any]) -> None:
    folder, reference, tokenizer = chinese
    model = dual(folder)
    texts = ["一只狗", "红车?", "dogs", "猫" * 20]
    given = tokenizer(texts, padding=True, return_tensors="pt")
    images = pixels(2, 20)
    with torch.no_grad():
        whole = reference(
            input_ids=given["input_ids"], attention_mask=given["attention_mask"], pixel_values=torch.from_numpy(images)
        )
    assert (model.kind, model.max_tokens) == ("clip", 52)
    close(model.encode_text(texts), unit(whole.text_embeds))
    close(model.encode_text(given["input_ids"].numpy()), unit(whole.text_embeds))
    close(model.encode_image(images), unit(whole.image_embeds))


# ---- OpenAI's pairs ----


def openai_ids(text: str, merges: Sequence[tuple[str, str]], pieces: dict[str, int]) -> list[int]:
    """The pairs joined in their order, word by word, for plain lower-case words."""
    ids = [pieces["<|startoftext|>"]]
    for word in text.split():
        parts = [*word[:-1], word[-1] + "</w>"]
        for left, right in merges:
            at = 0
            while at < len(parts) - 1:
                if (parts[at], parts[at + 1]) == (left, right):
                    parts[at : at + 2] = [left + right]
                at += 1
        ids += [pieces[part] for part in parts]
    return [*ids, pieces["<|endoftext|>"]]


def pairs_file(folder: Path, merges: Sequence[tuple[str, str]]) -> Path:
    path = folder / "bpe_simple_vocab_16e6.txt.gz"
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.write("bpe_simple_vocab_16e6.txt#version: 0.2\n" + "".join(f"{left} {right}\n" for left, right in merges))
    return path


def test_openais_pairs(tmp_path: Path) -> None:
    merges = [("d", "o"), ("do", "g</w>"), ("c", "a"), ("ca", "r</w>"), ("r", "e"), ("re", "d</w>"), ("a", "b")]
    tokenizer = Tokenizer.from_folder(pairs_file(tmp_path, merges))
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(byte) for byte in plain] + [chr(256 + number) for number in range(68)]
    listed = [*letters, *(letter + "</w>" for letter in letters), *map("".join, merges), "<|startoftext|>", "<|endoftext|>"]
    pieces = {piece: number for number, piece in enumerate(listed)}
    texts = ["a red car", "dog cab abc", "x"]
    for text, own in zip(texts, tokenizer.encode(texts, 20).ids):
        wanted = openai_ids(text, merges, pieces)
        assert own[: len(wanted)].tolist() == wanted
    assert tokenizer.size == 512 + len(merges) + 2
    assert tokenizer.encode(["Red CAR"], 20).ids.tolist() == tokenizer.encode(["red car"], 20).ids.tolist()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"plain text", "not a file of pairs that gzip packed"),
        (gzip.compress(b"title\na b c\n", mtime=0), "'a b c' is not a pair of pieces"),
        (gzip.compress(b"title\n\xff\xfe\n", mtime=0), "not UTF-8 text"),
        (gzip.compress(b"title\na b\n", mtime=0)[:-6], "not a file of pairs that gzip packed"),
        (gzip.compress(bytes(1 << 25), mtime=0), "more than 16777216 bytes when unpacked"),
    ],
    ids=["no gzip", "three pieces", "no UTF-8", "cut off", "too large"],
)
def test_pairs_that_are_none(data: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "pairs.txt.gz"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message):
        Tokenizer.from_folder(path)


def test_texts_wait_for_a_tokenizer(tmp_path: Path) -> None:
    file, arrays = GOLDEN / "openai_clip" / "archive.pt", golden("openai_clip")
    model = dual(file)
    with pytest.raises(ValueError, match=r"it has no tokenizer.*give tokenizer="):
        model.encode_text("a dog")
    with pytest.raises(ValueError, match=r"it has no tokenizer.*give tokenizer="):
        model.heatmaps(arrays["pixels"][0], "a dog")
    embeddings = model.encode_text(arrays["ids"])
    assert model.heatmaps(arrays["pixels"][0], embeddings, method="maskclip").maps.shape == (2, 5, 5)
    with pytest.raises(ValueError, match="this is not the tokenizer of this model"):
        dual(file, tokenizer=pairs_file(tmp_path, [("a", "b")]))


# ---- templates, scores, calls ----


def test_templates(clip: DualEncoder) -> None:
    templates = ["a photo of a {}.", "the {}"]
    each = np.stack([clip.encode_text([one.format(text) for text in ("dog", "car")]) for one in templates])
    close(clip.encode_text(["dog", "car"], templates), unit(each.mean(axis=0)))
    assert np.array_equal(clip.encode_text("dog", templates[0]), clip.encode_text("a photo of a dog."))
    with pytest.raises(ValueError, match=r"templates: 'a photo' has no \{\} where the text goes"):
        clip.encode_text("dog", "a photo")
    with pytest.raises(ValueError, match="templates: they are for texts"):
        clip.encode_text(np.array([[1, 2]]), templates)


def test_a_text_is_the_same_whatever_stands_beside_it(clip: DualEncoder) -> None:
    alone = [dual(GOLDEN / "methods_clip").encode_text(text)[0] for text in TEXTS]
    assert np.array_equal(np.stack(alone), clip.encode_text(TEXTS))


def test_texts_that_fit_less_than_none_are_told(clip: DualEncoder) -> None:
    arrays = golden("methods_clip")
    picture = arrays["image_u8"][0]
    cosines = clip.similarity(arrays["pixel_values"][:1], TEXTS)[0]
    assert (cosines[:3] > cosines[3]).all()
    embeddings = clip.encode_text(TEXTS)
    embeddings[1] = -clip.encode_image(arrays["pixel_values"][:1])[0]
    with pytest.warns(LowScoreWarning, match="the picture fits this text by"):
        result = clip.heatmaps(picture, embeddings, method="maskclip")
    assert [note.question for note in result.notes if note.kind == "low_score"] == [1]


def test_methods_that_know_no_text(clip: DualEncoder) -> None:
    picture = golden("methods_clip")["image_u8"][0]
    plain = clip.heatmaps(picture, method="class")
    with pytest.warns(QuestionBlindWarning, match="method 'class' knows no text"):
        asked = clip.heatmaps(picture, TEXTS[:2], method="class")
    assert plain.scores is None
    assert asked.scores is not None
    for own in asked.raw:
        assert np.array_equal(own, plain.raw[0])
    with pytest.raises(ValueError, match="this model takes questions; give at least one"):
        clip.heatmaps(picture, method="maskclip")
    attention = clip.vision(golden("methods_clip")["pixel_values"][:1], blocks=[5]).attentions
    assert attention is not None
    close(clip.extract_attention(picture, blocks=[5])[:, 0], unit_sum(attention[5][:, :, 0, 1:].mean(axis=1)))


def unit_sum(values: Array) -> Array:
    return values / values.sum(axis=-1, keepdims=True)


def test_functions_as_methods(clip: DualEncoder, siglip: DualEncoder) -> None:
    """A tower without a class token has a patch a column."""
    for model, name in ((clip, "methods_clip"), (siglip, "methods_siglip")):
        arrays = golden(name)
        attention = model.vision(arrays["pixel_values"][:1], blocks=[2]).attentions
        assert attention is not None
        with pytest.warns(QuestionBlindWarning):
            result = model.heatmaps(
                arrays["image_u8"][0], arrays["text_embeddings"], block=2, method=lambda a: a.mean(axis=(1, 2))[:, -36:]
            )
        close(result.raw[1].reshape(-1), attention[2][0].mean(axis=(0, 1))[-36:])


def test_batches_of_pictures_and_texts(clip: DualEncoder) -> None:
    arrays = golden("methods_clip")
    images = arrays["pixel_values"][[0, 1, 0]]
    maps = clip.extract_attention(images, TEXTS[:3], blocks=[7], method="maskclip")
    assert maps.shape == (3, 1, 36)
    for number in range(3):
        alone = clip.heatmaps(arrays["image_u8"][[0, 1, 0][number]], TEXTS[number], method="maskclip")
        close(maps[number, 0], alone.maps[0].reshape(-1), 1e-4)
    with pytest.raises(ValueError, match="2 pictures for 3 questions"):
        clip.extract_attention(images[:2], TEXTS[:3], blocks=[7], method="maskclip")
    with pytest.raises(ValueError, match="method 'maskclip' is of a text"):
        clip.extract_attention(images, method="maskclip")


def test_streams_and_copies(clip: DualEncoder) -> None:
    arrays = golden("methods_clip")
    results = list(clip.stream(list(arrays["image_u8"]), TEXTS[:2], method="gem"))
    for number, result in enumerate(results):
        close(result.raw, arrays["gem"][number][:2], 1e-4)
    again = pickle.loads(pickle.dumps(clip))
    assert np.array_equal(again.encode_text(TEXTS), clip.encode_text(TEXTS))
    assert "clip, 8 blocks" in repr(again)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model: model.heatmaps(PICTURE, np.ones((2, 47), np.float32)), r"shape \[2, 47\], expected \[Q, 48\]"),
        (lambda model: model.heatmaps(PICTURE, np.full((1, 48), np.nan, np.float32)), "NaN or infinity"),
        (lambda model: model.heatmaps(PICTURE, np.zeros((1, 48), np.float32)), "all zero"),
        (lambda model: model.heatmaps(PICTURE, np.zeros((0, 48), np.float32)), r"shape \[0, 48\]"),
        (lambda model: model.encode_text(np.ones((2, 3), np.float32)), "expected texts, or ids"),
        (lambda model: model.encode_text([]), "the list is empty"),
        (lambda model: model.encode_text(np.array([[1, 533]])), "row 0 holds 533"),
        (lambda model: model.encode_text(np.array([[1, 2]])), "holds no end-of-text token"),
        (lambda model: model.encode_text(np.full((1, 33), 532)), "33 tokens a row, this encoder takes at most 32"),
        (lambda model: model.heatmaps(PICTURE, "a dog", method="surgery", empty=np.ones((2, 48), np.float32)), "empty"),
        (lambda model: model.heatmaps(PICTURE, "a dog", method="nothing"), "method: got 'nothing'; this model has"),
        (lambda model: model.encode_image(np.zeros((1, 3, 40, 40), np.float32)), r"expected \[B, 3, 48, 48\]"),
    ],
)
def test_what_is_given_wrongly(call: Callable[[DualEncoder], Any], message: str, clip: DualEncoder) -> None:
    with pytest.raises(ValueError, match=message):
        call(clip)


PICTURE = np.zeros((48, 48, 3), np.uint8)


def test_kinds_that_have_no_embeddings() -> None:
    model = qavit.load("demo")
    for call in ("encode_text", "encode_image", "similarity"):
        with pytest.raises(TypeError, match=f"{call}: a model of kind 'qavit' has none; a dual encoder has it"):
            getattr(model, call)(*(PICTURE, "a")[: 2 if call == "similarity" else 1])


# ---- files ----


def changed(folder: Path, target: Path, change: Callable[[dict[str, Array]], None]) -> Path:
    shutil.copytree(folder, target)
    tensors = load_file(target / "model.safetensors")
    change(tensors)
    (target / "model.safetensors").unlink()
    save_file(tensors, target / "model.safetensors")
    return target


def without(name: str) -> Callable[[dict[str, Array]], None]:
    def change(tensors: dict[str, Array]) -> None:
        del tensors[name]

    return change


def test_files_that_lack_something(tmp_path: Path) -> None:
    whole = GOLDEN / "methods_clip"

    def vision_alone(tensors: dict[str, Array]) -> None:
        for name in [name for name in tensors if not name.startswith(("vision_model.", "visual_projection."))]:
            del tensors[name]

    alone = qavit.load(changed(whole, tmp_path / "vision", vision_alone))
    assert not isinstance(alone, DualEncoder)
    assert (alone.kind, alone.takes_questions, alone.default_method) == ("clip", False, "class")
    with pytest.raises(
        ValueError, match="takes no questions: none of its blocks has instruct weights, and it has no text half"
    ):
        alone.heatmaps(PICTURE, "a dog")
    bare = changed(whole, tmp_path / "bare", without("visual_projection.weight"))
    with pytest.raises(ValueError, match="the vision half has no visual_projection, so pictures and texts have no space"):
        qavit.load(vision=bare, text=whole)
    bare = changed(whole, tmp_path / "unprojected", without("text_projection.weight"))
    with pytest.raises(ValueError, match="text= has no text_projection"):
        qavit.load(vision=tmp_path / "vision", text=bare)
    assert not qavit.load(bare).takes_questions
    both = dual(vision=tmp_path / "vision", text=whole)
    assert np.array_equal(both.encode_text(TEXTS), dual(whole).encode_text(TEXTS))

    def narrow(tensors: dict[str, Array]) -> None:
        tensors["text_projection.weight"] = tensors["text_projection.weight"][:40].copy()

    with pytest.raises(ValueError, match="texts are embedded 40 wide, pictures 48 wide: not halves of one model"):
        qavit.load(changed(whole, tmp_path / "narrow", narrow))
    other = changed(whole, tmp_path / "other", lambda tensors: None)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"):
        (other / name).unlink()
    (other / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *map(str, range(600))]))
    with pytest.raises(ValueError, match="this is not the tokenizer of this model"):
        qavit.load(other)
    for name in ("logit_scale", "logit_bias"):
        lacking = changed(GOLDEN / "methods_siglip", tmp_path / name, without(name))
        with pytest.raises(ValueError, match=rf"{name} \[\] is missing"):
            qavit.load(lacking)


def test_open_clip_settings_are_obeyed_or_refused(tmp_path: Path) -> None:
    folder = tmp_path / "clipa"
    shutil.copytree(GOLDEN / "open_clip" / "clipa", folder)
    path = folder / "open_clip_config.json"
    config = json.loads(path.read_text())
    for half, changes, message in (
        ("text_cfg", {"pool_type": "first"}, "pool_type 'first', expected 'argmax' or 'last'"),
        ("text_cfg", {"embed_cls": True}, "text_cfg embed_cls True makes another kind"),
        ("text_cfg", {"tokenizer_kwargs": {"clean": "ftfy"}}, "expected strip_sep_token and clean"),
        ("text_cfg", {"norm_kwargs": {"eps": 1e-3}}, "text_cfg norm_kwargs .* makes another kind"),
        ("vision_cfg", {"timm_model_name": "vit_so400m_patch14_siglip_gap_224"}, "no attention head|makes another kind"),
        ("vision_cfg", {"attentional_pool": True}, "vision_cfg attentional_pool True makes another kind"),
    ):
        model = {**config["model_cfg"], half: {**config["model_cfg"][half], **changes}}
        path.write_text(json.dumps({**config, "model_cfg": model}))
        with pytest.raises(ValueError, match=message):
            open_model(folder)
    foreign = {**config["model_cfg"], "text_cfg": {"hf_model_name": "xlm-roberta-base"}}
    path.write_text(json.dumps({**config, "model_cfg": foreign}))
    assert open_model(folder).text is None


def test_clipas_closing_token_is_padding(tmp_path: Path) -> None:
    folder = tmp_path / "clipa"
    shutil.copytree(GOLDEN / "open_clip" / "clipa", folder)
    path = folder / "open_clip_config.json"
    config = json.loads(path.read_text())
    config["model_cfg"]["text_cfg"]["tokenizer_kwargs"] = {"strip_sep_token": True}
    path.write_text(json.dumps(config))
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    model = dual(folder)
    ids = np.zeros((1, 12), np.int64)
    ids[0, :3] = [2, 11, 12]  # [CLS] a dog
    assert np.array_equal(model.encode_text("a dog"), model.encode_text(ids))


@pytest.mark.parametrize("which", ["clip", "siglip", "clipa", "openai", "chinese", "siglip_1"])
@pytest.mark.parametrize("panels", [0, None])
def test_converted_folders_give_the_same_bits(
    which: str, panels: int | None, tmp_path: Path, chinese: Any, siglip_1: Any
) -> None:
    folders = {
        "clip": GOLDEN / "methods_clip", "siglip": GOLDEN / "methods_siglip", "clipa": GOLDEN / "open_clip" / "clipa",
        "openai": GOLDEN / "openai_clip" / "archive.pt", "chinese": chinese[0], "siglip_1": siglip_1[0],
    }  # fmt: skip
    source = open_model(folders[which])
    model, again = dual(folders[which]), dual(convert(source, tmp_path / "converted", panels=panels))
    assert (again.kind, again.max_tokens, again.logit_scale) == (model.kind, model.max_tokens, model.logit_scale)
    assert again.logit_bias == model.logit_bias
    assert again.preprocessing == model.preprocessing
    images = pixels(1, model.image_size)
    ids = np.array([[2, 7, 3, source.text["vocab_size"] - 1]]) if source.text else np.array([[0]])
    assert np.array_equal(again.encode_image(images), model.encode_image(images))
    assert np.array_equal(again.encode_text(ids), model.encode_text(ids))
    if source.tokenizer is not None:
        assert np.array_equal(again.encode_text("a dog"), model.encode_text("a dog"))
    assert "in one space" in description_text(describe(source))


# ---- a CLIP beside a QA-ViT ----


class Prompted(qavit.methods.Method):
    """What a method sees of a QA-ViT's questions as prompts, in place of a map."""

    name = "prompted"

    def suits(self, model: Any) -> bool:
        return "texts" in model.reads

    def blocks(self, model: Any) -> tuple[int, ...]:
        return tuple(range(model.num_blocks))

    def by_block(self, look: Any, blocks: Sequence[int], heads: Any) -> Array:
        self.look = look
        self.texts, self.empty, self.inputs = look.texts, look.empty(""), look.inputs
        self.projected = look.tower.forward(outputs=("projected",), **look.inputs)["projected"]
        return np.ones((len(self.texts), len(blocks), 25), np.float32)


def test_prompts_of_a_qavit(tmp_path: Path) -> None:
    late, words = GOLDEN / "qavit_official_late", GOLDEN / "methods_clip"
    config = json.loads((late / "clip" / "config.json").read_text())
    text = json.loads((words / "config.json").read_text())["text_config"]
    vision = {key: config[key] for key in config if key not in ("architectures", "torch_dtype", "transformers_version")}
    whole = transformers.CLIPModel(
        transformers.CLIPConfig(text_config=text, vision_config={**vision, "projection_dim": 48}, projection_dim=48)
    )
    tower = load_file(late / "clip" / "model.safetensors")
    whole.vision_model.load_state_dict(
        {name.removeprefix("vision_model."): torch.from_numpy(one) for name, one in tower.items()}
    )
    whole.save_pretrained(tmp_path / "clip")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(words / name, tmp_path / "clip")
    shutil.copy(late / "clip" / "preprocessor_config.json", tmp_path / "clip")
    parts = {"checkpoint": late / "checkpoint.pth", "text": late / "t5"}
    model, beside = qavit.load(vision=tmp_path / "clip", **parts), dual(tmp_path / "clip")
    assert model.kind == "qavit"
    picture = np.random.default_rng(0).integers(0, 256, (70, 70, 3), np.uint8)
    questions = ["a red car", "where is the dog?"]
    converted = qavit.load(convert(open_model(vision=tmp_path / "clip", **parts), tmp_path / "converted"))
    for one in (model, converted, pickle.loads(pickle.dumps(model))):
        seen = Prompted()
        result = one.heatmaps(picture, questions, method=seen)
        assert result.method == "prompted"
        assert np.array_equal(seen.texts, beside.encode_text(questions))
        assert np.array_equal(seen.empty, beside.encode_text(""))
        assert seen.look.logit_scale == beside.logit_scale
        assert seen.projected.shape == (2, 48)
        assert seen.inputs["instruct"].shape[0] == 2
    for method in ("gae", "gradcam", "legrad"):
        result = model.heatmaps(picture, questions, method=method)
        assert result.scores is not None
        close(result.scores, np.einsum("qe,qe->q", unit(seen.projected), beside.encode_text(questions)))
    plain = qavit.load(vision=late / "clip", **parts)
    assert np.array_equal(plain.heatmaps(picture, questions).maps, model.heatmaps(picture, questions).maps)
    with pytest.raises(ValueError, match="method: prompted needs"):
        plain.heatmaps(picture, questions, method=Prompted())
    with pytest.raises(ValueError, match="load the model with vision= a CLIP folder that holds both halves"):
        plain.heatmaps(picture, questions, method="gae")


def test_answers_as_targets() -> None:
    seen = Prompted()
    model = qavit.load("demo")
    assert "answer_head" in model.reads
    look = model._look(np.zeros((1, 3, model.image_size, model.image_size), np.float32), ["where is the star?"])
    weight, bias = look.answer_head
    assert weight.shape == (len(model.answer_names or ()), look.tower.hidden_size)
    assert bias.shape == weight.shape[:1]
    with pytest.raises(ValueError, match="method: prompted needs"):
        model.heatmaps(PICTURE, "where is the star?", method=seen)


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    from qavit.cli import main

    picture = tmp_path / "picture.png"
    Image.fromarray(golden("methods_clip")["image_u8"][0]).save(picture)
    model = str(GOLDEN / "methods_clip")
    asked = ["heatmap", str(picture), "--model", model, "-o", str(tmp_path / "out"), "--json"]
    assert main([*asked, "-q", "a dog", "-q", "the cat's ear", "--method", "maskclip"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[0])
    assert told["method"] == "maskclip"
    assert main([*asked, "--method", "class"]) == 0
    assert main([*asked, "--method", "maskclip"]) == 2
    assert "no question" in capsys.readouterr().err


def test_a_data_set(tmp_path: Path) -> None:
    from PIL import Image

    from qavit.cli import main
    from qavit.data import read_maps

    arrays = golden("methods_clip")
    (tmp_path / "pictures").mkdir()
    for number, picture in enumerate(arrays["image_u8"]):
        Image.fromarray(picture).save(tmp_path / "pictures" / f"{number}.png")
    rows = [
        {"image": f"{i}.png", "question": text, "question_id": i * 3 + j}
        for i in range(2)
        for j, text in enumerate(TEXTS[:3])
    ]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["--images", str(tmp_path / "pictures"), "--model", str(GOLDEN / "methods_clip"), "--method", "maskclip"]
    assert (
        main(["run", str(tmp_path / "questions.jsonl"), *arguments, "-o", str(tmp_path / "maps"), "--dtype", "float32"]) == 0
    )
    found = {int(row.id): row for row in read_maps(tmp_path / "maps")}
    for number in range(6):
        wanted = arrays["maskclip"][number // 3, number % 3]
        close(np.asarray(found[number].map).reshape(6, 6), wanted, 1e-3)
        assert found[number].score == pytest.approx(float(arrays["cosine"][number // 3, number % 3]), abs=1e-5)
