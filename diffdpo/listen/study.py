"""What is configured of a listening test: what is played, what is asked, and what listeners agree to."""

from dataclasses import dataclass, field
from typing import Literal

from diffdpo.checks import check_range
from diffdpo.config_paths import PATH
from diffdpo.errors import ensure

Mode = Literal["pair", "rating", "mushra"]
PairRule = Literal["across", "matched", "within", "all"]
ExcerptStart = Literal["start", "middle", "random"]
MAX_TEXT = 2000
"""Characters of a comment or report."""
MAX_SPANS = 20
"""Bad moments that can be marked in one song."""


@dataclass(frozen=True)
class ExcerptConfig:
    """What is played of a song, and how loud."""

    seconds: float = 20.0
    """Length of an excerpt, the same for all songs of a trial; 0 is the whole of the shortest of them."""
    start: ExcerptStart = "random"
    """Where excerpts begin, at the same time in all songs of a trial."""
    loudness_lufs: float = -23.0
    """Integrated loudness of every excerpt (ITU-R BS.1770)."""
    true_peak_db: float = -1.0
    """Highest true peak in dBTP; where an excerpt would exceed it, all of the trial are lowered alike."""

    def __post_init__(self) -> None:
        check_range(self, "seconds", low=0)
        ensure(
            self.seconds == 0 or self.seconds >= 1, f"seconds must be 0 or at least 1, got {self.seconds:g}"
        )
        check_range(self, "loudness_lufs", low=-60, high=-5)
        check_range(self, "true_peak_db", low=-30, high=0)


@dataclass(frozen=True)
class TrialConfig:
    """The trials of a listener, and what is asked in each."""

    count: int = 40
    """Trials of a listener, control pairs among them; training trials come on top."""
    training: int = 3
    """Trials at the beginning that tell the right answer."""
    gold_share: float = 0.08
    """Share of trials that are hidden control pairs: a song against its damaged copy, or a song against itself."""
    repeat_share: float = 0.05
    """Share of trials that repeat an earlier pair with its sides exchanged."""
    min_heard_s: float = 5.0
    """Seconds of every song that must have been played before an answer is accepted."""
    break_after_min: float = 20.0
    """Minutes of listening after which a break is due; 0: none."""
    break_s: float = 60.0
    """Shortest break."""
    axes: list[str] = field(default_factory=list)
    """Questions beside the preference overall, such as musicality or prompt."""
    strength: bool = True
    """Whether to ask how much better: slightly, clearly or much."""
    spans: bool = True
    """Whether bad moments can be marked."""
    headphones: int = 6
    """Items of the headphone check (Huggins pitch), which a listener may leave out; 0: no check."""

    def __post_init__(self) -> None:
        check_range(self, "count", low=1, high=10000)
        check_range(self, "training", low=0, high=20)
        check_range(self, "gold_share", "repeat_share", low=0, high=0.5)
        ensure(
            self.gold_share + self.repeat_share <= 0.5,
            f"gold_share and repeat_share must be at most half of the trials, got {self.gold_share:g} and "
            f"{self.repeat_share:g}",
        )
        check_range(self, "min_heard_s", "break_after_min", "break_s", low=0)
        check_range(self, "headphones", low=0, high=12)
        ensure(
            len(set(self.axes)) == len(self.axes) and all(self.axes), "axes must be different, and not empty"
        )
        ensure(len(self.axes) <= 8, f"axes: at most 8, got {len(self.axes)}")


@dataclass(frozen=True)
class ConsentConfig:
    """What listeners agree to. An empty text is the built-in one, which says what the program does."""

    texts: dict[str, str] = field(default_factory=dict)
    """Text by language code, such as en or de, in place of the built-in texts; empty lines divide paragraphs."""
    contact: str = ""
    """Who runs the study and answers questions, shown below the text."""
    license: str = "CC-BY-4.0"
    """License under which votes and comments are given; models that are trained on them inherit it."""
    ask_background: bool = True
    """Whether to ask, voluntarily, for language and musical background."""

    def __post_init__(self) -> None:
        ensure(all(self.texts.values()), "texts: a text is empty")
        ensure(
            all(code.isascii() and code.isalpha() and len(code) == 2 for code in self.texts),
            "texts: name languages by two letters, such as en",
        )


@dataclass(frozen=True)
class MushraConfig:
    """The hidden reference and the anchors of a MUSHRA page (ITU-R BS.1534)."""

    reference: str = field(default="", metadata=PATH)
    """Samples folder of the references; the first song of each prompt in it is the reference of the prompt."""
    anchors_hz: list[float] = field(default_factory=lambda: [3500.0, 7000.0])
    """Cut-off frequencies of the low-passed copies of the reference."""

    def __post_init__(self) -> None:
        ensure(
            all(100 <= hz <= 20000 for hz in self.anchors_hz),
            f"anchors_hz must be from 100 to 20000, got {self.anchors_hz}",
        )
        ensure(len(set(self.anchors_hz)) == len(self.anchors_hz), "anchors_hz: an anchor is named twice")


@dataclass(frozen=True)
class LimitConfig:
    """What a listener may ask of the server."""

    requests_per_s: float = 10.0
    """Requests of one listener a second, over time; more are refused with 429 until it is less again."""
    burst: int = 60
    """Requests of one listener at once."""
    newcomers_per_s: float = 5.0
    """Requests a second of all browsers without a token together; at most `burst` times two at once."""
    body_kib: float = 64.0
    """Largest body of a request, in KiB."""

    def __post_init__(self) -> None:
        check_range(self, "requests_per_s", "newcomers_per_s", above=0)
        check_range(self, "burst", low=5)
        check_range(self, "body_kib", low=1, high=4096)


@dataclass(frozen=True, kw_only=True)
class Study:
    """A listening test."""

    name: str
    mode: Mode = "pair"
    trials: TrialConfig = field(default_factory=TrialConfig)
    excerpts: ExcerptConfig = field(default_factory=ExcerptConfig)
    consent: ConsentConfig = field(default_factory=ConsentConfig)
    mushra: MushraConfig = field(default_factory=MushraConfig)
    limits: LimitConfig = field(default_factory=LimitConfig)
    origins: tuple[str, ...] = ()
    """Addresses under which a reverse proxy shows the page, such as https://listen.example.org."""
    seed: int = 0
