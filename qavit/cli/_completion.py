"""Completion scripts for shells, made from the command line's parser: commands, options, and what options take."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import NamedTuple

SHELLS = ("bash", "zsh", "fish")
_FILES = ("FILE", "IMAGE", "JSON")
_MOST_BLOCKS = 24


class _Value(NamedTuple):
    """What may follow an option: some words, names of files, names of folders; nothing for a switch."""

    taken: bool
    words: tuple[str, ...] = ()
    files: bool = False
    folders: bool = False


def script(parser: argparse.ArgumentParser, shell: str) -> str:
    """A completion script.

    Parameters
    ----------
    parser : ArgumentParser
        With commands. What an option takes is told by its choices, its name ("block", "cmap", ...) and its metavar (FILE,
        DIR).
    shell : {"bash", "zsh", "fish"}
    """
    found = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    commands: dict[str, argparse.ArgumentParser] = dict(found.choices)
    helps = {choice.dest: choice.help or "" for choice in found._choices_actions}
    if shell == "fish":
        return "\n".join(_fish(parser, commands, helps))
    bash = "\n".join(_bash(parser, commands))
    return bash if shell == "bash" else f"autoload -U +X bashcompinit && bashcompinit\n{bash}"


def _words(name: str) -> tuple[str, ...]:
    """Values of an option that takes any text or number, but mostly one of these."""
    if name == "cmap":
        import matplotlib

        return tuple(sorted(cmap for cmap in matplotlib.colormaps if not cmap.endswith("_r")))
    known = {
        "block": tuple(map(str, range(_MOST_BLOCKS))),
        "heads": ("mean", "max"),
        "model": ("demo",),
        "folder": ("demo",),
        "device": ("cpu", "cuda"),
    }
    return known.get(name, ())


def _value(action: argparse.Action) -> _Value:
    if action.nargs == 0:
        return _Value(False)
    if action.choices is not None:
        return _Value(True, tuple(map(str, action.choices)))
    metavar = str(action.metavar or "")
    folders = metavar == "DIR" or action.dest in ("model", "folder")
    return _Value(True, _words(action.dest), files=metavar in _FILES, folders=folders)


def _options(parser: argparse.ArgumentParser) -> Iterator[tuple[argparse.Action, list[str]]]:
    for action in parser._actions:
        if action.option_strings and action.help != argparse.SUPPRESS:
            yield action, list(action.option_strings)


def _quoted(words: tuple[str, ...] | list[str]) -> str:
    """Words as one quoted argument of `compgen -W`, a line each."""
    return "$'" + "\\n".join(word.replace("\\", "\\\\").replace("'", "\\'") for word in words) + "'"


def _bash(parser: argparse.ArgumentParser, commands: dict[str, argparse.ArgumentParser]) -> Iterator[str]:
    """Where a file is wanted nothing is offered, and readline's own completion of file names steps in."""
    yield "_qavit() {"
    yield '    local IFS=$\'\\n\' word="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD-1]}" command="" i'
    yield "    COMPREPLY=()"
    yield "    for ((i = 1; i < COMP_CWORD; i++)); do"
    yield f'        case "${{COMP_WORDS[i]}}" in {"|".join(commands)}) command="${{COMP_WORDS[i]}}"; break ;; esac'
    yield "    done"
    yield '    case "$command $before" in'
    for name, made in (("", parser), *commands.items()):
        for action, strings in _options(made):
            value = _value(action)
            if value.taken:
                patterns = "|".join(f'"{name} {string}"' for string in strings)
                yield f"        {patterns}) {_bash_value(value)}return ;;"
    yield "    esac"
    yield '    case "$command $word" in'
    for name, made in (("", parser), *commands.items()):
        strings = sorted(string for _, listed in _options(made) for string in listed if string.startswith("--"))
        yield f'        "{name} -"*) COMPREPLY=($(compgen -W {_quoted(strings)} -- "$word")) ;;'
    for name, made in commands.items():
        places = [_value(action) for action in made._actions if not action.option_strings]
        if places:
            yield f'        "{name} "*) {_bash_value(places[0])};;'
    yield f'        " "*) COMPREPLY=($(compgen -W {_quoted(list(commands))} -- "$word")) ;;'
    yield "    esac"
    yield "}"
    yield "complete -o default -F _qavit qavit"


def _bash_value(value: _Value) -> str:
    offers = [f'compgen -W {_quoted(value.words)} -- "$word"'] if value.words else []
    if value.folders:
        offers.append('compgen -d -- "$word"')
    if not offers:
        return ""
    names = "compopt -o filenames 2>/dev/null; " if value.folders else ""
    return f"COMPREPLY=($({'; '.join(offers)})); {names}"


def _fish(
    parser: argparse.ArgumentParser, commands: dict[str, argparse.ArgumentParser], helps: dict[str, str]
) -> Iterator[str]:
    for name in commands:
        yield f"complete -c qavit -n __fish_use_subcommand -f -a {name} -d {_fish_text(helps.get(name, ''))}"
    for name, made in (("", parser), *commands.items()):
        when = f"'__fish_seen_subcommand_from {name}'" if name else "__fish_use_subcommand"
        for action, strings in _options(made):
            names = " ".join(f"-l {text[2:]}" if text.startswith("--") else f"-s {text[1:]}" for text in strings)
            yield f"complete -c qavit -n {when} {names} {_fish_value(_value(action))}-d {_fish_text(action.help or '')}"
        for action in made._actions if name else ():
            value = _value(action)
            if not action.option_strings and (value.words or value.folders):
                yield f"complete -c qavit -n {when} {_fish_value(value).replace('-x ', '-f ')}"


def _fish_value(value: _Value) -> str:
    if not value.taken:
        return "-f "
    offers = list(value.words) + (["(__fish_complete_directories)"] if value.folders else [])
    if offers:
        return f"-x -a {_fish_text(' '.join(offers))} "
    return "-r -F " if value.files else "-x "


def _fish_text(text: str) -> str:
    plain = text.replace("%%", "%").replace("\\", "\\\\").replace("'", "\\'")
    return f"'{plain}'"
