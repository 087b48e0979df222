"""The card of an exported data set: README.md with front matter that `datasets` and the hub read."""

from collections.abc import Mapping

import yaml

from diffdpo.data.licenses import DataTerms, license_kind

SIZE_STEPS = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
TABLE_ABOUT = {
    "votes": "one listener's answer to one pair of songs, on one axis; `a` was presented on the left or first",
    "opinions": "one listener's value for one song",
    "songs": "one song, by the hash of its sound (16-bit PCM)",
}


def dataset_card(
    name: str,
    sizes: Mapping[str, Mapping[str, int]],
    columns: Mapping[str, list[str]],
    terms: DataTerms,
    skips: Mapping[str, int],
) -> str:
    """The text of a card."""
    counts = ", ".join(f"{sum(rows.values())} {key}" for key, rows in sizes.items())
    parts = [
        f"---\n{front_matter(name, sizes, terms)}---",
        f"# {name}",
        f"Preferences for generated songs: {counts}. Exported by [diffdpo](https://github.com/diffdpo/diffdpo).",
        "## Licenses\n\n" + "\n".join(_license_lines(terms)),
        f"## Consent\n\n{_consent_text(terms)}",
        "## Splits\n\nBy the group of the prompt: no prompt is in two splits.\n\n" + _size_table(sizes),
        "## Columns\n\n" + "\n\n".join(_column_text(key, names) for key, names in columns.items()),
        f"## Left out\n\n{_skip_text(skips)}",
        "## Use\n\n```python\nfrom datasets import load_dataset\n\n"
        f'rows = load_dataset("{name}", "{next(iter(sizes))}")\n```',
    ]
    return "\n\n".join(parts) + "\n"


def front_matter(name: str, sizes: Mapping[str, Mapping[str, int]], terms: DataTerms) -> str:
    """The YAML at the head of a card."""
    total = sum(sum(rows.values()) for rows in sizes.values())
    values = {
        "license": hub_license(terms),
        "pretty_name": name,
        "tags": ["music", "preferences", "audio", "diffdpo"],
        "size_categories": [next((text for limit, text in SIZE_STEPS if total < limit), "n>1M")],
        "configs": [
            {
                "config_name": key,
                "data_files": [{"split": split, "path": f"{key}/{split}.parquet"} for split in rows],
            }
            | ({"default": True} if key == next(iter(sizes)) else {})
            for key, rows in sizes.items()
        ],
    }
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def hub_license(terms: DataTerms) -> str:
    """The license of all rows together as the hub spells it: the strictest."""
    return terms.names[0].strip().lower().replace(" ", "-")


def _license_lines(terms: DataTerms) -> list[str]:
    lines = [f"* {line.removeprefix('* data: ')}" for line in terms.lines() if line.startswith("* data: ")]
    if len(terms.names) > 1:
        lines.append(
            "\nThe column `license` says it for each row. All rows together are under the strictest, "
            f"{terms.names[0]}."
        )
    if any(license_kind(name) == "share alike" for name in terms.names):
        lines.append("\nWhat is made from rows under share-alike licenses is shared under the same.")
    return [*lines, *([f"\n{terms.summary()}"] if terms.summary() else [])]


def _consent_text(terms: DataTerms) -> str:
    if not terms.consents:
        return "No row was given under a consent form of diffdpo; the data sets above collected their own."
    return (
        "Listeners agreed that their answers are passed on, in these versions and languages of the consent: "
        + ", ".join(f"`{consent}`" for consent in terms.consents)
        + ". Who wants an answer deleted can ask whoever published this data set."
    )


def _size_table(sizes: Mapping[str, Mapping[str, int]]) -> str:
    splits = list(dict.fromkeys(split for rows in sizes.values() for split in rows))
    lines = [f"| | {' | '.join(splits)} |", "|---|" + "---|" * len(splits)]
    return "\n".join(
        [
            *lines,
            *(
                f"| {key} | {' | '.join(str(rows.get(s, 0)) for s in splits)} |"
                for key, rows in sizes.items()
            ),
        ]
    )


def _column_text(key: str, names: list[str]) -> str:
    return f"`{key}`: {TABLE_ABOUT[key]}.\n\n" + ", ".join(f"`{name}`" for name in names)


def _skip_text(skips: Mapping[str, int]) -> str:
    return "\n".join(f"* {count} {reason}" for reason, count in sorted(skips.items())) or "Nothing."
