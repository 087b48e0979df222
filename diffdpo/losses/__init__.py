"""Training objectives. A new one is a file here and a line in OBJECTIVES."""

from diffdpo.losses.awm import AWM
from diffdpo.losses.dgpo import DGPO
from diffdpo.losses.dpo import DPO
from diffdpo.losses.dspo import DSPO
from diffdpo.losses.flow_matching import FlowMatching
from diffdpo.losses.kto import KTO
from diffdpo.losses.linear_dpo import LinearDPO
from diffdpo.losses.mapo import MaPO
from diffdpo.losses.nft import NFT
from diffdpo.losses.reward_weighted import RewardWeighted

OBJECTIVES: dict[str, type] = {
    "flow_matching": FlowMatching,
    "dpo": DPO,
    "linear_dpo": LinearDPO,
    "dspo": DSPO,
    "mapo": MaPO,
    "kto": KTO,
    "reward_weighted": RewardWeighted,
    "nft": NFT,
    "awm": AWM,
    "dgpo": DGPO,
}
