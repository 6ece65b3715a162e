"""Does this machine have what the laboratory needs?"""

from __future__ import annotations

import os
from importlib import metadata
from importlib.util import find_spec

import thalweg

__all__ = ["examine"]

PARTS = {"lightning_fabric": "lab", "skimage": "lab", "pooch": "lab", "ray": "ray", "submitit": "slurm"}


def examine() -> list[dict[str, str]]:
    """One row per thing looked at: what it is, how it stands, and the cure where it does not stand well."""
    return [_row("thalweg", thalweg.__version__), _torch(), _devices(), _threads(), _torchvision(), *_parts(), *_data()]


def _row(what: str, state: str, cure: str = "") -> dict[str, str]:
    return {"what": what, "state": state, "cure": cure}


def _torch() -> dict[str, str]:
    import torch

    return _row("torch", torch.__version__)


def _devices() -> dict[str, str]:
    import torch

    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return _row("devices", ", ".join(["CPU", *names]))


def _threads() -> dict[str, str]:
    from thalweg.lab.engine import cores

    limit = os.environ.get("OMP_NUM_THREADS")
    return _row("cores", f"{cores()}" + (f", OMP_NUM_THREADS={limit}" if limit else ""))


def _torchvision() -> dict[str, str]:
    """A torchvision of another build breaks torchmetrics and lightning; thalweg itself never imports it."""
    if find_spec("torchvision") is None:
        return _row("torchvision", "absent, as it should be")
    try:
        import torchvision
    except Exception as error:
        cure = "pip uninstall torchvision: thalweg does not need it"
        return _row("torchvision", f"broken: {type(error).__name__}: {error}", cure)
    return _row("torchvision", f"{torchvision.__version__}, works")


def _parts() -> list[dict[str, str]]:
    rows = []
    for module, extra in PARTS.items():
        if find_spec(module) is None:
            rows.append(_row(module, "not installed", f"pip install 'thalweg[{extra}]'"))
        else:
            name = {"skimage": "scikit-image", "lightning_fabric": "lightning-fabric"}.get(module, module)
            rows.append(_row(module, metadata.version(name)))
    return rows


def _data() -> list[dict[str, str]]:
    from thalweg.lab.data.catalogue import names, where

    cure = "thalweg data fetch {}, or name its folder with THALWEG_DATA or --data-dir"
    found = {name: where(name, None) for name in names()}
    return [
        _row(f"data: {name}", str(place or "not found"), "" if place else cure.format(name))
        for name, place in found.items()
    ]
