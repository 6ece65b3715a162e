"""The closed forms against the printed formulas, term by term, and their corrections."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from thalweg.curvature.closed_forms import (
    LayerSize,
    Pool,
    closed_form,
    fully_connected,
    lemma_2,
    lemma_3,
    lemma_4,
    theorem_1,
    theorem_2,
)

small = st.integers(1, 5)


@given(C=small, k=small, m=small, n=small, L=st.integers(0, 4), w2=st.floats(1e-3, 10), x2=st.floats(0.1, 10))
def test_theorem_2_and_lemma_4_as_the_seed_prints_them(C, k, m, n, L, w2, x2):
    printed = math.sqrt(2) * x2 * C**2 * k**2 * m * n * (L + 1) * (C**2 * k**2 * w2 * m * n) ** L
    assert theorem_2(x2, C=C, w2=w2, k=k, m=m, n=n, L=L) == pytest.approx(printed)
    P, h, v2 = 2, 3, 0.25
    ratio = h**2 * v2 / (k**2 * C**2 * w2 * m * n)
    head = printed / (L + 1) * (h**2 * v2) ** P
    sizes = {"C": C, "w2": w2, "k": k, "m": m, "n": n, "L": L, "P": P, "h": h, "v2": v2}
    assert lemma_4(x2, **sizes) == pytest.approx(head * (L + 1 + P * ratio))
    assert lemma_4(x2, corrected=True, **sizes) == pytest.approx(head * (L + 1 + P / ratio))


def test_theorem_1_as_the_seed_prints_it():
    assert theorem_1(2.0, C=3, w2=0.5, k=3, d=7, L=2) == pytest.approx(
        math.sqrt(2) * 2 * 49 * 3 * (9 * 0.5 * 3 * 7) ** 2
    )


def test_lemma_3_divides_for_every_pooling():
    sizes = {"C": 2, "w2": 0.5, "k": 3, "m": 8, "n": 8, "L": 3}
    pools = [Pool(1, 2, True), Pool(3, 2, False)]
    ratio = theorem_2(1.0, **sizes) / lemma_3(1.0, pools=pools, **sizes)
    assert ratio == pytest.approx(2 ** (2 * (3 - 1 + 2)) * 2 ** (2 * (3 - 3 + 2)))
    ratio = theorem_2(1.0, **sizes) / lemma_3(1.0, pools=pools, corrected=True, **sizes)
    assert ratio == pytest.approx(2 ** (2 * (3 - 1 + 2)) * 2 ** (2 * (3 - 3 + 1)))


def test_predecessor_s_theorem():
    assert fully_connected(3.0, t2=4.0, L=2) == pytest.approx(math.sqrt(2) * (2 * 3 * 16 + 4 * (16 - 1) / 3))


def test_corrected_lemma_4_at_a_head_of_zeros():
    sizes = {"C": 1, "w2": 1.0, "k": 1, "m": 1, "n": 1, "L": 0, "P": 1, "h": 1, "v2": 0.0}
    assert lemma_4(1.0, **sizes) == 0.0  # and H_O is not: z = v w x has dz/dv = w x
    assert lemma_4(1.0, corrected=True, **sizes) == pytest.approx(math.sqrt(2))


@given(C=small, taps=small, positions=small, L=st.integers(0, 3), w2=st.floats(1e-3, 10))
def test_closed_form_of_equal_layers(C, taps, positions, L, w2):
    kappa2 = min(taps, positions)
    expected = 0.5 * kappa2 * (L + 1) * (C**2 * taps * w2 * kappa2) ** L
    assert closed_form(1.0, [LayerSize(C, C, taps, positions, w2)] * (L + 1)) == pytest.approx(expected)


@given(C=small, k=st.integers(1, 3), side=st.integers(3, 6), L=st.integers(0, 3), w2=st.floats(1e-3, 10))
def test_closed_form_is_below_the_theorem(C, k, side, L, w2):
    tight = closed_form(1.0, [LayerSize(C, C, k**2, side**2, w2)] * (L + 1))
    assert tight <= theorem_2(1.0, C=C, w2=w2, k=k, m=side, n=side, L=L) / (2 * math.sqrt(2)) * (1 + 1e-12)


def test_tensors_of_inputs():
    x2 = torch.tensor([1.0, 4.0], dtype=torch.float64)
    for bound in (lemma_2(x2, q2=1.0, t2=2.0, L=1), closed_form(x2, [LayerSize(1, 1, 1, 1, 2.0)] * 2)):
        assert bound.shape == (2,)
        assert bound[1] == 4 * bound[0]
