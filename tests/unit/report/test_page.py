"""The report: its words, its scales, its sounds. What the page does is tested in a browser, in e2e."""

import base64
import io
import math
import re
import struct
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from diffdpo import audio
from diffdpo.evaluation.effects import AxisEffect
from diffdpo.report import plots as pictures
from diffdpo.report.page import (
    Comparison,
    Report,
    charts,
    drift,
    format_signed,
    headline,
    number,
    render,
    tally,
    write_report,
)
from diffdpo.report.plots import MINUS
from diffdpo.statistics import Effect
from diffdpo.types import Clip


def axis(name: str, role: Any, mean: float, *, half: float = 0.1, std: float = 0.5) -> AxisEffect:
    effect = Effect(mean, mean - half, mean + half, win_rate=0.5, effect_size=0.0, count=8, clusters=8)
    return AxisEffect(name, role, baseline_mean=1.0, baseline_std=std, aligned_mean=1.0 + mean, effect=effect)


def sine(
    hertz: float, *, level: float = 0.3, seconds: float = 2.0, rate: int = 16000, channels: int = 1
) -> Clip:
    t = np.arange(int(seconds * rate)) / rate
    samples = np.tile(level * np.sin(2 * np.pi * hertz * t), (channels, 1))
    return Clip(samples=samples.astype(np.float32), sample_rate=rate)


def comparison(name: str, change: float) -> Comparison:
    return Comparison(
        prompt_id=name,
        prompt_text=f"song of {name}",
        sample_id=f"{name}-0",
        baseline=sine(440, seconds=0.5),
        aligned=sine(880, seconds=0.5),
        baseline_scores={"a.x": 1.0},
        aligned_scores={"a.x": 1.0 + change},
        standardised_change=change,
    )


def decoded(uri: str) -> Clip:
    head, content = uri.split(",")
    assert head == "data:audio/mpeg;base64"
    samples, rate = soundfile.read(io.BytesIO(base64.b64decode(content)), dtype="float32", always_2d=True)
    return Clip(samples=np.ascontiguousarray(samples.T), sample_rate=rate)


def test_the_headline_counts_what_is_certain_and_names_what_fell():
    effects = [axis("a.x", "mined", 0.3), axis("a.y", "mined", 0.05), axis("b.long_name", "judge", -0.4)]
    assert headline(effects) == (
        "Aligned is better on 1 of 2 mined axes and on 0 of 1 judge",
        "1 judge fell beyond the interval: long name",
    )
    assert headline(effects[:2]) == ("Aligned is better on 1 of 2 mined axes", "")
    assert (
        headline([axis("a.x", "mined", -1.0), axis("a.y", "judge", -1.0)])[1]
        == "1 judge fell beyond the interval: y; 1 mined axis fell: x"
    )
    assert headline([]) == ("Nothing was compared.", "")
    two = headline([axis("a.x", "judge", -1.0), axis("a.y", "judge", -1.0)])
    assert two[1] == "2 judges fell beyond the interval: x, y"


def test_the_tally_says_by_how_much_the_most_first():
    effects = [
        axis("a.x", "mined", 0.5, std=1),
        axis("a.y", "judge", -1, std=1),
        axis("a.z", "mined", 1, std=0.5),
    ]
    assert tally(effects) == {
        "better": [("z", "+2.00"), ("x", "+0.50")],
        "worse": [("y (judge)", f"{pictures.MINUS}1.00")],
    }
    assert tally([]) == {}


def test_numbers_are_short_and_have_a_real_minus():
    assert [number(v) for v in (0.0, 0.12345, -1.0, 12345.6, math.nan)] == [
        "0",
        "0.123",
        f"{MINUS}1.00",
        "12,346",
        "\N{EN DASH}",
    ]
    assert [format_signed(v) for v in (0.5, -0.5, 0.0)] == ["+0.50", f"{MINUS}0.50", "0"]


def test_matched_clips_are_equally_loud_equally_long_and_not_clipped():
    clips = pictures.match_loudness([sine(440, level=0.9), sine(880, level=0.01, seconds=1.5, channels=2)])
    assert [clip.seconds for clip in clips] == [2.0, 2.0]
    lengths = [Clip(samples=clip.samples[:, :24000], sample_rate=16000) for clip in clips]
    assert audio.loudness(lengths[0]) == pytest.approx(audio.loudness(lengths[1]), abs=0.8)
    quiet = Clip(samples=np.zeros((1, 32000), np.float32), sample_rate=16000)
    click = Clip(samples=np.zeros((1, 32000), np.float32), sample_rate=16000)
    click.samples[0, ::8000] = 1.0
    levelled = pictures.match_loudness([quiet, click])
    assert np.abs(levelled[1].samples).max() <= pictures.LOSSY_PEAK_LIMIT + 1e-6


@pytest.mark.parametrize(
    ("rate", "heard_rate", "channels"), [(44100, 44100, 2), (8000, 8000, 1), (96000, 48000, 3)]
)
def test_an_embedded_clip_sounds_as_it_did_and_keeps_to_its_budget(rate: int, heard_rate: int, channels: int):
    (clip,) = pictures.match_loudness([sine(440, rate=rate, channels=channels)])
    sound = decoded(pictures.embed(clip, 40_000))
    assert sound.sample_rate == heard_rate
    assert sound.seconds == pytest.approx(2.0, abs=0.1)
    spectrum = np.abs(np.fft.rfft(sound.samples[0]))
    assert spectrum.argmax() / sound.seconds == pytest.approx(440, abs=2)
    assert audio.loudness(sound) == pytest.approx(audio.loudness(clip), abs=0.5)


def test_a_smaller_budget_makes_a_smaller_file():
    noise = np.random.default_rng(0).normal(0, 0.1, (2, 5 * 44100)).astype(np.float32)
    clip = Clip(samples=noise, sample_rate=44100)
    sizes = [
        len(base64.b64decode(pictures.embed(clip, budget).split(",")[1]))
        for budget in (30_000, 50_000, 10**9)
    ]
    assert sizes[0] < 33_000 < sizes[1] < 55_000 < sizes[2] < 90_000


def test_the_spectrogram_is_a_png_whose_opacity_is_the_level():
    low, high = pictures.draw_pictures([sine(300), sine(3000, level=0.003)])
    means = []
    for picture in (low, high):
        png = base64.b64decode(picture.spectrogram.split(",")[1])
        width, height = struct.unpack(">II", png[16:24])
        at = png.index(b"IDAT")
        (length,) = struct.unpack(">I", png[at - 4 : at])
        rows = np.frombuffer(zlib.decompress(png[at + 4 : at + 4 + length]), np.uint8).reshape(
            height, width + 1
        )
        means.append(rows[:, 1:].mean(1))
    assert means[0].argmax() > means[1].argmax()  # low notes at the bottom
    assert means[0].max() > 1.2 * means[1].max()  # on one scale, the quiet one is fainter


def test_waveforms_share_their_scale():
    loud, soft = pictures.draw_pictures([sine(300, level=0.8), sine(300, level=0.2)])
    heights = [min(float(y) for y in re.findall(r",([\d.]+)", picture.peaks)) for picture in (loud, soft)]
    assert heights == pytest.approx([0.0, 37.5], abs=0.5)


def test_pictures_of_silence_and_of_a_few_samples():
    clips = [Clip(samples=np.zeros((1, n), np.float32), sample_rate=16000) for n in (16000, 7)]
    assert len(pictures.draw_pictures(clips)) == 2


def test_the_smooth_line_keeps_constants_and_lines():
    assert np.allclose(pictures.running_mean(np.full(30, 2.5), 5), 2.5)
    line = np.arange(30.0)
    assert np.allclose(pictures.running_mean(line, 5)[5:-5], line[5:-5])
    assert np.allclose(pictures.running_mean(line, 1), line)


def test_ticks_are_round_and_inside():
    assert pictures.ticks(-0.9, 1.3, 5) == [-0.5, 0.0, 0.5, 1.0]
    assert pictures.ticks(0.1, 0.9, 3) == [0.2, 0.4, 0.6, 0.8]
    assert pictures.ticks(1.0, 400.0, 4) == [100.0, 200.0, 300.0, 400.0]


def test_charts_show_what_was_logged_and_skip_what_is_not_a_number():
    rows = [
        {"step": k, "loss": math.nan if k == 3 else 1 / k, "winner_gain": 0.1, "loser_gain": -0.1}
        for k in range(1, 9)
    ]
    loss, gains = charts(rows)
    assert (loss.title, gains.title) == ("Loss", "Error below the reference's")
    assert loss.curves[0].raw.count("M") == 7
    assert [curve.label for curve in gains.curves] == ["winner", "loser"]
    assert "nan" not in loss.curves[0].smooth
    assert charts([]) == []
    assert charts([{"step": 1.0, "loss": 0.5}])[0].curves[0].last == 0.5


def test_a_winner_that_is_unlearned_is_a_warning():
    assert "unlearned" in drift([{"winner_gain": 0.5}, {"winner_gain": -0.2}])
    assert drift([{"winner_gain": -0.5}, {"winner_gain": 0.2}]) == drift([{}]) == drift([]) == ""


def test_the_page_escapes_what_it_is_given_and_leaves_out_what_is_empty():
    hostile = "<script>alert(1)</script>"
    page = render(
        Report(
            title=hostile,
            facts={hostile: hostile},
            effects=[],
            unpaired_prompts={"p": hostile},
            command=hostile,
        )
    )
    assert hostile not in page
    assert page.count("&lt;script&gt;alert(1)") == 6  # the title stands in two places
    for absent in ("id=listening", 'id="listening"', 'id="training"', 'id="song"', 'id="effect"', "<table"):
        assert absent not in page


def test_songs_come_in_the_order_given_and_say_what_they_are_cases_of(tmp_path: Path):
    comparisons = [
        replace(comparison(case, change), case=case)
        for case, change in (("worst", -0.5), ("median", 0.0), ("best", 0.5))
    ]
    report = Report(
        title="t",
        facts={},
        effects=[axis("a.x", "mined", 0.1)],
        comparisons=comparisons,
        change_name="W.all",
    )
    write_report(tmp_path / "report.html", report)
    page = (tmp_path / "report.html").read_text()
    assert re.findall(r"<h3>song of (\w+)</h3>", page) == ["worst", "median", "best"]
    assert re.findall(r'<span class="case \w+">(\w+)</span> (.*?)&nbsp;SD <small>W.all', page) == [
        ("worst", f"{MINUS}0.50"),
        ("median", "0"),
        ("best", "+0.50"),
    ]
    assert "3 of 8 songs" in page
    assert page.count("data:audio/mpeg") == 6


def test_nothing_on_the_page_points_outside():
    page = render(
        Report(title="t", facts={}, effects=[axis("a.x", "judge", 0.1)], comparisons=[comparison("p", 0.1)])
    )
    targets = re.findall(r"""(?:src|href)="([^"]*)"|url\(([^)]*)\)""", page)
    assert targets
    assert all((one or two).startswith(("#", "data:")) for one, two in targets)
    assert "default-src 'none'" in page
