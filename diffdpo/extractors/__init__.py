"""Feature extractors: frozen networks, each a vector for a sound, that reward models are fitted on.

A new one is a file here and a line in EXTRACTORS, or an entry point of another package. A file imports numpy at its
top and networks inside the functions that compute.
"""

from diffdpo.extractors.base import Extractor
from diffdpo.extractors.clap import ClapFeatures
from diffdpo.extractors.feature_file import FileFeatures
from diffdpo.extractors.latents import LatentFeatures
from diffdpo.extractors.mulan import MuLanFeatures
from diffdpo.extractors.muq import MuQFeatures
from diffdpo.extractors.musicnn import MusicnnFeatures
from diffdpo.extractors.style import StyleFeatures
from diffdpo.registry import Table

EXTRACTORS: Table[type[Extractor]] = Table(
    "extractor",
    {
        "latents": LatentFeatures,
        "style": StyleFeatures,
        "musicnn": MusicnnFeatures,
        "clap": ClapFeatures,
        "muq": MuQFeatures,
        "mulan": MuLanFeatures,
        "file": FileFeatures,
    },
)

DEFAULT_EXTRACTORS = ("latents", "style", "musicnn")
"""Those that need no download."""
