"""qavit.load and QAViT: the public API, end to end, on the public code's own checkpoint."""

from __future__ import annotations

import copy
import json
import pickle
import re
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

import qavit

ROOT = Path(__file__).parent.parent
GOLDEN = Path(__file__).parent / "data" / "golden"


def load(point: str) -> Any:
    folder = GOLDEN / f"qavit_official_{point}"
    return qavit.load(checkpoint=folder / "checkpoint.pth", vision=folder / "clip", text=folder / "t5")


@pytest.fixture(scope="module")
def late() -> Any:
    return load("late")


@pytest.fixture(scope="module")
def golden() -> Any:
    return np.load(GOLDEN / "qavit_official_late" / "golden.npz")


@pytest.fixture(scope="module")
def questions() -> list[str]:
    return list(json.loads((GOLDEN / "qavit_official_late" / "cases.json").read_text())["questions"])


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (90, 160, 3), np.uint8)


@pytest.mark.every_level
@pytest.mark.parametrize("point", ["late", "early"])
def test_checkpoint_and_question_text_to_the_public_codes_numbers(point: str) -> None:
    model, golden = load(point), np.load(GOLDEN / f"qavit_official_{point}" / "golden.npz")
    asked = json.loads((GOLDEN / f"qavit_official_{point}" / "cases.json").read_text())["questions"]
    encoded = model.encode_questions(asked)
    batch = model.vision(golden["image"], encoded, output_attentions=True, output_hidden_states=True)
    padded = encoded.mask.shape[1]
    for q in range(3):
        tokens = golden[f"q{q}_instruct"].shape[1]
        assert encoded.mask[q].sum() == tokens
        # Observed: 1.3e-5 where the largest state is 4.
        assert np.abs(encoded.states[q, :tokens] - golden[f"q{q}_instruct"][0]).max() < 1e-4
        alone = model.vision(golden["image"][q : q + 1], model.encode_questions(asked[q]), output_attentions=True)
        # Observed: 5e-6; alone and in a padded batch.
        assert np.abs(batch.pooler_output[q] - golden[f"q{q}_pooled"][0]).max() < 4e-5
        assert np.abs(alone.pooler_output - golden[f"q{q}_pooled"]).max() < 4e-5
        for block in range(6):
            expected = golden[f"q{q}_attn{block}"]
            assert np.abs(alone.attentions[block] - expected).max() < 1e-5
            found = batch.attentions[block][q]
            if block in model.integrated:
                assert (found[..., tokens:padded] == 0).all()
                found = np.concatenate([found[..., :tokens], found[..., padded:]], axis=-1)
            assert np.abs(found - expected[0]).max() < 1e-5
            hidden = golden[f"q{q}_hidden{block + 1}"][0]
            assert np.abs(batch.hidden_states[block + 1][q] - hidden).max() < 1e-4 * np.abs(hidden).max()
    # The public code attends to padding in a batch, so its batch differs from its own single runs; ours does not.
    difference = np.abs(batch.hidden_states[6] - golden["batch_hidden_last"])
    assert difference[1].max() < 1e-3 < difference[2].max()


@pytest.mark.every_level
def test_forward_itm_is_the_class_row_over_patches(late: Any, golden: Any, questions: list[str]) -> None:
    maps = qavit.forward_itm(late, {"image": golden["image"], "text_input": questions}, block_num=5)
    assert maps.shape == (3, 25)
    assert maps.dtype == np.float32
    for q in range(3):
        row = golden[f"q{q}_attn5"][0, :, 0, -25:].mean(axis=0)
        assert np.abs(maps[q] - row / row.sum()).max() < 1e-6
    tensors = late.forward_itm({"image": torch.from_numpy(golden["image"]), "text_input": questions}, block_num=5)
    assert np.array_equal(tensors, maps)


@pytest.mark.every_level
def test_extract_attention(late: Any, golden: Any, questions: list[str]) -> None:
    maps = qavit.extract_attention(late, golden["image"], questions, blocks=(5, 4))
    assert maps.shape == (3, 2, 25)
    assert np.allclose(maps.sum(axis=-1), 1, atol=1e-5)
    assert np.array_equal(maps[:, 0], late.extract_attention(golden["image"], questions, blocks=(5,))[:, 0])
    heads = late.extract_attention(golden["image"], questions, blocks=(5,), heads=None)
    assert heads.shape == (3, 1, 4, 25)
    maps = late.heatmaps(golden["image"][0], questions, block=5).head_maps
    assert np.allclose(maps.reshape(3, 4, 25), late.extract_attention(golden["image"][:1], questions, (5,), None)[:, 0])
    one = late.extract_attention(golden["image"], questions, blocks=(5,), heads=2)
    assert np.allclose(one[:, 0], heads[:, 0, 2])
    shared = late.extract_attention(golden["image"][:1], questions, blocks=(5,))
    for q, question in enumerate(questions):
        single = late.extract_attention(golden["image"][:1], question, blocks=(5,))
        assert np.abs(shared[q] - single[0]).max() < 1e-6


@pytest.mark.every_level
def test_question_method(late: Any, golden: Any, questions: list[str]) -> None:
    maps = late.extract_attention(golden["image"][:1], questions[0], blocks=(3, 5), method="question")
    tokens = golden["q0_instruct"].shape[1]
    for column, block in enumerate((3, 5)):
        expected = golden[f"q0_attn{block}"][0, :, 1:, :tokens].sum(axis=-1).mean(axis=0)
        assert np.abs(maps[0, column] - expected / expected.sum()).max() < 1e-6
    with pytest.raises(ValueError, match=r"block 2 does not attend to the question; blocks \[3, 4, 5\] do"):
        late.extract_attention(golden["image"][:1], questions[0], blocks=(2,), method="question")


def test_a_method_may_be_any_callable(late: Any, picture: np.ndarray) -> None:
    shapes = []

    def strongest_head(attention: np.ndarray) -> np.ndarray:
        shapes.append(attention.shape)
        return attention[:, :, 0, -25:].max(axis=1)

    result = late.heatmaps(picture, ["where is the red car?", "is there a person"], block=5, method=strongest_head)
    assert shapes == [(2, 4, 26, 13 + 26)]
    assert result.method == "strongest_head"
    with pytest.raises(ValueError, match="method"):
        late.heatmaps(picture, "where is the red car?", block=5, method=lambda attention: attention[:, 0, 0])


def test_heatmaps(late: Any, picture: np.ndarray) -> None:
    result = late.heatmaps(picture, ["where is the red car?", "is there a person"])
    assert result.maps.shape == (2, 5, 5)
    assert result.block == late.default_block >= late.first_question_aware_block == 4
    # A 160 x 90 picture is resized to 124 x 70 and its middle cropped: to within a pixel, the middle square.
    region = result.seen
    assert np.allclose((region.left, region.top, region.right, region.bottom), (35, 0, 125, 90), atol=1)
    assert result.words[0][:3] == ["where", "is", "the"]
    assert [len(maps) for maps in result.word_maps] == [len(words) for words in result.words]
    assert result.block_maps.shape == (6, 2, 5, 5)
    assert np.abs(result.block_maps[result.block] - result.maps).max() < 1e-6
    assert np.abs(result.maps[0] - result.maps[1]).max() > 1e-4


def test_what_a_map_can_know(late: Any, picture: np.ndarray) -> None:
    asked = ["where is the red car?", "is there a person"]
    picture = picture[:, 35:125]
    for block in range(4):
        with pytest.warns(qavit.QuestionBlindWarning, match=r"enters in block 3.*blocks 4 to 5 do") as caught:
            result = late.heatmaps(picture, asked, block=block, heads=1)
        assert caught[0].filename == __file__
        assert [(note.kind, note.question, note.text) for note in result.notes] == [
            ("question_blind", None, str(caught[0].message))
        ]
        assert np.abs(result.maps[0] - result.maps[1]).max() < 1e-6
    with pytest.warns(qavit.QuestionBlindWarning) as caught:
        late.forward_itm({"image": np.zeros((1, 3, 70, 70), np.float32), "text_input": asked[:1]}, block_num=2)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        late.heatmaps(picture, asked, block=4)
        late.heatmaps(picture, asked, block=3, method="question")


def test_words_that_the_model_does_not_know(picture: np.ndarray, tmp_path: Path) -> None:
    demo = qavit.load("demo")
    picture = np.full((96, 96, 3), 200, np.uint8)
    picture[20:50, 20:50] = 10, 60, 220
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        demo.heatmaps(picture, ["where is the blue square?", "what is left of the ring, please", "is there a ..., 4?"])
    with pytest.warns(qavit.QavitWarning) as told:
        long = demo.heatmaps(picture, ["where is the red star " * 12, "where is the 星 star?", "where is the unicorn?"])
    assert [type(one.message) for one in told] == [
        qavit.QuestionCutWarning, qavit.UnknownWordsWarning, qavit.UnknownWordsWarning
    ]  # fmt: skip
    assert [(note.kind, note.question) for note in long.notes] == [
        ("question_cut", 0), ("unknown_words", 1), ("unknown_words", 2)
    ]  # fmt: skip
    assert long.notes[0].text.endswith("left out: '" + ("star " + "where is the red star " * 6).strip() + "'")
    assert "does not know '星' of 'where is the 星 star?'" in long.notes[1].text
    # Notes stand under a figure: however long a question, they are of a few lines.
    asked = ["where is the star " * 500, "星" * 500, "where is " + " ".join(f"odd{number}" for number in range(20))]
    with pytest.warns(qavit.QavitWarning):
        pages = demo.heatmaps(picture, asked)
    assert max(len(note.text) for note in pages.notes) < 330
    assert pages.notes[0].text.endswith("...'")
    assert "'odd7' and 12 more words of" in pages.notes[-1].text
    assert "does not know 'unicorn' of" in long[2].notes[0].text
    assert [note.question for note in long[1:].notes] == [0, 1]
    maps = long.word_maps
    # 30 tokens are read, the last of them closes the question; a word without tokens has no map.
    assert [len(words) for words in long.words][:2] == [len(values) for values in maps][:2] == [29, 4]
    assert long.words[1] == ["where", "is", "the", "star?"]
    long.to_html(tmp_path / "long.html")
    with pytest.warns(qavit.UnknownWordsWarning, match="红色的圆在哪里") as caught:
        unknown = demo.heatmaps(picture, "红色的圆在哪里？")
    assert caught[0].filename == __file__
    assert unknown.words == [[]]
    assert unknown.word_maps[0].shape == (0, *demo.grid)
    assert np.isfinite(unknown.maps).all()
    unknown.to_html(tmp_path / "unknown.html")
    unknown.save(tmp_path / "unknown.npz")
    unknown.save(tmp_path / "unknown.png")


@pytest.mark.every_level
def test_plain_clip(picture: np.ndarray) -> None:
    model = qavit.load(vision=GOLDEN / "qavit_official_late" / "clip")
    assert model.integrated == ()
    for block in (0, -1):
        result = model.heatmaps(picture, block=block)
        assert result.maps.shape == (1, 5, 5)
        assert abs(result.maps.sum() - 1) < 1e-5
    assert model.extract_attention(picture, blocks=(0, 5)).shape == (1, 2, 25)
    with pytest.raises(ValueError, match="takes no questions"):
        model.heatmaps(picture, "where is the car?")


@pytest.mark.every_level
def test_masks_need_not_be_prefixes(late: Any, golden: Any, questions: list[str]) -> None:
    encoded = late.encode_questions(questions[0])
    tokens = encoded.states.shape[1]
    states = np.full((1, 2 * tokens, 48), 1e3, np.float32)
    mask = np.zeros((1, 2 * tokens), np.uint8)
    states[:, 1::2], mask[:, 1::2] = encoded.states, 1
    straight = late.vision(golden["image"][:1], encoded, blocks=[5]).attentions[5]
    spread = late.vision(golden["image"][:1], states, mask, blocks=[5]).attentions[5]
    assert np.abs(spread[..., 1 : 2 * tokens : 2] - straight[..., :tokens]).max() < 1e-6
    assert (spread[..., 0 : 2 * tokens : 2] == 0).all()
    assert np.abs(spread[..., 2 * tokens :] - straight[..., tokens:]).max() < 1e-6


@pytest.mark.every_level
def test_equal_pictures_share_and_order_is_kept(late: Any, golden: Any, questions: list[str]) -> None:
    order = [2, 0, 1, 0, 2, 2]
    images = golden["image"][order]
    asked = [questions[i % 3] for i in range(6)]
    maps = late.forward_itm({"image": images, "text_input": asked}, block_num=5)
    for row in range(6):
        alone = late.forward_itm({"image": images[row : row + 1], "text_input": asked[row : row + 1]}, block_num=5)
        assert np.abs(maps[row] - alone[0]).max() < 1e-6
    early = late.vision(images, late.encode_questions(asked), output_hidden_states=True)
    for row in range(6):
        assert np.abs(early.hidden_states[2][row] - early.hidden_states[2][order.index(order[row])]).max() < 1e-6


def test_blocks_that_were_not_computed(late: Any, golden: Any, questions: list[str]) -> None:
    output = late.vision(golden["image"][:1], late.encode_questions(questions[0]), blocks=[1, 4])
    assert output.attentions.blocks == (1, 4)
    assert output.attentions[-2].shape == (1, 4, 26, 39)
    assert output.pooler_output is None
    with pytest.raises(KeyError, match=r"block 3 was not computed; there are blocks \[1, 4\]"):
        output.attentions[3]
    assert [(block, array.shape[-1]) for block, array in output.attentions.items()] == [(1, 26), (4, 39)]
    assert (len(output.attentions), list(reversed(list(output.attentions))), 3 in output.attentions) == (2, [4, 1], False)
    every = late.vision(golden["image"][:1], late.encode_questions(questions[0]), output_attentions=True).attentions
    assert isinstance(every, tuple)
    assert len(every) == late.num_blocks
    assert np.array_equal(every[1:][0], output.attentions[1])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m, p: m.heatmaps(p, ""), ValueError, "questions: '' has no words"),
        (lambda m, p: m.heatmaps(p, "..!"), ValueError, "has no words"),
        (lambda m, p: m.heatmaps(p, []), ValueError, "questions: the list is empty"),
        (lambda m, p: m.heatmaps(p, 3), TypeError, "questions: expected a str or a list of str, got int"),
        (lambda m, p: m.heatmaps(p, ["a", None]), TypeError, "questions"),
        (lambda m, p: m.heatmaps(p), ValueError, "give at least one"),
        (lambda m, p: m.heatmaps(p, "hi", block=6), ValueError, "block 6 does not exist; this model has blocks 0 to 5"),
        (lambda m, p: m.heatmaps(p, "hi", block=2.5), TypeError, "block: expected a whole number, got float"),
        (lambda m, p: m.heatmaps(p, "hi", method="grad"), ValueError, "method"),
        (lambda m, p: m.heatmaps(p, "hi", heads="median"), ValueError, "heads"),
        (lambda m, p: m.heatmaps(p, "hi", heads=4), ValueError, "head 4"),
        (lambda m, p: m.heatmaps("no/such.png", "hi"), FileNotFoundError, "no/such.png"),
        (lambda m, p: m.heatmaps(p[:, :, :2], "hi"), ValueError, "shape"),
        (lambda m, p: m.answer(p, "!"), ValueError, "questions: .!. has no words"),
        (lambda m, p: m.forward_itm({"image": np.zeros((2, 3, 70, 70)), "text_input": ["a"]}), ValueError, "2 pictures"),
        (lambda m, p: m.forward_itm({"image": np.zeros((1, 3, 71, 70), "f"), "text_input": ["a"]}, 5), ValueError, "shape"),
        (lambda m, p: m.forward_itm({"image": np.full((1, 3, 70, 70), np.nan), "text_input": ["a"]}, 5), ValueError, "NaN"),
        (lambda m, p: m.forward_itm({"text_input": ["a"]}), ValueError, "samples: expected a mapping"),
        (lambda m, p: m.forward_itm(3), ValueError, "samples"),
        (lambda m, p: m.vision(np.zeros((1, 3, 70, 70), "f"), np.zeros((1, 2, 47), "f")), ValueError, "instruct_states"),
        (lambda m, p: m.vision(np.zeros((2, 3, 70, 70), "f"), np.zeros((1, 2, 48), "f")), ValueError, "1 questions for 2"),
        (lambda m, p: m.vision(np.zeros((1, 3, 70, 70), "f"), np.full((1, 2, 48), np.inf, "f")), ValueError, "infinity"),
        (
            lambda m, p: m.vision(np.zeros((1, 3, 70, 70), "f"), np.zeros((1, 2, 48), "f"), np.zeros((1, 2))),
            ValueError,
            "no token that counts",
        ),
        (lambda m, p: m.extract_attention(p, "hi", blocks=()), ValueError, "blocks: expected at least one block"),
        (lambda m, p: m.extract_attention(p, "hi", blocks=5), TypeError, "blocks: expected several whole numbers, got int"),
        (lambda m, p: m.extract_attention([p, p], "a", blocks=[5]), TypeError, "got list; give one picture"),
        (lambda m, p: m.heatmaps(p, "hi", heads=None), ValueError, "heads: None is for extract_attention"),
        (lambda m, p: m.heatmaps(p, "hi", heads=True), TypeError, "heads: .* got bool"),
        (lambda m, p: m.heatmaps(p, ["a", 3]), TypeError, "questions: .* got list with int in it"),
        (lambda m, p: m.heatmaps(p, "a \ud800 b"), ValueError, "questions: .* holds a surrogate"),
        (lambda m, p: m.heatmaps(p.transpose(2, 0, 1), "hi"), ValueError, "transpose"),
        (lambda m, p: m.heatmaps(p / 255, "hi"), ValueError, "image: shape"),
        (lambda m, p: m.forward_itm({"image": np.zeros((3, 70, 70)), "text_input": ["a", "b"]}), ValueError, "1 pictures"),
        (lambda m, p: qavit.load(""), ValueError, "path: got ''"),
        (lambda m, p: qavit.load(text="t5"), ValueError, "text: given alone"),
        (lambda m, p: m.forward_itm({"image": np.zeros((3, 70, 70)), "text_input": "a"}), ValueError, "block_num: block 7"),
        (lambda m, p: qavit.load(b"demo"), TypeError, "path: expected a str or a path, got bytes"),
        (lambda m, p: qavit.load("no/such/folder"), FileNotFoundError, "no/such/folder"),
        (lambda m, p: qavit.load(precision="float64"), ValueError, "precision"),
        (lambda m, p: qavit.load(device="tpu"), ValueError, "device"),
        (lambda m, p: qavit.load(device="cuda:63"), (RuntimeError, ValueError), "no CUDA|NVIDIA|there (is|are)"),
    ],
)
@pytest.mark.filterwarnings("ignore::qavit.QuestionBlindWarning")
def test_bad_input(late: Any, picture: np.ndarray, call: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        call(late, picture)


def test_lists_of_pixel_values_are_batches(late: Any, golden: Any, questions: list[str]) -> None:
    images = golden["image"]
    expected = late.forward_itm({"image": images, "text_input": questions}, block_num=5)
    given = [torch.tensor(image, requires_grad=True) for image in images]
    np.testing.assert_array_equal(late.forward_itm({"image": given, "text_input": questions}, block_num=5), expected)
    maps = late.extract_attention(tuple(images), questions, blocks=[np.int64(5)])
    np.testing.assert_array_equal(maps[:, 0], expected)


def test_a_model_travels_by_its_files(picture: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = GOLDEN / "qavit_official_late"
    monkeypatch.chdir(folder)
    model = qavit.load(checkpoint="checkpoint.pth", vision="clip", text=Path("t5"))
    expected = model.heatmaps(picture, "where is the car?").maps
    monkeypatch.chdir(tmp_path)
    for again in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert again is not model
        assert again.precision == model.precision
        np.testing.assert_array_equal(again.heatmaps(picture, "where is the car?").maps, expected)
    # A folder of that name here is not what "demo" is.
    demo, _ = qavit.load("demo"), Path("demo").mkdir()
    assert pickle.loads(pickle.dumps(demo)).name == "demo"
    assert len(pickle.dumps(demo)) < 1000
    made = type(model)(model._source)
    with pytest.raises(TypeError, match="not made by qavit"):
        pickle.dumps(made)


def test_an_answer_has_its_map_and_all_that_it_was_chosen_from(picture: np.ndarray) -> None:
    demo = qavit.load("demo")
    questions = ["where is the star?", "what color is it?"]
    expected = demo.heatmaps(picture, questions)
    for row, found in enumerate(demo.answer(picture, questions)):
        assert found.ranked == expected.answers[row]
        assert (found.text, np.exp(found.score)) == (found.ranked[0][0], pytest.approx(found.ranked[0][1]))
        assert found.ids is None
        np.testing.assert_array_equal(found.result.maps, expected.maps[row : row + 1])
        assert found.result.questions == [questions[row]]
    with pytest.raises(ValueError, match=r"num_beams.*chooses from a list of answers"):
        demo.answer(picture, questions, num_beams=3)


def test_callers_arrays_are_left_alone(late: Any, golden: Any, questions: list[str]) -> None:
    image, states = golden["image"].copy(), late.encode_questions(questions)
    image.setflags(write=False)
    states.states.setflags(write=False)
    before = states.states.tobytes()
    late.vision(image, states)
    late.forward_itm({"image": image, "text_input": questions}, block_num=5)
    assert states.states.tobytes() == before
    first = late.encode_questions(questions).states
    first[:] = 7
    assert not (late.encode_questions(questions).states == 7).any()


def test_many_threads_on_one_model(late: Any, golden: Any, questions: list[str]) -> None:
    samples = {"image": golden["image"], "text_input": questions}
    expected = late.forward_itm(samples, block_num=5)
    wrong = []

    def work() -> None:
        wrong.extend(1 for _ in range(20) if not np.array_equal(late.forward_itm(samples, block_num=5), expected))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_importing_is_light() -> None:
    code = (
        "import sys, qavit; heavy = {'torch', 'matplotlib', 'PIL', 'tokenizers', 'safetensors', 'tqdm', 'transformers'}"
        " & set(sys.modules); print(sorted(heavy)); assert not heavy; assert qavit.build_info()['blas']"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_no_torch_at_run_time() -> None:
    folder = GOLDEN / "qavit_official_late"
    code = (
        "import sys, numpy as np, qavit\n"
        f"model = qavit.load(checkpoint={str(folder / 'checkpoint.pth')!r}, vision={str(folder / 'clip')!r}, "
        f"text={str(folder / 't5')!r})\n"
        "model.heatmaps(np.zeros((20, 30, 3), np.uint8), 'where is the red car?')\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.fixture
def answering(tmp_path: Path) -> tuple[Path, dict[str, np.ndarray]]:
    """A copy of the demo model's folder, and the tensors to write there."""
    for path in Path(qavit.__file__).with_name("demo_model").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path, load_file(tmp_path / "model.safetensors")


def test_answers_are_the_softmax_of_their_head(answering: tuple[Path, dict[str, np.ndarray]], picture: np.ndarray) -> None:
    folder, tensors = answering
    bias = tensors["answer_head.bias"]
    tensors["answer_head.weight"][:] = 0
    bias[:] = 300  # whose exp() no float32 holds
    bias[3], bias[7] = 302, 304
    save_file(tensors, folder / "model.safetensors")
    model = qavit.load(folder)
    found = model.answer(picture, "where is the star?")[0].ranked
    # Equal ones stay in the order of the list.
    others = [i for i in range(len(bias)) if i not in (3, 7)]
    assert [name for name, _ in found] == [model.answer_names[i] for i in (7, 3, *others)]
    expected = np.exp(np.array([4, 2, *[0] * len(others)], np.float64))
    # Observed: 1.4e-7.
    np.testing.assert_allclose([value for _, value in found], expected / expected.sum(), rtol=1e-6)


@pytest.mark.parametrize("name", ["answer_head.weight", "answer_head.bias"])
def test_an_answer_head_that_does_not_fit_is_named(answering: tuple[Path, dict[str, np.ndarray]], name: str) -> None:
    folder, tensors = answering
    shape = list(tensors[name].shape)
    wrong = [*shape[:-1], shape[-1] + 1]
    save_file({**tensors, name: np.zeros(wrong, np.float32)}, folder / "model.safetensors")
    with pytest.raises(ValueError, match=re.escape(f"{name} has shape {wrong}, expected {shape}")):
        qavit.load(folder)
    del tensors[name]
    save_file(tensors, folder / "model.safetensors")
    missing = "answer_head.bias [32] is not expected" if name.endswith("weight") else "answer_head.bias [32] is missing"
    with pytest.raises(ValueError, match=re.escape(missing)):
        qavit.load(folder)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_answers_that_are_not_finite_are_refused(
    answering: tuple[Path, dict[str, np.ndarray]], picture: np.ndarray, value: float
) -> None:
    folder, tensors = answering
    tensors["answer_head.bias"][2] = value
    save_file(tensors, folder / "model.safetensors")
    model = qavit.load(folder)
    with pytest.raises(ValueError, match="the answers' scores are not finite"):
        model.answer(picture, "where is the star?")
