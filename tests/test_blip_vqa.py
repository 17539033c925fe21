"""BLIP-VQA against transformers' BlipForQuestionAnswering: states, answers, and the answer's gradient by autograd."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reference import close
from test_blip import config_of, questions, weights_of

import qavit
from qavit import _core
from qavit.checkpoints import convert

Array = Any
# Of the largest value.
STATES, MAPS = 1e-5, 1e-4
BFLOAT16 = 4e-2


@pytest.fixture(autouse=True, scope="module")
def one_torch_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def huggingface_model(vision: dict[str, int], text: dict[str, int], seed: int) -> Any:
    """A random model whose attention is far from uniform."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(seed)
    config = transformers.BlipConfig(
        vision_config={"hidden_act": "gelu", "layer_norm_eps": 1e-6, **vision},
        text_config={
            "hidden_act": "gelu", "encoder_hidden_size": vision["hidden_size"], "max_position_embeddings": 40,
            "bos_token_id": 1, "sep_token_id": 2, "eos_token_id": 2, "pad_token_id": 0, **text,
        },
    )  # fmt: skip
    model = transformers.BlipForQuestionAnswering(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if re.search("norm", name, re.IGNORECASE):
                parameter.add_(0.1 * torch.randn(parameter.shape))
            else:
                fan = parameter.shape[-1] if parameter.dim() > 1 else 4 * parameter.numel()
                parameter.copy_(torch.randn(parameter.shape) * 1.2 * fan**-0.5)
    return model


# vision, text and picture sizes (the decoder reads questions as wide as pictures); question lengths
SIZES = [
    (
        {"hidden_size": 36, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 3},
        {"hidden_size": 36, "intermediate_size": 44, "num_hidden_layers": 4, "num_attention_heads": 6, "vocab_size": 50},
        {"image_size": 32, "patch_size": 8},
        [3, 7, 4],
    ),
    (
        {"hidden_size": 21, "intermediate_size": 17, "num_hidden_layers": 1, "num_attention_heads": 7},
        {"hidden_size": 21, "intermediate_size": 9, "num_hidden_layers": 3, "num_attention_heads": 1, "vocab_size": 9},
        {"image_size": 15, "patch_size": 5},
        [35, 3],
    ),
    (
        {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 1},
        {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 6, "num_attention_heads": 2, "vocab_size": 300},
        {"image_size": 112, "patch_size": 16},
        [9, 12, 17, 33],
    ),
]
EACH_SIZE = pytest.mark.parametrize(("vision", "text", "image", "lengths"), SIZES, ids=["small", "odd", "wide"])


def random_pixels(size: int, count: int = 1) -> Array:
    return np.random.default_rng(2).standard_normal((count, 3, size, size), np.float32)


def encode(model: Any, pixels: Array, ids: Array, length: int) -> Any:
    """The question encoder of transformers on one question: its output, with attentions."""
    with torch.no_grad():
        images = model.vision_model(torch.from_numpy(pixels)[None].to(next(model.parameters()).dtype)).last_hidden_state
    return model.text_encoder(
        input_ids=torch.from_numpy(ids[None, :length]).long(),
        encoder_hidden_states=images,
        encoder_attention_mask=torch.ones(images.shape[:2]),
        output_attentions=True,
        return_dict=True,
    )


def token_maps(out: Any, block: int) -> Array:
    """[n, P]: mean over heads of A max(G, 0), without the class column."""
    probabilities = out.cross_attentions[block]
    found = (probabilities * probabilities.grad.clamp(min=0)).mean(dim=1)[0, :, 1:]
    return found.detach().double().numpy()


# ---- the question encoder ----


@pytest.mark.every_level
@EACH_SIZE
def test_question_states_and_their_gradient(
    vision: dict[str, int], text: dict[str, int], image: dict[str, int], lengths: list[int]
) -> None:
    model = huggingface_model({**vision, **image}, text, seed=len(lengths))
    core = _core.BlipQuestionEncoder(config_of(model), weights_of(model))
    model.double()
    ids, mask = questions(text["vocab_size"], lengths, seed=1)
    (pixels,) = random_pixels(image["image_size"])
    state = core.encode_images(pixels[None])[0]
    states = core.encode_questions(state, ids, mask)
    d_states = np.random.default_rng(3).standard_normal(states.shape, np.float32)
    start = np.concatenate([[0], np.cumsum(lengths)])
    found = {block: core.gradcam(state, ids, mask, block, d_states) for block in range(text["num_hidden_layers"])}
    for i, length in enumerate(lengths):
        rows = slice(start[i], start[i + 1])
        out = encode(model, pixels, ids[i], length)
        close(states[rows], out.last_hidden_state[0].detach().numpy(), STATES)
        for probabilities in out.cross_attentions:
            probabilities.retain_grad()
        out.last_hidden_state.backward(torch.from_numpy(d_states[None, rows]).double())
        for block, (maps, logits, tokens) in found.items():
            expected = token_maps(out, block)
            assert logits is None
            close(tokens[rows], expected, MAPS / 2)
            close(maps[i], expected[1:-1].mean(axis=0), MAPS / 2)


# ---- the answer decoder ----


def decoder_of(model: Any, **options: Any) -> Any:
    text = model.config.text_config
    config = {
        "model_type": "bert", "num_attention_heads": text.num_attention_heads, "encoder_width": text.hidden_size,
    }  # fmt: skip
    return _core.Decoder(config, weights_of(model), prefix="text_decoder.", **options)


def teacher_forced(model: Any, states: Array, ids: Array) -> tuple[Array, Array]:
    """The log-probabilities of ids[1:] by transformers, and their sum's gradient with respect to the states."""
    read = torch.from_numpy(states[None]).double().requires_grad_()
    logits = model.text_decoder(
        input_ids=torch.from_numpy(ids[None, :-1]).long(),
        encoder_hidden_states=read,
        encoder_attention_mask=torch.ones(read.shape[:2]),
    ).logits[0]
    chosen = torch.log_softmax(logits, dim=1)[torch.arange(len(ids) - 1), torch.from_numpy(ids[1:]).long()]
    chosen.sum().backward()
    assert read.grad is not None
    return chosen.detach().numpy(), read.grad[0].numpy()


@pytest.mark.every_level
@EACH_SIZE
def test_gradient_of_the_states_that_a_decoder_reads(
    vision: dict[str, int], text: dict[str, int], image: dict[str, int], lengths: list[int]
) -> None:
    model = huggingface_model({**vision, **image}, text, seed=len(lengths))
    decoder = decoder_of(model)
    model.double()
    random = np.random.default_rng(4)
    states = random.standard_normal((sum(lengths), text["hidden_size"]), np.float32)
    ids_lengths = np.array([2, 39, 5, 3][: len(lengths)])
    ids = random.integers(0, text["vocab_size"], (len(lengths), int(ids_lengths.max())))
    found, gradient = decoder.gradient(states, lengths, ids, ids_lengths)
    parts = np.split(found, np.cumsum(ids_lengths - 1)[:-1])
    for part, own, rows, length, count in zip(
        parts, np.split(states, np.cumsum(lengths)[:-1]), np.split(gradient, np.cumsum(lengths)[:-1]), ids, ids_lengths
    ):
        log_probabilities, expected = teacher_forced(model, own, length[:count])
        close(part, log_probabilities, MAPS / 2)
        close(rows, expected, MAPS / 2)


def test_gradient_by_finite_differences() -> None:
    vision, text, image, _ = SIZES[0]
    decoder = decoder_of(huggingface_model({**vision, **image}, text, seed=3))
    random = np.random.default_rng(5)
    states = random.standard_normal((4, 36), np.float32)
    ids, count = np.array([[1, 7, 30, 2]]), np.array([4])
    _, gradient = decoder.gradient(states, [4], ids, count)
    direction = random.standard_normal(states.shape)
    direction /= np.abs(direction).max()
    step = 1e-2
    above, below = (
        decoder.gradient((states + sign * step * direction).astype(np.float32), [4], ids, count)[0].sum(dtype=np.float64)
        for sign in (1, -1)
    )
    assert (above - below) / (2 * step) == pytest.approx(float((gradient * direction).sum()), rel=2e-3)


def test_texts_do_not_depend_on_each_other() -> None:
    """More of them than go through the decoder together."""
    vision, text, image, _ = SIZES[0]
    decoder = decoder_of(huggingface_model({**vision, **image}, text, seed=3))
    random = np.random.default_rng(6)
    lengths, ids_lengths = random.integers(1, 9, 40), random.integers(2, 9, 40)
    states = random.standard_normal((int(lengths.sum()), 36), np.float32)
    ids = random.integers(0, 50, (40, 9))
    found, gradient = decoder.gradient(states, lengths, ids, ids_lengths)
    read, told = np.cumsum(lengths), np.cumsum(ids_lengths - 1)
    for i in (0, 7, 21, 39):
        rows, tokens = slice(read[i] - lengths[i], read[i]), slice(told[i] - ids_lengths[i] + 1, told[i])
        alone = decoder.gradient(states[rows], lengths[i : i + 1], ids[i : i + 1], ids_lengths[i : i + 1])
        close(found[tokens], alone[0], MAPS / 10)
        close(gradient[rows], alone[1], MAPS / 10)


def test_bad_gradients() -> None:
    vision, text, image, _ = SIZES[0]
    decoder = decoder_of(huggingface_model({**vision, **image}, text, seed=3))
    states, ids = np.zeros((3, 36), np.float32), np.ones((1, 4), np.int64)
    for arguments, message in (
        ((states[:, :35], [3], ids, [4]), r"states has shape \[3, 35\], expected \[S, 36\]"),
        ((states, [2], ids, [4]), "lengths: expected 1 numbers above 0, whose sum is the number of states"),
        ((states, [3, 0], ids, [4]), "lengths: expected 1 numbers above 0"),
        ((states, [3], ids, [0]), "ids_lengths: expected 1 numbers above 0"),
        ((states, [3], ids, [1]), "text 0 has 1 tokens, expected 2 to 4"),
        ((states, [3], ids, [5]), "text 0 has 5 tokens, expected 2 to 4"),
        ((states, [3], np.ones((1, 42), np.int64), [42]), "text 0 has 42 tokens, expected 2 to 41"),
        ((states, [3], ids * 50, [4]), "ids: text 0 holds 50 at position 0, expected 0 to 49"),
        ((states, [3], -ids, [4]), "ids: text 0 holds -1 at position 0"),
    ):
        with pytest.raises(ValueError, match=message):
            decoder.gradient(*arguments)
    found, gradient = decoder.gradient(states[:0], [], ids[:0], [])
    assert found.shape == (0,)
    assert gradient.shape == (0, 36)


# ---- the model ----

WORDS = ["red", "blue", "car", "dog", "man", "left", "right", "two", "yes", "no", "is", "the", "what", "where", "on", "?"]
#: As BERT's: special tokens first. [DEC] and [ENC] are the last two rows of LAVIS's table, which a vocab.txt lacks.
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *(f"##{letter}" for letter in "abcdefghijklmnopqrstuvw")]
QUESTIONS = ["what is on the left?", "is the dog blue", "where is the red car on the right?"]


def answering(seed: int, folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """A model of transformers whose ids are those of VOCABULARY, in a folder."""
    size = len(VOCABULARY) + 2
    vision, text, image, _ = SIZES[0]
    ids = {"bos_token_id": size - 2, "sep_token_id": 3, "eos_token_id": 3, "pad_token_id": 0}
    model = huggingface_model({**vision, **image}, {**text, "vocab_size": size, **ids}, seed)
    model.to(dtype).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY))
    return model.float()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """transformers' model, and ours."""
    folder = tmp_path_factory.mktemp("vqa")
    return answering(7, folder), qavit.load(folder)


def asked(ours: Any, question: str) -> Any:
    return ours._tokenize([question]).ids.astype(np.int64)


def test_what_it_is(pair: tuple[Any, Any]) -> None:
    _, ours = pair
    assert isinstance(ours, qavit.BlipVQA)
    assert (ours.kind, ours.takes_questions, ours.methods, ours.default_method) == (
        "blip_vqa",
        True,
        ("gradcam",),
        "gradcam",
    )
    assert ours.usable_blocks == (0, 1, 2, 3)
    assert ours.default_block == 3
    size = len(VOCABULARY)
    assert asked(ours, "the dog?").tolist() == [[size + 1, 16, 8, 20, 3]]
    assert (ours._start, ours._end) == (size, 3)


@pytest.mark.every_level
@pytest.mark.parametrize(
    "settings",
    [
        {}, {"max_new_tokens": 4}, {"min_new_tokens": 6, "max_new_tokens": 9}, {"num_beams": 3},
        {"num_beams": 4, "max_new_tokens": 6},
    ],
)  # fmt: skip
def test_answers_are_those_of_transformers(pair: tuple[Any, Any], settings: dict[str, int]) -> None:
    theirs, ours = pair
    (pixels,) = random_pixels(32)
    for question in QUESTIONS:
        with torch.no_grad():
            expected = theirs.generate(
                torch.from_numpy(asked(ours, question)), torch.from_numpy(pixels)[None], do_sample=False,
                **{"max_new_tokens": 30, **settings},
            )[0, 1:].tolist()  # fmt: skip
        (found,) = ours.answer(pixels, question, **settings)
        assert found.ids.tolist() == expected[: len(found.ids)]
        assert not any(expected[len(found.ids) :])  # padding
        assert found.text == ours._tokenizer.decode(expected)
        log_probabilities, _ = answer_gradient(theirs, ours, pixels, question, found.ids.tolist())
        assert found.score == pytest.approx(float(log_probabilities.sum()), abs=2e-4)


def test_answers_do_not_depend_on_each_other(pair: tuple[Any, Any]) -> None:
    _, ours = pair
    (pixels,) = random_pixels(32)
    together = ours.answer(pixels, QUESTIONS, return_logits=True)
    for question, one in zip(QUESTIONS, together):
        (alone,) = ours.answer(pixels, question, return_logits=True)
        assert alone.ids.tolist() == one.ids.tolist()
        assert one.logits.shape == (len(one.ids), len(VOCABULARY) + 2)
        close(one.logits, alone.logits, STATES)


def test_a_list_is_ranked_by_its_log_probabilities(pair: tuple[Any, Any]) -> None:
    theirs, ours = pair
    (pixels,) = random_pixels(32)
    answers = ["yes", "no", "red", "red car", "the red car", "two", "red dog", "the man on the left"]
    for question, found in zip(QUESTIONS, ours.answer(pixels, QUESTIONS, answers=answers)):
        assert found.ids is None
        expected = {}
        for answer in answers:
            ids = ours._tokenizer.encode([answer], 20).ids[0, 1:].tolist()
            expected[answer] = float(answer_gradient(theirs, ours, pixels, question, ids)[0].sum())
        assert [answer for answer, _ in found.ranked] == sorted(answers, key=lambda answer: -expected[answer])
        for answer, probability in found.ranked:
            assert np.log(probability) == pytest.approx(expected[answer], abs=2e-4)
        assert found.text == found.ranked[0][0]
        assert found.score == pytest.approx(expected[found.text], abs=2e-4)


def answer_gradient(theirs: Any, ours: Any, pixels: Array, question: str, answer: list[int]) -> tuple[Array, list[Array]]:
    """By autograd in float64: log-probabilities of an answer's ids, and every token's map [n, P] of each block."""
    model = copy.deepcopy(theirs).double()
    ids = asked(ours, question)
    out = encode(model, pixels, ids[0], ids.shape[1])
    for probabilities in out.cross_attentions:
        probabilities.retain_grad()
    logits = model.text_decoder(
        input_ids=torch.tensor([[ours._start, *answer[:-1]]]),
        encoder_hidden_states=out.last_hidden_state,
        encoder_attention_mask=torch.ones(ids.shape),
    ).logits[0]
    chosen = torch.log_softmax(logits, dim=1)[torch.arange(len(answer)), torch.tensor(answer)]
    chosen.sum().backward()
    return chosen.detach().numpy(), [token_maps(out, block) for block in range(len(out.cross_attentions))]


@pytest.mark.every_level
def test_maps_are_the_gradient_of_the_answer(pair: tuple[Any, Any]) -> None:
    theirs, ours = pair
    (pixels,) = random_pixels(32)
    written = ours.answer(pixels, QUESTIONS)
    result = ours.heatmaps(pixels, QUESTIONS)
    assert result.method == "gradcam"
    assert result.block == 3
    assert result.words == [question.split() for question in QUESTIONS]
    for row, (question, own) in enumerate(zip(QUESTIONS, written)):
        log_probabilities, maps = answer_gradient(theirs, ours, pixels, question, own.ids.tolist())
        ((text, probability),) = result.answers[row]
        assert text == own.text
        assert np.log(probability) == pytest.approx(float(log_probabilities.sum()), abs=2e-4)
        assert result.scores[row] == np.float32(probability)
        for block, tokens in enumerate(maps):
            close(result.at(block).raw[row].ravel(), tokens[1:-1].mean(axis=0), MAPS)
        word_of = ours._tokenize([question]).batch.word_of[0]
        for word, found in enumerate(result.word_maps[row]):
            own_rows = [i for i, one in enumerate(word_of) if one == word]
            close(found.ravel(), maps[3][own_rows].mean(axis=0), MAPS)


def test_maps_of_given_answers(pair: tuple[Any, Any]) -> None:
    theirs, ours = pair
    (pixels,) = random_pixels(32)
    answers = ["red", "the red car", "no"]
    result = ours.heatmaps(pixels, QUESTIONS, answer=answers, block=1)
    for row, (question, answer) in enumerate(zip(QUESTIONS, answers)):
        ids = ours._tokenizer.encode([answer], 20).ids[0, 1:]
        ids = ids[: np.flatnonzero(ids == 3)[0] + 1].tolist()
        log_probabilities, maps = answer_gradient(theirs, ours, pixels, question, ids)
        assert result.answers[row] == [(answer, pytest.approx(np.exp(log_probabilities.sum()), rel=2e-4))]
        close(result.raw[row].ravel(), maps[1][1:-1].mean(axis=0), MAPS)
    one = ours.heatmaps(pixels, QUESTIONS[0], answer="red", block=1)
    close(one.raw[0], result.raw[0], MAPS / 10)
    assert not np.allclose(one.maps, ours.heatmaps(pixels, QUESTIONS[0], answer="blue", block=1).maps, atol=1e-4)
    streamed = list(ours.stream([pixels], QUESTIONS[0], answer="red", block=1))
    assert np.array_equal(streamed[0].raw, one.raw)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3, "max_new_tokens": 6}, {"answers": ["red", "the man", "two"]}])
def test_answers_and_their_maps_together(pair: tuple[Any, Any], options: dict[str, Any]) -> None:
    """As a data set's rows have them: the map is that of the answer, however that was found."""
    theirs, ours = pair
    (pixels,) = random_pixels(32)
    result, found = ours._answered(ours._see(pixels), QUESTIONS, ours._request(None, 1, "mean"), **options)
    for row, (question, said) in enumerate(zip(QUESTIONS, ours.answer(pixels, QUESTIONS, **options))):
        assert found[row].text == said.text
        ids = ours._answerer.ids([said.text], "")[0] if said.ids is None else said.ids.tolist()
        log_probabilities, maps = answer_gradient(theirs, ours, pixels, question, ids)
        assert result.answers[row] == [(said.text, pytest.approx(np.exp(log_probabilities.sum()), rel=2e-4))]
        close(result.raw[row].ravel(), maps[1][1:-1].mean(axis=0), MAPS)


def test_a_checkpoint_of_lavis_is_the_same_model(pair: tuple[Any, Any], tmp_path: Path) -> None:
    theirs, ours = pair
    torch.save({"model": lavis_names(theirs)}, tmp_path / "vqa.pth")
    (tmp_path / "vocab.txt").write_text("\n".join(VOCABULARY))
    heads = {"vision": {"num_heads": 3}, "text": {"num_attention_heads": 6}}
    again = qavit.load(checkpoint=tmp_path / "vqa.pth", tokenizer=tmp_path / "vocab.txt", config=heads)
    assert again.kind == "blip_vqa"
    (pixels,) = random_pixels(32)
    expected = ours.heatmaps(pixels, QUESTIONS)
    found = again.heatmaps(pixels, QUESTIONS)
    assert np.array_equal(found.raw, expected.raw)
    assert found.answers == expected.answers


def lavis_names(model: Any) -> dict[str, torch.Tensor]:
    """transformers' weights by LAVIS's names."""
    names = (
        (r"^vision_model\.embeddings\.class_embedding$", "visual_encoder.cls_token"),
        (r"^vision_model\.embeddings\.position_embedding$", "visual_encoder.pos_embed"),
        (r"^vision_model\.embeddings\.patch_embedding\.", "visual_encoder.patch_embed.proj."),
        (r"^vision_model\.post_layernorm\.", "visual_encoder.norm."),
        (r"^vision_model\.encoder\.layers\.(\d+)\.layer_norm", r"visual_encoder.blocks.\1.norm"),
        (r"^vision_model\.encoder\.layers\.(\d+)\.self_attn\.projection", r"visual_encoder.blocks.\1.attn.proj"),
        (r"^vision_model\.encoder\.layers\.(\d+)\.self_attn", r"visual_encoder.blocks.\1.attn"),
        (r"^vision_model\.encoder\.layers\.(\d+)\.mlp", r"visual_encoder.blocks.\1.mlp"),
    )
    result = {}
    for name, tensor in model.state_dict().items():
        for pattern, replacement in names:
            name, count = re.subn(pattern, replacement, name)
            if count:
                break
        result[name] = tensor
    return result


def test_converted_and_travelling(pair: tuple[Any, Any], tmp_path: Path) -> None:
    _, ours = pair
    convert(ours._source, tmp_path / "model")
    (pixels,) = random_pixels(32)
    expected = ours.heatmaps(pixels, QUESTIONS[0])
    for again in (qavit.load(tmp_path / "model"), pickle.loads(pickle.dumps(ours))):
        assert np.array_equal(again.heatmaps(pixels, QUESTIONS[0]).raw, expected.raw)


def test_in_bfloat16(tmp_path: Path) -> None:
    answering(8, tmp_path)
    wide, narrow = qavit.load(tmp_path), qavit.load(tmp_path, precision="bfloat16")
    (pixels,) = random_pixels(32)
    expected, found = (model.heatmaps(pixels, QUESTIONS, answer="the red car") for model in (wide, narrow))
    close(found.raw, expected.raw, 10 * BFLOAT16)
    np.testing.assert_allclose(np.log(found.scores), np.log(expected.scores), rtol=2 * BFLOAT16)


def test_bad_questions_and_answers(pair: tuple[Any, Any]) -> None:
    _, ours = pair
    (pixels,) = random_pixels(32)
    long = " ".join(["car"] * 60)
    for call, message in (
        (lambda: ours.answer(pixels, ""), "questions: '' has no words"),
        (lambda: ours.heatmaps(pixels, ["the dog", " "]), "questions: ' ' has no words"),
        (lambda: ours.heatmaps(pixels, "the dog", answer=""), "answer: '' has no words"),
        (
            lambda: ours.heatmaps(pixels, "the dog", answer=["red", "blue"]),
            "answer: 2 for 1 questions; expected one, or one a",
        ),
        (lambda: ours.heatmaps(pixels, "the dog", answer=long), r"answer: 'car car .*'\.\.\. has more than 39 tokens"),
        (lambda: ours.answer(pixels, "the dog", answers=["red", " "]), "answers: ' ' has no words"),
        (lambda: ours.answer(pixels, "the dog", answers=[]), "answers"),
        (lambda: ours.answer(pixels, "the dog", answers=["no", "no"]), "answers: one of them is there twice"),
        (lambda: ours.answer(pixels, "the dog", answers=["no"], num_beams=2), "answers= are chosen from, none is written"),
        (lambda: ours.answer(pixels, "the dog", max_new_tokens=0), "max_new_tokens: 0, expected 1 to 4095"),
        (lambda: ours.answer(pixels, "the dog", max_new_tokens=40), "max_new_tokens: 40, expected 1 to 39"),
        (lambda: ours.answer(pixels, "the dog", min_new_tokens=31), "min_new_tokens: 31, expected 0 to max_new_tokens, 30"),
        (lambda: ours.answer(pixels, "the dog", num_beams=0), "num_beams: 0"),
        (lambda: ours.heatmaps(pixels, "the dog", score="softmax"), "score: method 'gradcam' does not take it"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(TypeError, match="answers: expected a list of str, got one str"):
        ours.answer(pixels, "the dog", answers="no")
    with pytest.raises(TypeError, match="itm: a model of kind 'blip_vqa' has none"):
        ours.itm(pixels, "the dog")
    with pytest.raises(ValueError, match="answer: method 'class' does not take it"):
        qavit.load("demo").heatmaps(np.zeros((40, 40, 3), np.uint8), "where is the star?", answer="red")


def test_another_models_tokenizer(pair: tuple[Any, Any], tmp_path: Path) -> None:
    theirs, _ = pair
    theirs.save_pretrained(tmp_path)
    (tmp_path / "vocab.txt").write_text("\n".join([*VOCABULARY, *(f"word{i}" for i in range(50))]))
    with pytest.raises(ValueError, match="tokenizer"):
        qavit.load(tmp_path)


def test_files_that_are_not_whole(pair: tuple[Any, Any], tmp_path: Path) -> None:
    theirs, _ = pair
    (tmp_path / "vocab.txt").write_text("\n".join(VOCABULARY))
    whole = lavis_names(theirs)
    heads = {"vision": {"num_heads": 3}, "text": {"num_attention_heads": 6}}
    for left_out, message in (
        ("text_decoder.cls.predictions.transform.dense.weight", r"transform.dense.weight \[36, 36\] is missing"),
        ("text_encoder.encoder.layer.0.crossattention", "lacks text_decoder or cross-attention in its first block"),
        ("text_decoder.bert.encoder.layer.2.output.dense.bias", r"layer.2.output.dense.bias \[36\] is missing"),
    ):
        part = {name: tensor for name, tensor in whole.items() if not name.startswith(left_out)}
        torch.save({"model": part}, tmp_path / "part.pth")
        with pytest.raises(ValueError, match=message):
            qavit.load(checkpoint=tmp_path / "part.pth", tokenizer=tmp_path / "vocab.txt", config=heads)
