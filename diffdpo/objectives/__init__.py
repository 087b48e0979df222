"""Training objectives. A new one is a file here and a line in OBJECTIVES."""

from diffdpo.objectives.awm import AWM
from diffdpo.objectives.dgpo import DGPO
from diffdpo.objectives.dpo import DPO
from diffdpo.objectives.dspo import DSPO
from diffdpo.objectives.flow_matching import FlowMatching
from diffdpo.objectives.kto import KTO
from diffdpo.objectives.linear_dpo import LinearDPO
from diffdpo.objectives.mapo import MaPO
from diffdpo.objectives.nft import NFT
from diffdpo.objectives.reward_weighted import RWR
from diffdpo.objectives.slider import Slider
from diffdpo.registry import Table

OBJECTIVES: Table[type] = Table(
    "objective",
    {
        "flow_matching": FlowMatching,
        "dpo": DPO,
        "linear_dpo": LinearDPO,
        "dspo": DSPO,
        "mapo": MaPO,
        "kto": KTO,
        "reward_weighted": RWR,
        "nft": NFT,
        "awm": AWM,
        "dgpo": DGPO,
        "slider": Slider,
    },
)
