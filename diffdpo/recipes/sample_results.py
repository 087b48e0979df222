"""The end of the verb `sample`: the page of the songs and the manifest."""

from collections.abc import Sequence

from diffdpo.data import tables
from diffdpo.data.samples import SAMPLES, Samples
from diffdpo.errors import DataError
from diffdpo.progress import log
from diffdpo.report.gallery import write_gallery
from diffdpo.run_dir import DistEnv
from diffdpo.runs import finish


def conclude_samples(samples: Samples, sample_ids: Sequence[str], dist: DistEnv, *, shards: int = 1) -> None:
    """The main process writes the page and the manifest, the others wait for it."""
    if dist.main:
        _write_results(samples, sample_ids, dist, shards)
    dist.barrier()


def _write_results(samples: Samples, sample_ids: Sequence[str], dist: DistEnv, shards: int) -> None:
    """Write the page, and the manifest once no song is missing: other shards may still be at work."""
    if shards == 1:  # nobody else writes here
        tables.compact(samples.folder, SAMPLES)
    rows = {row.sample_id: row for row in samples.all_rows()}
    results = [rows[name] for name in sample_ids if name in rows]
    failures = [row for row in results if row.error]
    for row in failures[:5]:
        log(f"failed: {row.sample_id}: {row.error}")
    write_gallery(samples, results, n_missing=len(sample_ids) - len(results))
    if failures and len(failures) == len(results):
        raise DataError(f"{samples.folder}: no song could be made; first: {failures[0].error}")
    if failures:
        log(f"{len(failures)} of {len(results)} songs failed; the same command tries them again")
    if len(results) < len(sample_ids):
        log(f"{len(results)} of {len(sample_ids)} songs are there; the rest is for the other shards")
    else:
        finish(samples.folder, samples=len(results) - len(failures), failed=len(failures), world=dist.count)
