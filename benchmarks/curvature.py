"""The curvature engine against PyHessian and curvlinops: a product, ten eigenvalues, the trace.

Run as ``python -m benchmarks.curvature``. A network of 93,000 parameters (three convolutions of stride 2, two linear
layers) is trained for a moment on CIFAR-10 (``THALWEG_DATA``; random images where there is none); the loss is that of
500 images, on one thread. Rivals take turns in one process, a sample is processor time (wall time on an accelerator,
synchronised), the median counts. Rivals that are not at hand are installed by pip, without dependencies, into an
environment in the user's cache that borrows torch from this one; what cannot be installed is left out with a sentence,
and ``--no-rivals`` leaves out all of them. PyHessian's newest code is not released: pip is asked for it, then
for the release, unless ``--pyhessian`` names the folder of a checkout.

The promises checked here, made for CPUs: a product with the Hessian costs at most 2.0 gradients and one with the
Gauss-Newton matrix 1.5, and the set-up pays back within 13 products, by what it saves on each; ten eigenvalues with
residuals of 1e-4 cost at most 1/5 of PyHessian's and 1/2 of curvlinops'; the exact trace 1/7 and 1/12 of theirs at
their default budgets.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import math
import multiprocessing
import os
import resource
import site
import statistics
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, linearize
from torch.nn.functional import cross_entropy

from benchmarks.clock import peak_memory, plain_arithmetic, seconds
from thalweg.curvature import CurvatureOperator, eigsh, exact_trace, trace

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "thalweg" / "curvature-rivals"
PACKAGES = ["curvlinops-for-pytorch", "backpack-for-pytorch", "einops", "einconv", "unfoldNd", "linear_operator"]
PYHESSIAN = ["git+https://github.com/amirgholami/PyHessian", "pyhessian"]
PROMISES = {"hessian": 2.0, "ggn": 1.5, "payback": 13, "eigsh": (5.0, 2.0), "trace": (7.0, 12.0)}


def network() -> nn.Sequential:
    """Three convolutions and two linear layers, 92,939 parameters, ReLU."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(),
        nn.Conv2d(32, 64, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(1024, 67), nn.ReLU(), nn.Linear(67, 10),
    )  # fmt: skip


def images(count: int) -> tuple[Tensor, Tensor, str]:
    """Standardized CIFAR-10 images and labels, or random ones."""
    try:
        from thalweg.lab.data.catalogue import load

        train = load("cifar10", download=False).train
        return (train.images[:count] - 0.5) / 0.25, train.labels[:count], "CIFAR-10"
    except Exception as error:  # whatever keeps a machine without the data from loading it
        print(f"random images, as CIFAR-10 was not found: {error}", file=sys.stderr)
        draw = torch.Generator().manual_seed(0)
        labels = torch.randint(10, (count,), generator=draw)
        means = torch.randn(10, 3, 32, 32, generator=draw)
        return means[labels] + torch.randn(count, 3, 32, 32, generator=draw), labels, "random images"


def trained(x: Tensor, y: Tensor, steps: int) -> nn.Sequential:
    """The network where the images are, from the same start wherever that is."""
    torch.manual_seed(0)
    model = network().to(x.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    for k in range(steps):
        part = slice(k * 100 % len(x), k * 100 % len(x) + 100)
        optimizer.zero_grad()
        cross_entropy(model(x[part]), y[part]).backward()
        optimizer.step()
    return model.eval()


def install(pyhessian: str | None) -> dict[str, Any]:
    """The rivals' modules by name, after installing them; a sentence on stderr for what is missing."""
    found: dict[str, Any] = {}
    if pyhessian is not None:
        sys.path.insert(0, pyhessian)
    for name in ("curvlinops", "pyhessian"):
        with contextlib.suppress(ImportError):
            found[name] = importlib.import_module(name)
    if len(found) == 2:
        return found
    python = CACHE / ("Scripts" if os.name == "nt" else "bin") / "python"
    if not python.exists():
        venv.create(CACHE, with_pip=True)
    (home,) = [*CACHE.glob("lib/python*/site-packages"), *CACHE.glob("Lib/site-packages")][:1]
    (home / "borrowed.pth").write_text("\n".join(site.getsitepackages()))
    site.addsitedir(str(home))
    pip = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--disable-pip-version-check"]
    for name, attempts in {"curvlinops": [PACKAGES], "pyhessian": [[source] for source in PYHESSIAN]}.items():
        if name in found:
            continue
        for packages in [None, *attempts]:
            if packages is not None:
                done = subprocess.run([*pip, *packages], check=False, capture_output=True)
                if done.returncode:
                    continue
                importlib.invalidate_caches()
            try:
                found[name] = importlib.import_module(name)
                break
            except ImportError:
                continue
        else:
            print(f"{name} is left out, as pip could not install it", file=sys.stderr)
    return found


def timed(runs: dict[str, Callable[[], object]], rounds: int, device: str = "cpu") -> dict[str, float]:
    """Median seconds of each, taking turns."""
    samples: dict[str, list[float]] = {name: [] for name in runs}
    for k in range(rounds + 1):
        for name, run in runs.items():
            sample = seconds(run, device)
            if k:  # the first round warms up
                samples[name].append(sample)
    return {name: statistics.median(values) for name, values in samples.items()}


def peak(run: Callable[[], object], device: str) -> float:
    """MiB that ``run`` adds to the peak of a process of its own, or to that of a CUDA device."""
    if device != "cpu":
        return peak_memory(run)
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)

    def child() -> None:
        torch.set_num_threads(1)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        run()
        send.send((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)

    process = context.Process(target=child)
    process.start()
    process.join()
    return float(receive.recv()) if process.exitcode == 0 else math.nan


class Rivals:
    """The same tasks for everyone; only what could be imported."""

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor, modules: dict[str, Any]) -> None:
        self.model, self.x, self.y, self.modules = model, x, y, modules
        self.params = list(model.parameters())
        self.device = x.device.type

    def gradient(self) -> object:
        return torch.autograd.grad(cross_entropy(self.model(self.x), self.y), self.params)

    def curvlinops(self, kind: str) -> Any:
        """Its operator on one batch, without the check of determinism that costs two products."""
        make = getattr(self.modules["curvlinops"], f"{kind}LinearOperator")
        return make(self.model, nn.CrossEntropyLoss(), self.params, [(self.x, self.y)], check_deterministic=False)

    def pyhessian(self) -> Any:
        self.model.zero_grad()
        make = self.modules["pyhessian"].hessian
        return make(self.model, nn.CrossEntropyLoss(), data=(self.x, self.y), cuda=self.device == "cuda")

    def linearized(self) -> Callable[..., Any]:
        point = {name: p.detach() for name, p in self.model.named_parameters()}
        return linearize(grad(lambda p: cross_entropy(functional_call(self.model, p, (self.x,)), self.y)), point)[1]


def main() -> int:
    """Print the tables; the exit status says whether every promise is kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=150, help="of training")
    parser.add_argument("--pyhessian", help="folder of a checkout")
    parser.add_argument("--no-rivals", action="store_true", help="nothing is looked for or installed")
    args = parser.parse_args()
    plain_arithmetic()
    x, y, kind = images(5000)
    x, y = x.to(args.device), y.to(args.device)
    model = trained(x, y, args.steps)
    x, y = x[: args.images].clone(), y[: args.images].clone()
    rivals = Rivals(model, x, y, {} if args.no_rivals else install(args.pyhessian))
    parameters = sum(p.numel() for p in model.parameters())
    loss = float(CurvatureOperator(model, cross_entropy, (x, y), kind="ggn").loss())
    where = "one thread" if rivals.device == "cpu" else args.device
    print(f"{parameters} parameters, {len(x)} of {kind}, loss {loss:.2f}, {where}, torch {torch.__version__}\n")
    kept = products(rivals, args.rounds)
    kept &= eigenvalues(rivals, max(1, args.rounds // 3))
    kept &= traces(rivals, max(1, args.rounds // 3))
    print(f"\nPromises {'kept' if kept else 'BROKEN'}")
    return int(not kept)


def products(rivals: Rivals, rounds: int) -> bool:
    """One product in gradients."""
    model, data = rivals.model, (rivals.x, rivals.y)

    def operator(**options: Any) -> CurvatureOperator:
        return CurvatureOperator(model, cross_entropy, data, **options)

    v = torch.randn(sum(p.numel() for p in rivals.params), generator=torch.Generator().manual_seed(0)).to(rivals.x)
    parts = dict(zip(dict(model.named_parameters()), v.split([p.numel() for p in rivals.params]), strict=True))
    parts = {name: part.view_as(model.get_parameter(name)) for name, part in parts.items()}
    H = operator()
    uncached = operator(memory=2 * activations(H))
    traced = rivals.linearized()
    runs: dict[str, Callable[[], object]] = {
        "gradient, one batch": rivals.gradient,
        "thalweg: set-up (L and its gradient in it)": operator,
        "**thalweg: Hessian**": lambda: H @ v,
        "**thalweg: Gauss-Newton**": lambda: H.with_kind("ggn") @ v,
        "thalweg: remainder": lambda: H.with_kind("remainder") @ v,
        "thalweg: Hessian, nothing kept": lambda: uncached @ v,
        "thalweg: Gauss-Newton, nothing kept": lambda: uncached.with_kind("ggn") @ v,
        "torch.func.linearize: Hessian": lambda: traced(parts),
        "torch.func.linearize: set-up": rivals.linearized,
    }
    if "pyhessian" in rivals.modules:
        retained = rivals.pyhessian()
        product = importlib.import_module("pyhessian.utils").hessian_vector_product
        runs["PyHessian: Hessian"] = lambda: product(retained.gradsH, retained.params, list(parts.values()))
    if "curvlinops" in rivals.modules:
        hessian, ggn = rivals.curvlinops("Hessian"), rivals.curvlinops("GGN")
        runs["curvlinops: Hessian"] = lambda: hessian @ v
        runs["curvlinops: Gauss-Newton"] = lambda: ggn @ v
    median = timed(runs, rounds, rivals.device)
    unit = median["gradient, one batch"]
    print(f"| product | gradients | ms |\n|---|---|---|\n{rows(median, unit)}")
    hessian_cost, ggn_cost = median["**thalweg: Hessian**"] / unit, median["**thalweg: Gauss-Newton**"] / unit
    saved = median["thalweg: Hessian, nothing kept"] - median["**thalweg: Hessian**"]
    payback = median["thalweg: set-up (L and its gradient in it)"] / max(saved, 1e-9)
    kept = hessian_cost <= PROMISES["hessian"] and ggn_cost <= PROMISES["ggn"] and payback <= PROMISES["payback"]
    print(
        f"\nA product costs {hessian_cost:.2f} gradients (promised 2.0), Gauss-Newton {ggn_cost:.2f} (1.5); the set-up "
        f"pays back after {payback:.1f} products (13): {'kept' if kept else 'BROKEN'}\n"
    )
    return kept


def activations(op: CurvatureOperator) -> int:
    """Bytes of all activations, half of what a budget needs to keep them."""
    return int(op._recording.bytes_per_sample * len(op.batches[0][0]))


def rows(seconds: dict[str, float], unit: float) -> str:
    return "\n".join(f"| {name} | {value / unit:.2f} | {value * 1e3:.1f} |" for name, value in seconds.items())


def eigenvalues(rivals: Rivals, rounds: int) -> bool:
    """The ten largest eigenvalues: time with set-up, error against float64, peak memory."""
    data = rivals.x, rivals.y
    double = CurvatureOperator(double_copy(rivals.model), cross_entropy, (rivals.x.double(), rivals.y))
    exact = eigsh(double, 10, tol=1e-9).values
    found: dict[str, Tensor] = {}

    def ours() -> None:
        found["**thalweg**"] = eigsh(CurvatureOperator(rivals.model, cross_entropy, data), 10, tol=1e-4).values

    runs: dict[str, Callable[[], object]] = {"**thalweg**": ours}
    if "pyhessian" in rivals.modules:

        def power() -> None:
            torch.manual_seed(0)
            values, _ = rivals.pyhessian().eigenvalues(top_n=10)
            found["PyHessian, default tolerance"] = (
                torch.tensor(values, device=rivals.x.device).sort(descending=True).values
            )

        runs["PyHessian, default tolerance"] = power
    if "curvlinops" in rivals.modules:
        from scipy.sparse.linalg import eigsh as arpack

        def scipy() -> None:
            op = rivals.curvlinops("Hessian").to_scipy()
            start = torch.randn(op.shape[0], generator=torch.Generator().manual_seed(0)).numpy()
            values = arpack(op, 10, which="LA", tol=1e-4, v0=start, return_eigenvectors=True)[0]
            found["curvlinops, SciPy tol=1e-4"] = (
                torch.tensor(values, device=rivals.x.device).sort(descending=True).values
            )

        runs["curvlinops, SciPy tol=1e-4"] = scipy
    median = timed(runs, rounds, rivals.device)
    print("| ten largest eigenvalues | seconds | ratio | largest relative error | peak, MiB |\n|---|---|---|---|---|")
    for name, value in median.items():
        error = float(((found[name].double() - exact).abs() / exact).max())
        ratio, memory = value / median["**thalweg**"], peak(runs[name], rivals.device)
        print(f"| {name} | {value:.3g} | {ratio:.1f} | {error:.0e} | {memory:.0f} |")
    return verdict(median, "eigsh")


def traces(rivals: Rivals, rounds: int) -> bool:
    """The trace, at the default budgets of the rivals."""
    data = rivals.x, rivals.y
    double = CurvatureOperator(double_copy(rivals.model), cross_entropy, (rivals.x.double(), rivals.y))
    exact = trace(double).value
    found: dict[str, float] = {}

    def ours() -> None:
        found["**thalweg, exact**"] = exact_trace(rivals.model, cross_entropy, data)

    def of_operator() -> None:
        found["thalweg, exact, with an operator's set-up"] = trace(
            CurvatureOperator(rivals.model, cross_entropy, data)
        ).value

    def estimated() -> None:
        op = CurvatureOperator(rivals.model, cross_entropy, data)
        found["thalweg, Hutch++ of 48 products"] = trace(op, exact=False).value

    runs: dict[str, Callable[[], object]] = {
        "**thalweg, exact**": ours,
        "thalweg, exact, with an operator's set-up": of_operator,
        "thalweg, Hutch++ of 48 products": estimated,
    }
    if "pyhessian" in rivals.modules:

        def hutchinson() -> None:
            torch.manual_seed(0)
            found["PyHessian"] = statistics.fmean(rivals.pyhessian().trace())

        runs["PyHessian"] = hutchinson
    if "curvlinops" in rivals.modules:
        from curvlinops import hutchinson_trace, hutchpp_trace

        def of(estimate: Callable[..., Any], name: str, budget: int) -> Callable[[], None]:
            def run() -> None:
                torch.manual_seed(0)
                found[name] = float(estimate(rivals.curvlinops("Hessian"), budget))

            return run

        for name, estimate, budget in (("Hutchinson, 50", hutchinson_trace, 50), ("Hutch++, 48", hutchpp_trace, 48)):
            runs[f"curvlinops, {name}"] = of(estimate, f"curvlinops, {name}", budget)
    median = timed(runs, rounds, rivals.device)
    print("\n| trace | seconds | ratio | relative error | peak, MiB |\n|---|---|---|---|---|")
    for name, value in median.items():
        ratio, memory = value / median["**thalweg, exact**"], peak(runs[name], rivals.device)
        print(f"| {name} | {value:.3g} | {ratio:.1f} | {abs(found[name] / exact - 1):.0e} | {memory:.0f} |")
    return verdict(median, "trace")


def verdict(median: dict[str, float], task: str) -> bool:
    """Whether the rivals take as many times as long as promised."""
    ours = next(iter(median.values()))
    kept = True
    for rival, least in zip(("PyHessian", "curvlinops"), PROMISES[task], strict=True):
        ratios = [value / ours for name, value in median.items() if name.startswith(rival)]
        if ratios:
            kept &= min(ratios) >= least
            print(f"\n{rival} takes {min(ratios):.1f} times as long; promised {least}")
    return kept


def double_copy(model: nn.Module) -> nn.Module:
    copied = network().to(next(model.parameters()).device).double().eval()
    copied.load_state_dict(model.state_dict())
    return copied


if __name__ == "__main__":
    raise SystemExit(main())
