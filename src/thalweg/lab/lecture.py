"""The lecture of seed 004 by topic: text, formulas, torch calls, rows of the checklist, the experiment that shows it.

One source for ``thalweg lecture TOPIC`` and for the chapters of the documentation. Only `checked` and `shown`, which
measure, import torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from thalweg.lab.errors import LabError

__all__ = ["TOPICS", "Topic", "checked", "find", "shown"]


@dataclass(frozen=True)
class Topic:
    """One topic of the lecture.

    Attributes:
        name: as typed; the experiment is ``lecture-NAME``.
        title: as read.
        text: what it is about and what to know, in a paragraph.
        formulas: the lecture's, a line each.
        torch: a program of a few lines with torch's calls beside this library's.
        rows: numbers of its rows in `thalweg.lecture.CHECKLIST`.
        terms: English term -> the lecture's Russian one.
    """

    name: str
    title: str
    text: str
    formulas: Sequence[str]
    torch: str
    rows: Sequence[int]
    terms: Mapping[str, str]

    @property
    def experiment(self) -> str:
        """The experiment that draws its figures and judges its claims."""
        return f"lecture-{self.name}"


_ALL = (
    Topic(
        "polynomials",
        "Overfitting and weight decay",
        "A polynomial of degree 9 follows 30 noisy points more closely than one of degree 3, and is further from the "
        "function behind them; its coefficients are huge. A penalty on the coefficients, squared (ridge) or absolute "
        "(lasso), takes that back. In the printed row of degree 9 the coefficient 186.1 has lost its minus sign.",
        (
            "f(x) = x³ - 4x² + 3x - 2,   y = f(x) + N(0, 0.25)",
            "ridge   R(w) = Σ wᵢ²        ‖y - b - X w‖² + α R(w)          weight_decay λ = 2α/N",
            "lasso   R(w) = Σ |wᵢ|       ‖y - b - X w‖²/(2N) + α R(w)     step  S(w, t) = sign(w) max(|w| - t, 0)",
        ),
        """\
import torch
from thalweg.lecture import fit_polynomial, lasso, noisy_sample, polynomial_features, ridge, weight_decay_of_alpha

x, y = noisy_sample(30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
print(fit_polynomial(x, y, 9))  # torch.linalg.lstsq on torch.vander(x, 10, increasing=True)
X = polynomial_features(x, 7)[:, 1:]
print(ridge(X, y, 0.01)[0], lasso(X, y, 0.01)[0])
optimizer = torch.optim.SGD([torch.zeros(8)], lr=0.1, weight_decay=weight_decay_of_alpha(0.01, 30))  # ridge
print(torch.nn.functional.softshrink(torch.tensor([-2.0, 0.1, 1.0]), 0.5))  # lasso's proximal step
""",
        (1, 2, 3, 4),
        {
            "regularization": "регуляризация",
            "weight decay": "сокращение весов",
            "ridge regression": "гребневая регрессия",
            "regularizer": "регуляризатор",
            "weight coefficients": "весовые коэффициенты",
            "noise": "шум",
        },
    ),
    Topic(
        "early-stopping",
        "Early stopping",
        "Part of the training data is held out for validation, and training ends when the validation loss has not "
        "improved for some epochs; the weights of the best epoch are taken. PyTorch has no such rule.",
        ("stop after ``patience`` evaluations with  loss >= best - δ;  δ absolute or a share of |best|",),
        """\
import torch
from thalweg.lecture import EarlyStopping

model = torch.nn.Linear(2, 1)
stopping = EarlyStopping(model, patience=2)
for loss in (1.0, 0.7, 0.8, 0.9, 0.6):  # of the validation images, after each epoch
    if stopping.update(loss):
        break
stopping.restore()
print(stopping.best)  # 0.7
""",
        (5,),
        {
            "early stopping": "ранняя остановка",
            "training dataset": "обучающая выборка",
            "validation dataset": "валидационная выборка",
        },
    ),
    Topic(
        "dropout",
        "Dropout",
        "While training, every neuron but the output is left out with probability p; in prediction all take part. The "
        "classic form scales in prediction, the inverted one, which is torch's, while training. The average over the "
        "2ᴺ thinned networks equals the scaled one exactly for a linear output, and as a geometric mean for softmax; "
        "beyond a nonlinearity it is an approximation.",
        (
            "classic    training  y = r ⊙ x,            prediction  y = (1 - p) x",
            "inverted   training  y = r ⊙ x/(1 - p),    prediction  y = x,          rᵢ ~ Bernoulli(1 - p)",
            "recommended p: inputs 0.1 to 0.2, hidden layers 0.2 to 0.5",
        ),
        """\
import torch
from thalweg.lecture import all_masks, classic_dropout, inverted_dropout, mask_average, mask_probabilities

x = torch.tensor([1.0, 2.0])
print(torch.nn.Dropout(p=0.5)(x), inverted_dropout(x, 0.5))  # each value is 0 or doubled
print(torch.nn.Dropout(p=0.5).eval()(x), classic_dropout(x, 0.5, training=False))
masks = all_masks(2)
print(mask_average(masks * x, mask_probabilities(masks, 0.5)))  # (1 - p) x
""",
        (6, 7, 8),
        {
            "dropout": "дропаут",
            "training phase": "обучение",
            "inference phase": "предсказание",
            "input layer": "входной слой",
            "hidden layers": "скрытые слои",
            "averaging of models": "усреднение моделей",
        },
    ),
    Topic(
        "initialization",
        "Initialization of weights",
        "Weights must be drawn so that neither signal nor gradient fades or explodes on its way through the layers. "
        "The printed LeCun rule is torch's default for Linear and has a third of the variance that LeCun asks for. "
        "Kaiming's factor 2 is right for ReLU and LeakyReLU; ELU needs 1.55, and SELU 1: with 2 it explodes.",
        (
            "LeCun, printed   U(±1/√m), variance 1/(3m)          LeCun 1998   U(±√(3/m)), variance 1/m",
            "Glorot           U(±√(6/(m + n)))                   Kaiming      N(0, 2/m)",
            "in general       variance gain²/m,  gain² = 1/E f(z)²,  z ~ N(0, 1)",
        ),
        """\
import torch
from thalweg.lecture import forward_gain, kaiming, signal_power

weight = torch.empty(256, 128)  # (n, m)
torch.nn.init.xavier_uniform_(weight)
torch.nn.init.kaiming_normal_(weight, nonlinearity="relu")
selu = torch.nn.functional.selu
print(torch.nn.init.calculate_gain("selu"), forward_gain(selu))  # 0.75 and 1
print(signal_power(selu, 2.0, layers=20)[-1])  # 70 times the signal
weight = kaiming(128, 256, gain=forward_gain(selu))
""",
        (10, 11, 12, 13, 14),
        {
            "initialization of weights": "инициализация весов",
            "random initialization": "случайная инициализация",
            "uniform distribution": "равномерное распределение",
            "normal distribution": "нормальное распределение",
            "variance": "дисперсия",
            "expectation": "математическое ожидание",
            "activation function": "функция активации",
            "logistic sigmoid": "логистический сигмоид",
            "hyperbolic tangent": "гиперболический тангенс",
        },
    ),
    Topic(
        "transfer",
        "Pretraining, fine-tuning, transfer",
        "A network that has learnt one task begins another from its weights: with the body frozen and a new head, or "
        "fine-tuned as a whole. It helps where the tasks are near; from five classes to five others it does not, as "
        "the experiment shows.",
        ("transfer learning = pretraining + fine-tuning",),
        """\
import torch

body, head = torch.nn.Linear(64, 32), torch.nn.Linear(32, 10)
body.requires_grad_(False)  # frozen: only the new head learns
body.requires_grad_(True)  # or fine-tuned, at a tenth of the head's rate
groups = [{"params": head.parameters()}, {"params": body.parameters(), "lr": 0.01}]
optimizer = torch.optim.SGD(groups, lr=0.1)
""",
        (9,),
        {
            "pretraining": "предобучение",
            "fine-tuning": "тонкая настройка, дообучение",
            "transfer learning": "перенос обучения",
        },
    ),
    Topic(
        "normalization",
        "Batch and layer normalization",
        "The inputs of a layer shift while the layers below it learn; normalization fixes their mean and variance, "
        "over the mini-batch or over the neurons, and γ and β give back what it takes. The lecture leaves prediction "
        "out: there running statistics stand in for the batch's. Small mini-batches hurt batch normalization, not "
        "layer normalization.",
        (
            "z-score   z = (x - μ)/σ,   σ² = 1/N Σ (xᵢ - μ)²",
            "batch     x̂ = (x - μ_B)/√(σ_B² + ε),   y = γ x̂ + β       identity: γ = √(σ_B² + ε), β = μ_B",
            "layer     the same with μ, σ² over the features of one sample",
        ),
        """\
import torch
from thalweg.lecture import batch_norm, layer_norm

x = torch.randn(32, 8)
layer = torch.nn.BatchNorm1d(8, eps=1e-5, momentum=0.1)  # momentum: the weight of the new value
print((layer(x) - batch_norm(x)).abs().max())  # rounding
print((torch.nn.LayerNorm(8)(x) - layer_norm(x)).abs().max())
""",
        (15, 16, 17, 18),
        {
            "mini-batch normalization": "нормализация по мини-батчам",
            "internal covariate shift": "внутренний сдвиг переменных",
            "standard scaling": "мера относительного разброса",
            "standard deviation": "стандартное отклонение",
            "three-sigma rule": "правило трёх сигм",
            "nonlinearity": "нелинейность",
        },
    ),
    Topic(
        "descent",
        "Gradient descent and stochastic gradients",
        "The antigradient is the direction of steepest descent; the rate decides whether a step is too short, right, "
        "or past the minimum. On the lecture's surface descent crawls away from the maxima and stays on the ridges. "
        "One random summand, or a mini-batch, estimates the gradient without bias, with noise that falls like 1/n.",
        (
            "w⁽ᵏ⁾ = w⁽ᵏ⁻¹⁾ - ηₖ ∇Q(w⁽ᵏ⁻¹⁾)   until w hardly changes, or k reaches a maximum",
            "y = x²,  y' = 2x                 y = -(cos² x₁ + cos² x₂)²,  ∂y/∂xᵢ = 2 (cos² x₁ + cos² x₂) sin 2xᵢ",
            "∇Q(w) ≈ 1/n Σⱼ ∇L_{iⱼ}(w),       variance σ²/n (l - n)/(l - 1)",
        ),
        """\
import torch
from thalweg.lecture import cosine_gradient, descend, gradient_descent

found = descend(gradient_descent, cosine_gradient, torch.tensor([0.9, -0.7]), eta=0.1, steps=1000, tolerance=1e-6)
print(found.still, found.steps, found.w[-1])
w = torch.tensor([0.9, -0.7], requires_grad=True)
optimizer = torch.optim.SGD([w], lr=0.1)  # the same steps; stop rules are one's own
""",
        (19, 20, 21, 27),
        {
            "gradient descent": "градиентный спуск",
            "gradient": "градиент",
            "antigradient": "антиградиент",
            "learning rate": "скорость спуска",
            "stop rule": "условие останова",
            "loss functional": "функционал ошибки",
            "stochastic gradient descent": "стохастический градиентный спуск",
            "mini-batch gradient descent": "градиентный спуск по мини-батчам",
            "convergence": "сходимость",
        },
    ),
    Topic(
        "schedules",
        "Shapes of the learning rate",
        "A high rate is fast, a low one quiet: decay has both. The lecture prints three formulas and the names of "
        "eight shapes; the figure is lost, and the other formulas are this library's. K of the exponential is a time "
        "constant, at which the rate is still 0.37 of the first.",
        (
            "constant ηₖ = η₀      linear ηₖ = η₀ (1 - k/K)      exponential ηₖ = η₀ e^{-k/K}",
            "constant, exp, str, sig, rep, trap, str+, sig+",
        ),
        """\
import torch
from thalweg.optim.schedules import linear, sigmoid, warmup

optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1, momentum=0.9)
scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.9)  # K = 9.49
schedule = warmup(sigmoid(0.1, 900), 100)  # sig+: not in torch
print(linear(0.1, 1000)(500), schedule(50), schedule(550))
scheduler = schedule.scheduler(optimizer)
""",
        (22, 23, 24, 25, 26),
        {
            "constant rate": "константная скорость",
            "learning rate decay": "затухание",
            "linear decay": "линейное затухание",
            "exponential decay": "экспоненциальное затухание",
            "learning rate warmup": "повышение",
        },
    ),
    Topic(
        "trajectories",
        "Modifications of gradient descent",
        "Momentum and Nesterov's method remember past gradients, AdaGrad, AdaDelta and RMSprop scale every weight's "
        "step by its own past gradients, Adam and AdamW do both. As printed AdaDelta never moves, for its numerator "
        "lacks ε, and Adam and AdamW lack the bias correction: their first step is 3.16 times too long.",
        (
            "momentum   h' = α h + η ∇Q(w),  w' = w - h'         Nesterov   h' = α h + η ∇Q(w - α h),  w' = w - h'",
            "AdaGrad    G' = G + g²                 Δ = η g/(√G' + ε)",
            "RMSprop    G' = α G + (1 - α) g²       Δ = η g/(√G' + ε)",
            "AdaDelta   G' = ρ G + (1 - ρ) g²       Δ = √(E + ε)/√(G' + ε) g        printed: √E/√(G' + ε) g",
            "Adam       m̂ = m/(1 - β₁ᵏ), v̂ = v/(1 - β₂ᵏ)   Δ = η m̂/(√v̂ + ε)      printed: η m/√(v + ε)",
            "AdamW      Δ of Adam + η ω w",
        ),
        """\
import torch
from thalweg.lecture import adam, cosine_gradient, descend

start = torch.tensor([1.2, 0.4], dtype=torch.float64)
forms = ("printed", "torch")
printed, right = (descend(adam, cosine_gradient, start, eta=0.01, steps=50, form=form).w for form in forms)
print((printed[1] - start).norm() / (right[1] - start).norm())  # 3.16
params = [torch.zeros(2, requires_grad=True)]
momentum = torch.optim.SGD(params, lr=0.01, momentum=0.9, nesterov=True)
others = [torch.optim.Adagrad, torch.optim.Adadelta, torch.optim.RMSprop, torch.optim.Adam, torch.optim.AdamW]
""",
        (28, 29, 31, 32, 33, 34, 35, 36, 37),
        {
            "modifications of gradient descent": "модификации градиентного спуска",
            "momentum": "метод моментов",
            "momentum coefficient": "коэффициент момента",
            "inertia vector": "вектор инерции",
            "Nesterov's method": "метод Нестерова",
            "exponential mean": "экспоненциальное среднее",
            "smoothing constant": "сглаживающая константа",
            "root mean square": "среднее квадратическое",
        },
    ),
    Topic(
        "race",
        "A race on real images",
        "Every optimizer, schedule, initialization and normalization of the lecture trains one network, each at its "
        "own best learning rate: their best rates lie decades apart, and at one rate for all the rate would decide. "
        "The lecture's signature of SGD still requires a rate; torch's default is 10⁻³.",
        ("best rate = argmin over 1, 3, 10, … of the mean training loss; the grid widens until it lies inside",),
        """\
import torch

optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.03, momentum=0.9, weight_decay=0.0, nesterov=True)
print(optimizer.defaults)
""",
        (30,),
        {"training": "обучение нейронных сетей", "epoch": "эпоха"},
    ),
)

TOPICS: Mapping[str, Topic] = {topic.name: topic for topic in _ALL}
"""Name -> topic, in the lecture's order."""


def find(name: str) -> Topic:
    """The topic called ``name``.

    Raises:
        LabError: there is none.
    """
    if name not in TOPICS:
        raise LabError.unknown("topic of the lecture called", name, TOPICS)
    return TOPICS[name]


def checked(topic: Topic) -> list[dict[str, Any]]:
    """The topic's rows of the checklist, every difference measured now."""
    from thalweg.lecture import CHECKLIST

    found = []
    for row in CHECKLIST:
        if row.number in topic.rows:
            measured = row.measure()
            found.append(
                {
                    "number": row.number,
                    "topic": row.topic,
                    "lecture": row.lecture,
                    "torch": row.torch,
                    "instead": row.right,
                    "verdict": "equal" if all(entry.equal for entry in measured) else "differs",
                    "measured": [str(entry).replace("**", "") for entry in measured],
                    "test": row.test,
                }
            )
    return found


def shown(topic: Topic, *, width: int = 100) -> str:
    """The topic as text for a terminal."""
    import textwrap

    lines = [topic.title, "", *textwrap.wrap(topic.text, width), "", *(f"    {line}" for line in topic.formulas), ""]
    lines += [
        "In torch",
        "",
        *(f"    {line}" for line in topic.torch.splitlines()),
        "",
        "Lecture and torch, measured now",
        "",
    ]
    for row in checked(topic):
        lines.append(f"{row['number']:>4}  {row['topic']}: {row['verdict']}")
        entries = [(key, row[key]) for key in ("lecture", "torch", "instead") if row[key]]
        for key, entry in [*entries, *(("measured", entry) for entry in row["measured"])]:
            lines.append(f"      {key:<9} {entry}")
    command = f"thalweg run {topic.experiment}"
    return "\n".join([*lines, "", f"The experiment: {command}", f"Its figures:    thalweg figure {topic.experiment}"])
