r"""The lecture's 37 items: each formula, the torch call beside it, and how far apart they are, measured when asked.

`CHECKLIST` holds the rows; the numbers come from `thalweg.lecture.comparisons`, which runs both sides in float64.
`markdown_table` is the table of the documentation. Source: seed 004, whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from thalweg.lecture import comparisons as c
from thalweg.lecture.comparisons import Measured

__all__ = ["CHECKLIST", "Row", "markdown_table"]


@dataclass(frozen=True)
class Row:
    """One item of the lecture.

    Attributes:
        number: 1 to 37.
        topic: what it is about.
        lecture: the formula, call or statement as printed.
        torch: the torch call that implements it; empty if there is none.
        right: what should stand in place of the print; empty if the print is right.
        measure: runs both sides and compares them.
        test: the test that holds the row, as pytest names it.
    """

    number: int
    topic: str
    lecture: str
    torch: str
    right: str
    measure: Callable[[], tuple[Measured, ...]]
    test: str

    def verdict(self) -> str:
        """Whether lecture and torch (or the definition) are "equal" in every respect measured, or "differs"."""
        return "equal" if all(measured.equal for measured in self.measure()) else "differs"


CHECKLIST = (
    Row(
        1, "data", "y = x³ - 4x² + 3x - 2 + N(0, 0.25)", "", "range of x and number of points are not given",
        c.data, "test_polynomials.py::test_a_noise_free_fit_finds_the_polynomial",
    ),
    Row(
        2, "fits of degree 1 to 9", "degree 9: (..., 186.1, ...)", "torch.linalg.lstsq", "-186.1: the minus was lost",
        c.fits, "test_polynomials.py::test_the_degree_nine_row_has_lost_a_minus",
    ),
    Row(
        3, "ridge", "R(w) = Σ wᵢ²; weight_decay of optimizers", "SGD(weight_decay=2α/N)", "true of SGD, not of AdamW",
        c.ridge_and_decay, "test_shrinkage.py::test_sgd_with_weight_decay_reaches_ridge",
    ),
    Row(
        4, "lasso", "R(w) = Σ |wᵢ|; loss += α Σ torch.norm(param, 1)", "softshrink (the proximal step)",
        "subgradient steps give no zeros; torch.norm is deprecated",
        c.lasso_and_subgradient, "test_shrinkage.py::test_only_the_proximal_form_gives_zeros",
    ),
    Row(
        5, "early stopping", "no support in PyTorch", "", "",
        c.early_stopping, "test_early_stopping.py::test_torch_has_no_early_stopping",
    ),
    Row(
        6, "dropout, classic and inverted", "r ⊙ x, then (1 - p) x; or r ⊙ x/(1 - p), then x",
        "torch.nn.Dropout (inverted)", "", c.dropout, "test_dropout.py::test_training_equals_prediction_in_expectation",
    ),
    Row(
        7, "dropout as an average", "equivalent to averaging 2ᴺ models", "",
        "exact for a linear output (arithmetic) and softmax (geometric mean), approximate beyond a nonlinearity",
        c.average_of_models, "test_dropout.py::test_where_the_average_of_all_models_is_exact",
    ),
    Row(
        8, "choice of p", "inputs 0.1 to 0.2, hidden layers 0.2 to 0.5; Dropout(p=0.5)", "torch.nn.Dropout()", "",
        c.choice_of_p, "test_dropout.py::test_the_printed_sample_is_inverted_dropout",
    ),
    Row(
        9, "pretraining, fine-tuning, transfer", "transfer = pretraining + fine-tuning",
        "requires_grad_(False), parameter groups", "", c.fine_tuning, "test_checklist.py::test_row_by_row",
    ),
    Row(
        10, "LeCun initialization", "U(±1/√m)", "torch.nn.Linear's default", "U(±√(3/m)), variance 1/m",
        c.lecun_variance, "test_initialization.py::test_the_printed_lecun_fades",
    ),
    Row(
        11, "Glorot initialization", "U(±√(6/(m + n))); variances about one", "init.xavier_uniform_",
        "about one if m = n", c.glorot_variance, "test_initialization.py::test_draws_are_torchs",
    ),
    Row(
        12, "Kaiming initialization", "N(0, 2/m)", "init.kaiming_normal_", "",
        c.kaiming_variance, "test_initialization.py::test_draws_are_torchs",
    ),
    Row(
        13, "symmetric activations", "sigmoid, tanh: Glorot", "init.calculate_gain", "the sigmoid is not odd about 0",
        c.symmetric_gains, "test_initialization.py::test_gains_by_independent_quadrature",
    ),
    Row(
        14, "other activations", "ReLU, ELU, LeakyReLU, SELU: Kaiming", "init.calculate_gain",
        "SELU: N(0, 1/m); ELU: N(0, 1.55/m)", c.asymmetric_gains,
        "test_initialization.py::test_selu_explodes_with_kaiming",
    ),
    Row(
        15, "z-score, three sigmas", "z = (x - μ)/σ, σ² = 1/N Σ (x - μ)²; 0.9973", "torch.std(correction=0)",
        "torch.std() divides by N - 1", c.standard_scores, "test_normalization.py::test_z_score_is_scikit_learns",
    ),
    Row(
        16, "batch normalization", "y = γ (x - μ)/√(σ² + ε) + β; identity for γ = √σ²", "torch.nn.BatchNorm1d",
        "γ = √(σ² + ε); prediction needs running statistics", c.batch_normalization,
        "test_normalization.py::test_batch_norm_is_torchs_in_training_and_prediction",
    ),
    Row(
        17, "its place", "before or after the nonlinearity", "the order of modules", "",
        c.place_of_normalization, "test_normalization.py::test_the_place_of_normalization_matters",
    ),
    Row(
        18, "layer normalization", "LayerNorm(normalized_shape, eps, elementwise_affine)", "torch.nn.LayerNorm", "",
        c.layer_normalization, "test_normalization.py::test_layer_norm_is_torchs",
    ),
    Row(
        19, "descent on y = x²", "dy/dx = 2x", "SGD", "",
        c.parabola_descent, "test_descent.py::test_descent_on_the_parabola_in_closed_form",
    ),
    Row(
        20, "descent on a surface", "y = -(cos² x₁ + cos² x₂)²", "autograd", "",
        c.surface_gradient, "test_surfaces.py::test_critical_points_of_the_cosine_surface",
    ),
    Row(
        21, "gradient descent, stop rules", "w - ηₖ ∇Q(w) until w hardly changes or k reaches a maximum",
        "SGD; no stop rule", "", c.stop_rules, "test_descent.py::test_stops_when_the_weights_hardly_change",
    ),
    Row(
        22, "constant rate", "ηₖ = const", "ConstantLR(factor=1)", "",
        c.constant_rate, "test_schedules.py::test_equal_torchs",
    ),
    Row(
        23, "linear decay", "ηₖ = η₀ (1 - k/K)", "LinearLR(1, 0, K), PolynomialLR(K, 1)", "",
        c.linear_rate, "test_schedules.py::test_equal_torchs",
    ),
    Row(
        24, "exponential decay", "ηₖ = η₀ e^{-k/K}; ExponentialLR(gamma=0.9)", "ExponentialLR(gamma=e^{-1/K})", "",
        c.exponential_rate, "test_schedules.py::test_equal_torchs",
    ),
    Row(
        25, "warmup", "learning rate warmup", "LinearLR in SequentialLR", "",
        c.warmup_rate, "test_schedules.py::test_warmup_equals_sequential_lr",
    ),
    Row(
        26, "figure of shapes", "constant, exp, str, sig, rep, trap, str+, sig+", "three of eight as one class",
        "thalweg.optim.schedules has all", c.shapes, "test_schedules.py::test_the_lectures_names",
    ),
    Row(
        27, "stochastic gradient", "∇Q ≈ 1/n Σ ∇L_{iⱼ}", "DataLoader(shuffle=True) + SGD", "",
        c.stochastic_gradient, "test_descent.py::test_minibatch_gradients_are_unbiased",
    ),
    Row(
        28, "momentum", "h = α h + ηₖ ∇Q, w - h", "SGD(momentum=α): b = α b + ∇Q, w - ηₖ b",
        "equal for constant η only", c.momentum_forms,
        "test_inertia.py::test_momentum_is_torchs_for_constant_rate_only",
    ),
    Row(
        29, "Nesterov", "w - α h - ηₖ ∇Q(w - α h)", "SGD(nesterov=True)", "torch stores w - α h, for constant η",
        c.nesterov_forms, "test_inertia.py::test_torch_stores_the_look_ahead_point",
    ),
    Row(
        30, "signature of SGD", "SGD(params, lr=<required>, momentum, weight_decay, nesterov)", "SGD",
        "lr=1e-3 by default, and more arguments", c.sgd_signature, "test_checklist.py::test_row_by_row",
    ),
    Row(
        31, "AdaGrad", "η g/√(G + ε); η = 0.01, ε = 10⁻¹⁰", "Adagrad: η g/(√G + ε)", "ε outside the root",
        c.adagrad_forms, "test_adaptive.py::test_the_place_of_epsilon",
    ),
    Row(
        32, "AdaGrad's slowdown", "G grows, steps shrink", "Adagrad", "",
        c.adagrad_slowdown, "test_adaptive.py::test_adagrad_slows_down_like_one_over_root_k",
    ),
    Row(
        33, "AdaDelta, idea 1", "G = ρ G + (1 - ρ) g²; ρ = 0.9", "RMSprop(alpha=0.9)", "ε outside the root",
        c.adadelta_first_idea, "test_adaptive.py::test_torch_form_equals_torch",
    ),
    Row(
        34, "AdaDelta, idea 2", "Δ = √E/√(G + ε) g", "Adadelta(lr=1, eps=1e-6)",
        "√(E + ε)/√(G + ε) g: as printed nothing moves", c.adadelta_forms,
        "test_adaptive.py::test_adadelta_as_printed_never_moves",
    ),
    Row(
        35, "RMSprop", "η g/√(G + ε); η = 0.01, α = 0.99", "RMSprop: η g/(√G + ε)", "ε outside the root",
        c.rmsprop_forms, "test_adaptive.py::test_torch_form_equals_torch",
    ),
    Row(
        36, "Adam", "η m/√(v + ε)", "Adam: η m̂/(√v̂ + ε)", "m̂ = m/(1 - β₁ᵏ), v̂ = v/(1 - β₂ᵏ), ε outside the root",
        c.adam_forms, "test_adaptive.py::test_printed_adam_is_too_fast_at_first",
    ),
    Row(
        37, "AdamW", "η (m/√(v + ε) + ω w); ω = 0.01", "AdamW: η (m̂/(√v̂ + ε) + ω w)", "as Adam; the decay is right",
        c.adamw_forms, "test_adaptive.py::test_torch_form_equals_torch",
    ),
)  # fmt: skip


def markdown_table(rows: Sequence[Row] = CHECKLIST) -> str:
    """The rows as a Markdown table, every number measured now.

    >>> print(markdown_table(CHECKLIST[11:12]).splitlines()[2])
    | 12 | Kaiming initialization | N(0, 2/m) | init.kaiming_normal_ |  | draws: **equal** | `test_init...` |
    """
    lines = ["| # | topic | lecture | torch | instead | measured | test |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        cells = [str(row.number), row.topic, row.lecture.replace("<", "\\<"), row.torch, row.right]
        cells += ["<br>".join(map(str, row.measure())), f"`{row.test}`"]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)
