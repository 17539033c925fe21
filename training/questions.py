"""Questions about drawn scenes: several kinds, several phrasings of each, with answers and the boxes they refer to."""

from __future__ import annotations

import numpy as np

from training.scenes import CANVAS, COLORS, SHAPES, Question, Scene, SceneObject

KINDS = ("where", "color", "shape", "exists", "relation", "count", "largest")
POSITIONS = tuple(f"{row} {column}".strip() for row in ("top", "middle", "bottom") for column in ("left", "center", "right"))
NUMBERS = tuple(str(n) for n in range(7))
ANSWERS = COLORS + SHAPES + ("yes", "no") + NUMBERS + POSITIONS

SHAPE_WORDS = {
    "circle": ("circle", "circle", "circle", "disc", "disk", "dot", "ball"),
    "square": ("square", "square", "square", "box", "block", "cube"),
    "triangle": ("triangle", "triangle", "triangle", "pyramid", "wedge"),
    "star": ("star", "star", "star", "asterisk"),
    "cross": ("cross", "cross", "cross", "plus", "plus sign"),
    "ring": ("ring", "ring", "ring", "donut", "doughnut", "hoop"),
}
COLOR_WORDS = {name: (name,) for name in COLORS} | {
    "purple": ("purple", "purple", "violet"),
    "red": ("red", "red", "red", "crimson"),
}
THINGS = ("object", "object", "thing", "shape", "one", "item", "figure")

_WHERE = (
    "where is {x}",
    "where is {x}",
    "where is {x}",
    "where's {x}",
    "show me {x}",
    "find {x}",
    "point to {x}",
    "point at {x}",
    "locate {x}",
    "look at {x}",
    "look for {x}",
    "where can i find {x}",
    "where do you see {x}",
    "can you find {x}",
    "can you show me {x}",
    "{x}",
    "where is {x} in the image",
    "where is {x} in this picture",
    "please find {x}",
    "please point to {x}",
    "what is the position of {x}",
    "what is the location of {x}",
    "in which part of the picture is {x}",
    "highlight {x}",
    "tell me where {x} is",
    "search for {x}",
    "which part shows {x}",
)
_COLOR = (
    "what color is {x}",
    "what color is {x}",
    "what colour is {x}",
    "which color is {x}",
    "which colour does {x} have",
    "what color does {x} have",
    "what is the color of {x}",
    "what is the colour of {x}",
    "tell me the color of {x}",
    "name the color of {x}",
    "how is {x} colored",
    "{x} has what color",
    "what color is {x} in the image",
)
_SHAPE = (
    "what shape is {x}",
    "what shape is {x}",
    "which shape is {x}",
    "what is the shape of {x}",
    "what shape does {x} have",
    "what is {x}",
    "what kind of object is {x}",
    "what kind of shape is {x}",
    "tell me the shape of {x}",
    "name the shape of {x}",
    "which shape does {x} have",
    "what form does {x} have",
    "what type of shape is {x}",
)
_EXISTS = (
    "is there {a}",
    "is there {a}",
    "is there {a} in the image",
    "is there {a} in the picture",
    "do you see {a}",
    "can you see {a}",
    "does the image contain {a}",
    "does the picture show {a}",
    "is {a} in the image",
    "is {a} present",
    "are there any {p}",
    "is there any {n}",
    "does this scene have {a}",
    "is {a} visible",
)
_COUNT = (
    "how many {p} are there",
    "how many {p} are there",
    "how many {p} are in the image",
    "how many {p} do you see",
    "how many {p} can you see",
    "count the {p}",
    "what is the number of {p}",
    "how many {p}",
    "how many {p} does the picture show",
    "tell me how many {p} there are",
    "number of {p}",
)
_LARGEST = (
    "what is the main object",
    "what is the main object in the image",
    "what is the main object in this picture",
    "what is the largest object",
    "what is the biggest shape",
    "which shape is the largest",
    "which object is the biggest",
    "show me the largest object",
    "what is the biggest thing in the picture",
    "what is the main subject of the image",
    "find the biggest object",
    "what shape is the largest object",
    "where is the main object",
    "what is the big object",
)
_RELATIONS = {
    "left": ("left of", "to the left of", "on the left of", "on the left side of"),
    "right": ("right of", "to the right of", "on the right of", "on the right side of"),
    "above": ("above", "over", "on top of", "higher than"),
    "below": ("below", "under", "beneath", "underneath", "lower than"),
}
_RELATION_SHAPE = (
    "what is {r} {x}",
    "what is {r} {x}",
    "which shape is {r} {x}",
    "what shape is {r} {x}",
    "what object is {r} {x}",
    "what shape is the object {r} {x}",
    "what do you see {r} {x}",
    "what lies {r} {x}",
    "find the object {r} {x}",
    "show me what is {r} {x}",
)
_RELATION_COLOR = (
    "what color is the object {r} {x}",
    "what color is the thing {r} {x}",
    "what colour is the shape {r} {x}",
    "what is the color of the object {r} {x}",
)


def _one(rng: np.random.Generator, words: tuple[str, ...]) -> str:
    return words[int(rng.integers(len(words)))]


def _plural(noun: str) -> str:
    return noun + ("es" if noun.endswith(("s", "x")) else "s")


def _article(phrase: str) -> str:
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def _noun(rng: np.random.Generator, color: str | None, shape: str | None) -> str:
    """A noun for an attribute pair, without article: "red star", "red object", "star"."""
    noun = _one(rng, SHAPE_WORDS[shape]) if shape else _one(rng, THINGS)
    return f"{_one(rng, COLOR_WORDS[color])} {noun}" if color else noun


def _matching(scene: Scene, color: str | None, shape: str | None) -> tuple[int, ...]:
    return tuple(i for i, o in enumerate(scene.objects) if color in (None, o.color) and shape in (None, o.shape))


def _refer(scene: Scene, index: int, rng: np.random.Generator) -> str | None:
    """A phrase with article that means object `index` alone, or None where its pair is not unique."""
    thing = scene.objects[index]
    if len(_matching(scene, thing.color, thing.shape)) > 1:
        return None
    choice = rng.random()
    if choice < 0.2 and len(_matching(scene, None, thing.shape)) == 1:
        return f"the {_noun(rng, None, thing.shape)}"
    if choice > 0.85 and len(_matching(scene, thing.color, None)) == 1:
        return f"the {_noun(rng, thing.color, None)}"
    return f"the {_noun(rng, thing.color, thing.shape)}"


def position_of(thing: SceneObject) -> str | None:
    """Its ninth of the picture, or None within 2 units of a dividing line."""
    near = min(abs(v - line) for v in (thing.x, thing.y) for line in (CANVAS / 3, 2 * CANVAS / 3))
    if near < 2:
        return None
    return POSITIONS[3 * int(thing.y * 3 / CANVAS) + int(thing.x * 3 / CANVAS)]


def _in_direction(scene: Scene, anchor: int, direction: str) -> list[int]:
    """Objects whose direction from the anchor is within 45 degrees of the named one."""
    found = []
    for i, o in enumerate(scene.objects):
        dx, dy = o.x - scene.objects[anchor].x, o.y - scene.objects[anchor].y
        if (
            i != anchor
            and {
                "left": dx < -abs(dy),
                "right": dx > abs(dy),
                "above": dy < -abs(dx),
                "below": dy > abs(dx),
            }[direction]
        ):
            found.append(i)
    return found


def _relation(scene: Scene, rng: np.random.Generator) -> tuple[str, str, tuple[int, ...], tuple[int, ...]] | None:
    """As the other kinds, and the named object behind."""
    order = [(int(a), str(d)) for a in rng.permutation(len(scene.objects)) for d in rng.permutation(list(_RELATIONS))]
    for anchor, direction in order:
        found = _in_direction(scene, anchor, direction)
        phrase = _refer(scene, anchor, rng) if len(found) == 1 else None
        if phrase is None:
            continue
        target = scene.objects[found[0]]
        words = {"r": _one(rng, _RELATIONS[direction]), "x": phrase}
        if rng.random() < 0.5:
            return _one(rng, _RELATION_SHAPE).format(**words), target.shape, (found[0],), (anchor,)
        return _one(rng, _RELATION_COLOR).format(**words), target.color, (found[0],), (anchor,)
    return None


def _count(scene: Scene, rng: np.random.Generator) -> tuple[str, str, tuple[int, ...]]:
    thing = scene.objects[int(rng.integers(len(scene.objects)))]
    color, shape = (thing.color, thing.shape) if rng.random() < 0.85 else (_one(rng, COLORS), _one(rng, SHAPES))
    choice = rng.random()
    if choice < 0.5:
        color = None  # type: ignore[assignment]
    elif choice < 0.85:
        shape = None  # type: ignore[assignment]
    elif choice > 0.95:
        color = shape = None  # type: ignore[assignment]
    found = _matching(scene, color, shape)
    return _one(rng, _COUNT).format(p=_plural(_noun(rng, color, shape))), str(len(found)), found


def _exists(scene: Scene, rng: np.random.Generator, present: bool) -> tuple[str, str, tuple[int, ...]] | None:
    things = scene.objects
    if present:
        thing = things[int(rng.integers(len(things)))]
        color, shape = thing.color, thing.shape
    else:  # mostly hard ones: the colour and the shape both occur, on different objects
        for _ in range(12):
            color, shape = things[int(rng.integers(len(things)))].color, things[int(rng.integers(len(things)))].shape
            if rng.random() < 0.3:
                color, shape = _one(rng, COLORS), _one(rng, SHAPES)
            if not _matching(scene, color, shape):
                break
    found = _matching(scene, color, shape)
    if bool(found) != present:
        return None
    noun = _noun(rng, color, shape)
    text = _one(rng, _EXISTS).format(a=_article(noun), n=noun, p=_plural(noun))
    return text, "yes" if present else "no", found


def clearly_largest(scene: Scene) -> int | None:
    """The number of the largest object, or None where another is of nearly its size."""
    order = sorted(range(len(scene.objects)), key=lambda i: -scene.objects[i].radius)
    if len(order) > 1 and scene.objects[order[0]].radius < 1.15 * scene.objects[order[1]].radius:
        return None
    return order[0]


def _largest(scene: Scene, rng: np.random.Generator) -> tuple[str, str, tuple[int, ...]] | None:
    index = clearly_largest(scene)
    if index is None:
        return None
    return _one(rng, _LARGEST), scene.objects[index].shape, (index,)


def _about(scene: Scene, rng: np.random.Generator, kind: str) -> tuple[str, str, tuple[int, ...]] | None:
    """A "where", "color" or "shape" question about one object."""
    for i in (int(i) for i in rng.permutation(len(scene.objects))):
        thing = scene.objects[i]
        if kind == "color" and len(_matching(scene, None, thing.shape)) == 1:
            return _one(rng, _COLOR).format(x=f"the {_noun(rng, None, thing.shape)}"), thing.color, (i,)
        if kind == "shape" and len(_matching(scene, thing.color, None)) == 1:
            return _one(rng, _SHAPE).format(x=f"the {_noun(rng, thing.color, None)}"), thing.shape, (i,)
        phrase, place = _refer(scene, i, rng), position_of(thing)
        if kind == "where" and phrase is not None and place is not None:
            return _one(rng, _WHERE).format(x=phrase), place, (i,)
    return None


def ask(scene: Scene, rng: np.random.Generator, kind: str) -> Question | None:
    """One question of a kind ("exists" is present or absent by a coin), or None where the scene offers none."""
    made: tuple[str, str, tuple[int, ...]] | None
    named = None
    if kind in ("where", "color", "shape"):
        made = _about(scene, rng, kind)
    elif kind == "exists":
        made = _exists(scene, rng, bool(rng.random() < 0.5))
    elif kind == "relation":
        related = _relation(scene, rng)
        made, named = (None, None) if related is None else (related[:3], related[3])
    elif kind == "count":
        made = _count(scene, rng)
    elif kind == "largest":
        made = _largest(scene, rng)
    else:
        raise ValueError(f"kind is {kind!r}, expected one of {', '.join(KINDS)}")
    if made is None:
        return None
    text, answer, targets = made
    return Question(text, kind, answer, tuple(scene.boxes[i] for i in targets), targets, targets if named is None else named)


def questions_for(scene: Scene, rng: np.random.Generator) -> list[Question]:
    """One question of every kind that the scene offers.

    Parameters
    ----------
    scene : Scene
        From `training.scenes.draw_scene`.
    rng : numpy.random.Generator
        Decides objects and phrasing.

    Returns
    -------
    list of Question
        Texts in lower case without punctuation; boxes in pixels of `scene.image`.
    """
    return [question for kind in KINDS if (question := ask(scene, rng, kind)) is not None]


def all_words() -> list[str]:
    """Every word that a question can contain, sorted: the tokenizer's vocabulary."""
    text = " ".join(
        _WHERE + _COLOR + _SHAPE + _EXISTS + _COUNT + _LARGEST + _RELATION_SHAPE + _RELATION_COLOR + THINGS + NUMBERS
    )
    text += (
        " "
        + " ".join(" ".join(v) for v in _RELATIONS.values())
        + " "
        + " ".join(" ".join(v) for v in COLOR_WORDS.values())
        + " a an"
    )
    nouns = [word for words in SHAPE_WORDS.values() for word in words] + list(THINGS)
    text += " " + " ".join(nouns) + " " + " ".join(_plural(noun) for noun in nouns)
    for mark in ("{a}", "{n}", "{p}", "{r}", "{x}", "'"):
        text = text.replace(mark, " ")
    return sorted(set(text.split()))
