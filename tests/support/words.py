"""Names of the package as words: which of them are participles or pronouns in the place of a noun."""

import ast
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

PRONOUNS = """
    all another any anybody anyone anything aught both each either else elsewhere everybody everyone everything few former
    he hence her here hereafter herself him himself his hither how it its itself latter many me mine most much myself
    neither nobody none nothing nought one oneself ones other others ourselves own same several she some somebody
    someone something somewhere such that their theirs them themselves then thence there therein these they thing
    things this those thus us we what whatever when whence where wherever whether which whichever who whoever whole
    whom whose why you your yours
"""
ADVERBS = """
    after afterwards again against ahead alike alone along already always apart aside away back before behind below
    beneath beside besides between beyond ever far fast forth further hard hereby instead late later less little long
    more near nearby never next now often once only onward outside over quick quite rather short since so soon still
    thereby thereof together too toward towards twice under until upon very well wide within without yet
"""
IRREGULAR = """
    been begun bent bitten blown born borne bought bound broken brought built burnt caught chosen clad come cut dealt
    done drawn driven dug eaten fallen fed felt flown forgotten fought found frozen given gone gotten grown had heard
    held hidden hit hung hurt kept knit known laid lain led left lent lit lost made meant met mown paid proven put read
    ridden risen rung run said sat sawn seen sent set sewn shaken shaped shed shone shot shown shrunk shut slept slain
    slid slung sold sought sown sped spent spilt split spoken spread sprung spun stolen stood stricken struck stuck
    stung sung sunk swept swollen sworn swum swung taken taught thought thrown told torn trodden understood upset
    wept woken won wore worn wound wove woven written wrung
"""
NOUNS = {
    "mine", "back", "cut", "read", "run", "set", "split", "shed", "left", "next", "one", "spread", "hit", "wound",
    "upset", "shot", "long", "before", "after", "whole", "all", "other", "own", "felt", "bound", "short", "wide", "put",
    "well", "near", "far", "hard", "fast", "late", "later", "less", "more", "now", "then", "when", "where", "which",
    "when", "until", "only", "under", "over", "without", "within", "outside", "below", "behind", "beyond", "between",
}
"""Words of the lists that are also nouns, verbs or signs of the field: judged one by one below."""
FIELD = {
    "mine": "the verb of mining", "read": "the verb", "run": "the verb", "set": "the verb and the type",
    "split": "of data", "spread": "dispersion, and Bands.spread", "bound": "a limit", "cut": "the verb",
    "next": "Python's", "put": "the verb", "without": "SongModel.without", "where": "the mask of torch.where, and the "
    "place that errors name", "now": "a time with `then` in solvers", "then": "", "before": "", "after": "", "left": "a side",
    "upset": "",
}  # fmt: skip
ENDINGS = """
    embedding rating ratings training sampling encoding padding masking mining scoring setting settings timing
    conditioning inpainting voicing clipping mapping warning string spelling heading drawing
    masked padded seed speed feed embed need bed red shed weighted linked
"""
"""Single words in -ed or -ing that are nouns, verbs or terms of the field; at most 40."""
ALLOWED_ENDINGS = set(ENDINGS.split())
LISTED = (set(PRONOUNS.split()) | set(ADVERBS.split()) | set(IRREGULAR.split())) - set(FIELD)


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


def is_word_of_the_list(name: str) -> bool:
    """Whether a name is a participle, a pronoun or an adverb and nothing else."""
    word = name.strip("_").lower()
    if "_" in word or not word.isalpha():
        return False
    if word in LISTED:
        return True
    return len(word) > 4 and word.endswith(("ed", "ing")) and word not in ALLOWED_ENDINGS


def count(paths: list[Path]) -> tuple[Counter[str], int, dict[str, list[str]]]:
    """How often each word of the list is bound, how many names are bound in all, and where."""
    words: Counter[str] = Counter()
    places: dict[str, list[str]] = defaultdict(list)
    total = 0
    for path in paths:
        for name, line in names(path):
            total += 1
            if is_word_of_the_list(name):
                words[name] += 1
                places[name].append(f"{path.name}:{line}")
    return words, total, places
