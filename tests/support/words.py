"""Names of the package as words: which of them are participles, pronouns or adverbs in the place of a noun."""

import ast
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

PRONOUNS = """
    all another any anybody anyone anything aught both each either else elsewhere everybody everyone everything
    few former he hence her here hereafter herself him himself his hither how it its itself latter many me most
    much myself neither nobody none nothing nought one oneself ones other others ourselves own same several she
    some somebody someone something somewhere such that their theirs them themselves thence there therein these
    ours rest they thing things this those thus us we what whatever when whence where wherever whether which
    whichever who whoever whole whom whose why you your yours
"""
ADVERBS = """
    after afterwards again against ahead alike alone along already always apart aside away back before behind
    below beneath beside besides between beyond ever far fast forth further hard hereby instead late later less
    little long more near nearby never often once only onward outside over quick quite rather short since so
    soon still thereby thereof together too toward towards twice under until upon very well wide within yet
"""
PARTICIPLES = """
    been begun bent bitten blown born borne bought broken brought built burnt caught chosen clad come dealt done
    drawn driven dug eaten fallen fed felt flown forgotten fought found frozen given gone gotten grown had heard
    held hidden hit hung hurt kept knit known laid lain led lent lit lost made meant met mown paid proven ridden
    risen rung said sat sawn seen sent set sewn shaken shaped shone shot shown shrunk shut slept slain slid
    slung sold sought sown sped spent spilt spoken sprung spun stolen stood stricken struck stuck stung sung
    sunk swept swollen sworn swum swung taken taught thought thrown told torn trodden understood wept woken won
    wore worn wound wove woven written wrung
"""
FIELD = """
    embedding rating ratings training sampling encoding padding masking mining scoring setting settings timing
    conditioning smoothing inpainting voicing warning string spelling heading mapping rounding checkpointing
    masked embed seed speed feed need hidden published cached aligned padded preprocessing flowmatching
    ranking pooled distilled
"""
"""Words in -ed or -ing, and a participle, that the field uses as they are; at most 40."""
LISTED = {*PRONOUNS.split(), *ADVERBS.split(), *PARTICIPLES.split()} - set(FIELD.split())


def names(path: Path) -> Iterator[tuple[str, int]]:
    """Every name that a file binds, with its line: variables, parameters, fields, functions and classes."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name, node.lineno


def is_listed(name: str) -> bool:
    """Whether a name is one word of the lists, or one in -ed or -ing that the field does not use."""
    word = name.strip("_").lower() if name != "__all__" else ""
    return word in LISTED or (word.isalpha() and word.endswith(("ed", "ing")) and word not in FIELD.split())


def count(paths: Iterable[Path]) -> tuple[Counter[str], int, dict[str, list[str]]]:
    """How often each listed word is bound, how many names are bound in all, and the places."""
    words: Counter[str] = Counter()
    places: dict[str, list[str]] = defaultdict(list)
    total = 0
    for path in paths:
        for name, line in names(path):
            total += 1
            if is_listed(name):
                words[name] += 1
                places[name].append(f"{path.parent.name}/{path.name}:{line}")
    return words, total, places
