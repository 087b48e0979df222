"""Data for real launches."""

import json
from pathlib import Path

import pytest
import torch
from support.browser import chromium_path

from diffdpo.data import tables
from diffdpo.data.latents import write_latents
from diffdpo.data.pairs import PAIRS, PairRow
from diffdpo.data.samples import SAMPLES, SampleRow


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Without Chromium all tests that need it are skipped from here, hence with one line in pytest's summary."""
    if item.get_closest_marker("browser"):
        chromium_path()


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pairs of random latents in the layout that `sample` and `mine` write."""
    folder = tmp_path_factory.mktemp("mined")
    samples, mined = folder / "samples", folder / "pairs"
    generator = torch.Generator().manual_seed(0)
    prompts, songs, rows = [], [], []
    for i in range(12):
        prompt = f"p{i:02d}"
        prompts.append(
            {"id": prompt, "text": "slow rock" if i % 2 else "fast metal", "duration_s": 1.0, "group": prompt}
        )
        for k in range(2):
            name = f"{prompt}.{k:03d}"
            latents = torch.randn(14 + i % 5, 8, generator=generator)
            write_latents(samples / "latents" / f"{name}.safetensors", latents)
            songs.append(
                SampleRow(sample_id=name, prompt_id=prompt, group=prompt, frames=len(latents), duration_s=1.0)
            )
        rows.append(
            PairRow(
                prompt_id=prompt,
                group=prompt,
                samples="../samples",
                winner=f"{prompt}.000",
                loser=f"{prompt}.001",
                rule="test",
            )
        )
    tables.append(samples, SAMPLES, songs)
    (samples / "prompts.jsonl").write_text("\n".join(json.dumps(prompt) for prompt in prompts))
    tables.append(mined, PAIRS, rows)
    return mined
