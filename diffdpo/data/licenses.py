"""Licenses and consents of data, and the one rule by which they reach what is made from it.

What is made from several data has the licenses of all of them. The strictest is named first: no commercial use,
then a license that nobody stated, then the same terms for what is made (share alike), then naming the authors.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from diffdpo.errors import ConfigError

LicenseKind = Literal[
    "non-commercial", "unknown", "no derivatives", "other terms", "share alike", "attribution", "permissive"
]
LICENSE_KINDS: tuple[LicenseKind, ...] = get_args(LicenseKind)
"""Kinds of licenses, the strictest first."""
UNKNOWN_LICENSE = "unknown"
UNKNOWN_NAMES = ("", "unknown", "none", "not stated", "n/a", "other")
PERMISSIVE = re.compile(r"cc0|apache|mit\b|bsd|isc\b|unlicense|pddl|public.?domain|zlib|0bsd")
SHARE_ALIKE = re.compile(r"by-sa|odbl|gpl|share.?alike")
ATTRIBUTION = re.compile(r"cc-by\b|by-\d|odc-by|attribution")


def license_kind(name: str) -> LicenseKind:
    """The kind of a license by its name, as an SPDX identifier or in words."""
    text = re.sub(r"[\s_/]+", "-", name.strip().lower())
    if text.replace("-", " ") in UNKNOWN_NAMES or text in UNKNOWN_NAMES:
        return "unknown"
    if re.search(r"\bnc\b|non-?commercial|research-only", text):
        return "non-commercial"
    if re.search(r"\bnd\b|no-?deriv", text):
        return "no derivatives"
    for pattern, kind in (
        (SHARE_ALIKE, "share alike"),
        (PERMISSIVE, "permissive"),
        (ATTRIBUTION, "attribution"),
    ):
        if pattern.search(text):
            return kind  # type: ignore[return-value]
    return "other terms"


def may_share(name: str) -> bool:
    """Whether a license lets everybody pass the data on, perhaps under conditions such as no commercial use."""
    return license_kind(name) not in ("unknown", "no derivatives", "other terms")


@dataclass(frozen=True)
class DataTerms:
    """The licenses of some data by where they come from, and the consents that people gave."""

    licenses: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """By origin (a data set, a study, a folder of songs, a scorer) its licenses; "unknown" for one without."""
    consents: tuple[str, ...] = ()
    """Versions and languages of consents, such as `3f2a91c0/en`."""

    def __or__(self, terms: "DataTerms") -> "DataTerms":
        """The terms of what is made from both."""
        return merge_terms([self, terms])

    @property
    def names(self) -> tuple[str, ...]:
        """All licenses, the strictest first."""
        names = {name for group in self.licenses.values() for name in group}
        return tuple(sorted(names, key=lambda name: (LICENSE_KINDS.index(license_kind(name)), name)))

    @property
    def is_noncommercial(self) -> bool:
        """Whether any part forbids commercial use."""
        return any(license_kind(name) == "non-commercial" for name in self.names)

    @property
    def has_unknown(self) -> bool:
        """Whether nobody stated the license of any part."""
        return any(license_kind(name) == "unknown" for name in self.names)

    def entries(self) -> dict[str, Any]:
        """The terms as entries of a manifest; {} where there are none."""
        licenses = {origin: list(names) for origin, names in sorted(self.licenses.items())}
        return ({"licenses": licenses} if licenses else {}) | (
            {"consents": list(self.consents)} if self.consents else {}
        )

    def lines(self) -> list[str]:
        """The terms as items of a card, the strictest license first."""
        lines = []
        for name in self.names:
            origins = ", ".join(sorted(origin for origin, names in self.licenses.items() if name in names))
            kind = license_kind(name)
            note = {"non-commercial": ": no commercial use", "unknown": ": NOBODY STATED A LICENSE"}.get(
                kind, ""
            )
            lines.append(f"* data: {name} ({origins}){note}")
        return [*lines, *(f"* consent of listeners: {consent}" for consent in self.consents)]

    def summary(self) -> str:
        """What follows for whoever uses the result, in a paragraph; "" where nothing does."""
        parts = []
        if self.is_noncommercial:
            parts.append(
                "**Not for commercial use**: a part of the data is licensed for non-commercial use only."
            )
        if self.has_unknown:
            parts.append(
                "**A part of the data has no stated license**: whether it may be used at all is for its authors "
                "to say."
            )
        return " ".join(parts)


def inherit_license(licenses: Iterable[str]) -> str:
    """What may be done with something made from parts of these licenses, in words: the strictest decides."""
    terms = DataTerms({"": tuple(dict.fromkeys(name or UNKNOWN_LICENSE for name in licenses))})
    if terms.is_noncommercial:
        names = [name for name in terms.names if license_kind(name) == "non-commercial"]
        return f"non-commercial ({', '.join(names)})"
    if terms.has_unknown:
        return "unknown: some of the votes, songs or weights have no license"
    return ", ".join(terms.names) or "none"


def merge_terms(terms: Iterable[DataTerms]) -> DataTerms:
    """The terms of what is made from several data."""
    licenses: dict[str, tuple[str, ...]] = {}
    consents: dict[str, None] = {}
    for part in terms:
        for origin, names in part.licenses.items():
            licenses[origin] = tuple(sorted({*licenses.get(origin, ()), *names}))
        consents |= dict.fromkeys(part.consents)
    return DataTerms(licenses, tuple(sorted(consents)))


def terms_of_manifest(manifest: Mapping[str, Any], origin: str) -> DataTerms:
    """The terms in a manifest: its licenses, as a list or by origin, and its consents."""
    entry = manifest.get("licenses") or {}
    if isinstance(entry, list):
        entry = {origin: entry}
    licenses = {
        str(name): tuple(sorted({str(text) or "unknown" for text in texts}))
        for name, texts in (entry.items() if isinstance(entry, Mapping) else ())
        if isinstance(texts, list) and texts
    }
    consents = manifest.get("consents") or []
    return DataTerms(licenses, tuple(sorted(map(str, consents))) if isinstance(consents, list) else ())


def card_license(terms: DataTerms, license_name: str) -> str:
    """The license of what was made from data with these terms: the one that was named, else the data's strictest
    where that forbids commercial use.

    ConfigError for a license that allows what the data's forbids.
    """
    if not terms.is_noncommercial:
        return license_name
    if license_name and license_kind(license_name) != "non-commercial":
        raise ConfigError(
            f"--license {license_name}: the data is under {terms.names[0]}, which forbids commercial use; "
            f"name a license that does too, or leave it out for {terms.names[0].lower()}"
        )
    return license_name or terms.names[0].lower()
