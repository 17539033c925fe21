"""Tokenizers in all the files that people have, as the JSON of the tokenizers library, with the settings beside them obeyed.

tokenizer.json; vocab.txt (BERT); vocab.json and merges.txt (RoBERTa, CLIP); OpenAI's bpe_simple_vocab_16e6.txt.gz;
spiece.model, sentencepiece.bpe.model and tokenizer.model (T5, SigLIP, CamemBERT, XLM-RoBERTa).
Beside them tokenizer_config.json, special_tokens_map.json, added_tokens.json.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from .refusals import refusals
from .sentencepiece import CONTROL, NORMAL, UNKNOWN, Piece, SentencePieceModel, build_tokenizer, read_sentencepiece
from .small_files import parse_json, read_bytes

SENTENCEPIECE = ("spiece.model", "sentencepiece.bpe.model", "tokenizer.model")
#: What is looked for in a folder, the first that is there.
OPENAI = "bpe_simple_vocab_16e6.txt.gz"
FILES = ("tokenizer.json", "vocab.txt", "vocab.json", *SENTENCEPIECE, OPENAI)
_CLIP_PIECES = r"""'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""
_SPECIAL = ("unk_token", "bos_token", "eos_token", "sep_token", "pad_token", "cls_token", "mask_token")
#: How many pairs OpenAI's CLIP takes of its file: what makes 49,408 pieces.
_OPENAI_PAIRS = 49152 - 256 - 2
_MAX_PAIRS_FILE = 1 << 24
#: Lengths that mean no limit.
_NO_LENGTH = 1 << 24


def tokenizer_file(folder: Path) -> Path | None:
    """The file of a folder's tokenizer; None where there is none."""
    return next((folder / name for name in FILES if (folder / name).is_file()), None)


def read_tokenizer(path: Path) -> str:
    """The tokenizer of a folder or file as JSON of the tokenizers library.

    Raises
    ------
    FileNotFoundError
        Where there is none; names what was looked for.
    ValueError
        Where a file is broken, or a setting cannot be obeyed.
    """
    if not path.exists():
        raise FileNotFoundError(f"tokenizer: there is no file or folder {str(path)!r}")
    if path.is_dir():
        found = tokenizer_file(path)
        if found is None:
            raise FileNotFoundError(f"tokenizer: {path} holds no tokenizer: none of {', '.join(FILES)}")
        path = found
    settings = read_settings(path.parent)
    if path.suffix == ".gz":
        built = _openai_pairs(path, settings)
    elif path.name == "vocab.json":
        built = _byte_pairs(path, path.with_name("merges.txt"), settings)
    elif path.suffix == ".txt":
        built = _word_pieces(path, settings)
    elif path.suffix == ".model":
        built = _sentence_pieces(path, settings)
    else:
        built = decode(read_bytes(path), path)
    return _with_settings(built, settings, path)


def read_settings(folder: Path) -> dict[str, Any]:
    """What stands beside a tokenizer, the more telling file over the others: its settings and the tokens it adds."""
    result: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        path = folder / name
        if path.is_file():
            found = parse_json(read_bytes(path), str(path))
            if not isinstance(found, dict):
                raise ValueError(f"{path}: expected a JSON object, got {type(found).__name__}")
            result.update({key: value for key, value in found.items() if value is not None})
    path = folder / "added_tokens.json"
    if path.is_file():
        table = parse_json(read_bytes(path), str(path))
        if not isinstance(table, dict) or not all(_is_number(number) for number in table.values()):
            raise ValueError(f"{path}: expected an object of token numbers")
        result["added_tokens"] = table
    if re.search("[\ud800-\udfff]", json.dumps(result, ensure_ascii=False)):
        raise ValueError(f"{folder}: the settings of its tokenizer hold half a letter (a lone surrogate)")
    return result


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 31


def decode(data: bytes, path: Path) -> str:
    """UTF-8 text, or a ValueError that names the file."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as err:
        raise ValueError(f"{path}: not UTF-8 text: {err}") from None


def _text_of(token: Any) -> str | None:
    """A special token's text, which settings give plain or in an object."""
    if isinstance(token, Mapping):
        token = token.get("content")
    return token if isinstance(token, str) and token else None


def _flag(settings: Mapping[str, Any], key: str, default: bool | None) -> bool | None:
    value = settings.get(key, default)
    if value is not default and not isinstance(value, bool):
        raise ValueError(f"tokenizer_config.json: {key} is {value!r:.40}, expected true or false")
    return None if value is None else bool(value)


def _with_settings(json_text: str, settings: Mapping[str, Any], path: Path) -> str:
    """A tokenizer with the settings beside it: normaliser, added tokens, padding token, longest text."""
    if not settings:
        return json_text
    import tokenizers

    try:
        content = json.loads(json_text)
    except (ValueError, RecursionError) as err:
        raise ValueError(f"{path}: not the JSON that was expected: {err}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(content).__name__}")
    _refuse_settings(settings, path)
    for step in _steps(content.get("normalizer"), "normalizers"):
        if step.get("type") == "BertNormalizer":
            for ours, theirs in (
                ("lowercase", "do_lower_case"), ("strip_accents", "strip_accents"),
                ("handle_chinese_chars", "tokenize_chinese_chars"),
            ):  # fmt: skip
                if theirs in settings:
                    step[ours] = _flag(settings, theirs, None)
    if "add_prefix_space" in settings:
        for step in _steps(content.get("pre_tokenizer"), "pretokenizers"):
            if step.get("type") == "ByteLevel" and content.get("normalizer") is None:
                step["add_prefix_space"] = _flag(settings, "add_prefix_space", False)
    with refusals(f"{path} is not a tokenizer that this tokenizers library reads"):
        result = tokenizers.Tokenizer.from_str(json.dumps(content, ensure_ascii=False))
    _add_tokens(result, settings, path)
    pad = _text_of(settings.get("pad_token"))
    number = None if pad is None else result.token_to_id(pad)
    if pad is not None and number is not None:
        before = settings.get("padding_side", (result.padding or {}).get("direction", "right"))
        if before not in ("left", "right"):
            raise ValueError(f"{path.parent}: padding_side is {before!r:.40}, expected 'left' or 'right'")
        result.enable_padding(pad_id=number, pad_token=pad, direction=before)
    longest = settings.get("model_max_length")
    side = settings.get("truncation_side", "right")
    if side not in ("left", "right"):
        raise ValueError(f"{path.parent}: truncation_side is {side!r:.40}, expected 'left' or 'right'")
    limited = isinstance(longest, (int, float)) and not isinstance(longest, bool) and 0 < longest < _NO_LENGTH
    if limited or side == "left":
        result.enable_truncation(int(longest) if limited else _NO_LENGTH, direction=side)  # type: ignore[arg-type]
    return str(result.to_str())


def _steps(part: Any, inner: str) -> Iterator[dict[str, Any]]:
    """A normaliser or pre-tokenizer, or those of a sequence."""
    if isinstance(part, dict):
        yield part
        for step in part.get(inner) or ():
            if isinstance(step, dict):
                yield step


def _refuse_settings(settings: Mapping[str, Any], path: Path) -> None:
    for key in ("split_special_tokens", "sp_model_kwargs", "remove_space", "keep_accents"):
        if settings.get(key) not in (None, False, {}):
            raise ValueError(f"{path.parent}: tokenizer_config.json: {key} is {settings[key]!r:.60}, which cannot be obeyed")
    # SigLIP's texts are lower-cased before they come here.
    siglip = "siglip" in str(settings.get("tokenizer_class", "")).lower()
    if path.suffix == ".model" and bool(settings.get("do_lower_case", siglip)) is not siglip:
        said = "true" if settings["do_lower_case"] else "false"
        raise ValueError(f"{path.parent}: tokenizer_config.json: do_lower_case is {said}, which {path.name} cannot obey")


def _add_tokens(result: Any, settings: Mapping[str, Any], path: Path) -> None:
    """The tokens that settings add, in the order of their numbers."""
    from tokenizers import AddedToken

    wanted: dict[str, tuple[int | None, Any, bool]] = {}

    def add(token: Any, number: int | None, special: bool) -> None:
        text = _text_of(token)
        if text is None:
            return
        flags = {}
        if isinstance(token, Mapping):
            flags = {key: token[key] for key in ("lstrip", "rstrip", "single_word", "normalized") if key in token}
            special = bool(token.get("special", special))
            if not all(isinstance(value, bool) for value in flags.values()):
                raise ValueError(f"{path.parent}: the added token {text[:40]!r}: {flags}, expected true or false")
        wanted[text] = (number, AddedToken(text, **{"normalized": not special, **flags}, special=special), special)

    for text, number in (settings.get("added_tokens") or {}).items():
        add(text, number, False)
    extra = settings.get("additional_special_tokens") or settings.get("extra_special_tokens") or []
    for token in [*(settings.get(key) for key in _SPECIAL), *(extra if isinstance(extra, list) else extra.values())]:
        text = _text_of(token)
        if text is not None and (result.token_to_id(text) is not None or token in extra):
            add(token, None, True)
    decoder = settings.get("added_tokens_decoder") or {}
    if not isinstance(decoder, Mapping):
        raise ValueError(f"{path.parent}: tokenizer_config.json: added_tokens_decoder is no object")
    for key, token in decoder.items():
        if not str(key).isdigit():
            raise ValueError(f"{path.parent}: tokenizer_config.json: added_tokens_decoder: {str(key)[:40]!r} is no number")
        add(token, int(key), False)
    for text, (number, token, special) in sorted(wanted.items(), key=lambda item: (item[1][0] is None, item[1][0] or 0)):
        with refusals(f"{path}: the token {text[:40]!r} cannot be added"):
            (result.add_special_tokens if special else result.add_tokens)([token])
        if number is not None and result.token_to_id(text) != number:
            raise ValueError(
                f"{path.parent}: the added token {text[:40]!r} is to have the number {number}, it gets "
                f"{result.token_to_id(text)}"
            )


def _word_pieces(path: Path, settings: Mapping[str, Any]) -> str:
    """The tokenizer of a BERT vocab.txt (a token a line)."""
    import tokenizers
    from tokenizers import AddedToken, models, normalizers, pre_tokenizers, processors

    lines = decode(read_bytes(path), path).split("\n")
    if lines and lines[-1] == "":
        lines.pop()
    vocabulary = {line.rstrip("\r"): number for number, line in enumerate(lines)}
    kinds = ("cls", "sep", "unk", "pad", "mask")
    names = {kind: _text_of(settings.get(f"{kind}_token")) or f"[{kind.upper()}]" for kind in kinds}
    for key in ("cls", "sep", "unk"):
        if names[key] not in vocabulary:
            raise ValueError(f"{path}: not a BERT vocabulary: {names[key]} is missing")
    first, last, unknown = names["cls"], names["sep"], names["unk"]
    result = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token=unknown, max_input_chars_per_word=100))
    result.add_special_tokens([token for token in names.values() if token in vocabulary])
    if _flag(settings, "do_basic_tokenize", True):
        result.normalizer = normalizers.BertNormalizer(
            lowercase=bool(_flag(settings, "do_lower_case", True)), strip_accents=_flag(settings, "strip_accents", None),
            handle_chinese_chars=bool(_flag(settings, "tokenize_chinese_chars", True)),
        )  # fmt: skip
        result.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    else:
        result.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    kept = settings.get("never_split") or []
    if not isinstance(kept, list) or not all(isinstance(token, str) for token in kept):
        raise ValueError(f"{path.parent}: tokenizer_config.json: never_split is {kept!r:.60}, expected a list of tokens")
    for token in kept:
        if token not in vocabulary:
            raise ValueError(f"{path.parent}: tokenizer_config.json: never_split: {token[:40]!r} is not in {path.name}")
        result.add_tokens([AddedToken(token, single_word=True, normalized=False)])
    result.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}",
        pair=f"{first} $A {last} $B:1 {last}:1",
        special_tokens=[(first, vocabulary[first]), (last, vocabulary[last])],
    )
    return str(result.to_str())


def _byte_pairs(vocab_path: Path, merges_path: Path, settings: Mapping[str, Any]) -> str:
    """The tokenizer of a vocab.json with merges.txt: RoBERTa's, or CLIP's where the vocabulary has CLIP's marks."""
    if not merges_path.is_file():
        raise FileNotFoundError(f"tokenizer: {vocab_path} needs merges.txt beside it")
    vocabulary = parse_json(read_bytes(vocab_path), str(vocab_path))
    if not isinstance(vocabulary, dict) or not all(map(_is_number, vocabulary.values())):
        raise ValueError(f"{vocab_path}: expected an object of token numbers")
    merges = _read_merges(decode(read_bytes(merges_path), merges_path).split("\n"), merges_path)
    for pair in merges:
        if not {pair[0], pair[1], pair[0] + pair[1]} <= vocabulary.keys():
            line = " ".join(pair)
            raise ValueError(f"{merges_path}: {line[:80]!r} joins or makes a piece that {vocab_path.name} lacks")
    return _pair_tokenizer(vocabulary, merges, settings, f"{vocab_path} and {merges_path.name}", str(vocab_path))


def _read_merges(lines: Iterable[str], path: Path) -> list[tuple[str, str]]:
    merges = []
    for line in lines:
        pair = line.rstrip("\r").split(" ")
        if line.startswith("#version") or line.strip() == "":
            continue
        if len(pair) != 2:
            raise ValueError(f"{path}: {line[:80]!r} is not a pair of pieces")
        merges.append((pair[0], pair[1]))
    return merges


def _openai_pairs(path: Path, settings: Mapping[str, Any]) -> str:
    """The tokenizer of OpenAI's bpe_simple_vocab_16e6.txt.gz: its pairs, behind the bytes and the bytes that end a word."""
    try:
        with gzip.open(path) as file:
            data = file.read(_MAX_PAIRS_FILE + 1)
    except (OSError, EOFError, zlib.error) as err:
        raise ValueError(f"{path}: not a file of pairs that gzip packed: {err}") from None
    if len(data) > _MAX_PAIRS_FILE:
        raise ValueError(f"{path}: more than {_MAX_PAIRS_FILE} bytes when unpacked, which no vocabulary has")
    lines = decode(data, path).split("\n")[1 : 1 + _OPENAI_PAIRS]  # the first is a title
    merges = _read_merges(lines, path)
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(byte) for byte in plain] + [chr(256 + number) for number in range(256 - len(plain))]
    pieces = [*letters, *(letter + "</w>" for letter in letters), *map("".join, merges), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    return _pair_tokenizer(vocabulary, merges, settings, str(path), str(path))


def _pair_tokenizer(
    vocabulary: Mapping[str, int], merges: list[tuple[str, str]], settings: Mapping[str, Any], what: str, source: str
) -> str:
    import tokenizers
    from tokenizers import Regex, models, normalizers, pre_tokenizers, processors

    clip = "<|startoftext|>" in vocabulary
    first = _text_of(settings.get("bos_token")) or ("<|startoftext|>" if clip else "<s>")
    last = _text_of(settings.get("eos_token")) or ("<|endoftext|>" if clip else "</s>")
    if not clip:
        first, last = _text_of(settings.get("cls_token")) or first, _text_of(settings.get("sep_token")) or last
    for token in (first, last):
        if token not in vocabulary:
            raise ValueError(f"{source}: neither RoBERTa's nor CLIP's vocabulary: {token} is missing")
    unknown = _text_of(settings.get("unk_token")) or (last if clip else "<unk>")
    with refusals(f"{what} do not make a tokenizer"):
        model = models.BPE(
            vocab=dict(vocabulary),
            merges=merges,
            continuing_subword_prefix="",
            end_of_word_suffix="</w>" if clip else "",
            fuse_unk=False,
            unk_token=unknown if unknown in vocabulary else None,
        )
    result = tokenizers.Tokenizer(model)
    prefix_space = bool(_flag(settings, "add_prefix_space", False)) and not clip
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    if clip:
        result.normalizer = normalizers.Sequence(
            [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
        )
        pieces = pre_tokenizers.Split(Regex(_CLIP_PIECES), behavior="removed", invert=True)
        result.pre_tokenizer = pre_tokenizers.Sequence([pieces, byte_level])
    else:
        result.pre_tokenizer = byte_level
    result.add_special_tokens([token for token in (first, last, "<pad>", "<unk>", "<mask>") if token in vocabulary])
    result.post_processor = processors.RobertaProcessing(
        (last, vocabulary[last]),
        (first, vocabulary[first]),
        trim_offsets=not clip and bool(_flag(settings, "trim_offsets", True)),
        add_prefix_space=prefix_space,
    )
    return str(result.to_str())


def _family(path: Path, settings: Mapping[str, Any], model: SentencePieceModel) -> str:
    """Whose convention gives the pieces their numbers: said by the class, by the model's type, or by the first pieces."""
    told = str(settings.get("tokenizer_class", ""))
    config = path.with_name("config.json")
    if not told and config.is_file():
        content = parse_json(read_bytes(config), str(config))
        told = str(content.get("model_type", "")) if isinstance(content, dict) else ""
    plain = told.lower().replace("-", "").replace("tokenizer", "").replace("fast", "")
    families = {
        "t5": "t5",
        "mt5": "mt5",
        "umt5": "mt5",
        "siglip": "siglip",
        "camembert": "camembert",
        "xlmroberta": "xlm-roberta",
    }
    if plain in families:
        return families[plain]
    if told and plain not in ("pretrained", "pretraineds", "sbackend", "s"):
        raise ValueError(
            f"{path}: a SentencePiece model of {told!r:.60}, expected one of T5, SigLIP, CamemBERT or XLM-RoBERTa"
        )
    if [piece.text for piece in model.pieces[:3]] == ["<pad>", "</s>", "<unk>"]:
        return "t5"
    raise ValueError(
        f"{path}: nothing tells whose SentencePiece model it is; give tokenizer_config.json with its tokenizer_class, or "
        "config.json with its model_type, beside it"
    )


def _sentence_pieces(path: Path, settings: Mapping[str, Any]) -> str:
    """The tokenizer of a SentencePiece model by the convention of T5, SigLIP, CamemBERT or XLM-RoBERTa."""
    from tokenizers import AddedToken, processors

    model = read_sentencepiece(read_bytes(path, 1 << 28), str(path))
    unknown = model.unknown(str(path))
    family = _family(path, settings, model)
    if family in ("t5", "mt5", "siglip"):
        vocabulary = list(model.pieces)
        first, last = None, _text_of(settings.get("eos_token")) or "</s>"
        said = settings.get("additional_special_tokens")
        named = said or settings.get("added_tokens_decoder") or family != "t5"
        count = settings.get("extra_ids", 0 if named else 100)
        if not _is_number(count) or count > 10_000:
            raise ValueError(f"{path.parent}: tokenizer_config.json: extra_ids is {count!r:.40}, expected up to 10000")
        held = {piece.text for piece in vocabulary}
        names = [f"<extra_id_{number}>" for number in range(count - 1, -1, -1)]
        vocabulary += [Piece(name, 0.0, CONTROL) for name in names if name not in held]
    elif family == "camembert":
        new = ("<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>", "<unk>NOTUSED")
        vocabulary = [Piece(text, 0.0, CONTROL) for text in new] + model.pieces[1:] + [Piece("<mask>", 0.0, CONTROL)]
        vocabulary[4].score, vocabulary[3].type, unknown = -100.0, UNKNOWN, 3
        first, last = "<s>", "</s>"
    else:
        ours = ("<s>", "<pad>", "</s>", "<unk>")
        vocabulary = [Piece(text, 0.0, CONTROL) for text in ours] + model.pieces[3:] + [Piece("<mask>", 0.0, CONTROL)]
        vocabulary[3].type, unknown = UNKNOWN, 3
        first, last = "<s>", "</s>"
    table = {piece.text: number for number, piece in enumerate(vocabulary)}
    for token in (first, last):
        if token is not None and token not in table:
            raise ValueError(f"{path}: not a model of {family}: {token} is missing")
    with refusals(f"{path} is not a tokenizer that this tokenizers library can hold"):
        result = build_tokenizer(model, vocabulary, unknown)
        special = [piece.text for piece in vocabulary if piece.type in (CONTROL, UNKNOWN) and piece.type != NORMAL]
        result.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in special])
        template = f"{first} $A {last}" if first else f"$A {last}"
        pair = f"{first} $A {last} {last} $B {last}" if first else f"$A {last} $B {last}"
        ends = [(token, table[token]) for token in (first, last) if token]
        result.post_processor = processors.TemplateProcessing(single=template, pair=pair, special_tokens=ends)
    if "<pad>" in table:
        result.enable_padding(pad_id=table["<pad>"], pad_token="<pad>")
    return str(result.to_str())
