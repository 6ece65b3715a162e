"""Scale-invariant weights: which they are, and how training moves them (seed 001)."""

from thalweg.invariance.convert import Conversion, make_scale_invariant
from thalweg.invariance.cycles import Cycles, find_cycles
from thalweg.invariance.equilibrium import (
    decay_time,
    effective_grad_norm,
    effective_lr,
    effective_step_size,
    equilibrium_ess,
    equilibrium_interval,
    equilibrium_squared_norm,
    jump_bounds,
    time_to_jump,
)
from thalweg.invariance.groups import ScaleGroup, find_scale_groups
from thalweg.invariance.monitor import ScaleMonitor
from thalweg.invariance.regimes import History, Regime, bisect_regimes, classify_regime
from thalweg.invariance.toy import SphereToy

__all__ = [
    "Conversion",
    "Cycles",
    "History",
    "Regime",
    "ScaleGroup",
    "ScaleMonitor",
    "SphereToy",
    "bisect_regimes",
    "classify_regime",
    "decay_time",
    "effective_grad_norm",
    "effective_lr",
    "effective_step_size",
    "equilibrium_ess",
    "equilibrium_interval",
    "equilibrium_squared_norm",
    "find_cycles",
    "find_scale_groups",
    "jump_bounds",
    "make_scale_invariant",
    "time_to_jump",
]
