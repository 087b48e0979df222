"""Syllables of a line of lyrics, by rules that need no dictionary."""

import re
import unicodedata

from diffdpo.lyrics.phonemes import spell_out

SILENT_VOWELS = (
    r"'(s|d|t|m|ll|re|ve)$",
    r"(?<=[^aeiouytd])ed$|(?<=th)es$|(?<=[^aeiouyscxzghl])es$|(?<=[aeiouy]l)es$",
    r"(?<=[^aeiouyl])e$|(?<=[aeiouy]l)e$",
    r"(?<=[aeiouy][^aeiouy])e(?=(ly|thing|one|where|times?|ful|less|ness|ment)s?$)",
)
"""Ends and joints of English words that are written with a vowel and sung without."""
EXTRA_SYLLABLES = (
    r"(?<![tscgxn])(?<!ll)i[oau](?!ge)|eo$|(?<![qg])ua|[aeouy]ing|iet|[^t]ienc|crea|ao|oem|[dr]ea$|thm$|sm$"
)
"""Adjacent vowels that are two syllables, and syllables without a written vowel."""


def syllables(text: str) -> int:
    """Number of syllables of a line: vowel groups of Latin words, one for each Chinese or similar character.

    A rule for English that needs no dictionary and is the same on every machine.
    """
    decomposition = unicodedata.normalize("NFD", spell_out(text).replace("\u2019", "'").lower())
    plain = re.sub(r"([a-z])[\u0300-\u036f]+", lambda match: match[1].upper(), decomposition)
    signs = sum(unicodedata.category(char) == "Lo" for char in text)
    words = re.findall(r"[^\W\d_]+(?:'[^\W\d_]+)*", plain)
    return signs + sum(_of_word(word) for word in words if unicodedata.category(word[0]) != "Lo")


def _of_word(word: str) -> int:
    """Syllables of a word in lower case; capitals are vowels with an accent, each a syllable."""
    extra = len(re.findall(EXTRA_SYLLABLES, word)) + bool(re.search(r"[ds]n't$", word))
    for silent in SILENT_VOWELS:
        word = re.sub(silent, "", word)
    return max(1, len(re.findall(r"[aeiouy]+|[AEIOUY]", word)) + extra)
