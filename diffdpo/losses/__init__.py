"""Training objectives. A new one is a file here and a line in OBJECTIVES."""

from diffdpo.losses.anchored_dpo import AnchoredDPO
from diffdpo.losses.dpo import DPO
from diffdpo.losses.flow_matching import FlowMatching

OBJECTIVES: dict[str, type] = {
    "flow_matching": FlowMatching,
    "dpo": DPO,
    "anchored_dpo": AnchoredDPO,
}
