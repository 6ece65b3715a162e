"""Batched augmentation against the same done image by image, and its place in the batches' order."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import pad

from thalweg.lab.data.augmentation import augment
from thalweg.lab.data.batches import Batches


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(seed=st.integers(0, 2**31), crop=st.integers(0, 4), flip=st.booleans(), height=st.integers(3, 6))
def test_every_image_is_a_window_of_its_padded_self_flipped_or_not(seed, crop, flip, height):
    images = torch.rand(5, 2, height, 4, generator=draw(seed)) + 0.1
    for image, changed in zip(images, augment(crop=crop, flip=flip)(images, draw(seed + 1)), strict=True):
        wide = pad(image, (crop,) * 4)
        windows = [wide[:, i : i + height, j : j + 4] for i in range(2 * crop + 1) for j in range(2 * crop + 1)]
        if flip:
            windows += [window.flip(2) for window in windows]
        assert any(torch.equal(changed, window) for window in windows)


def test_half_of_the_images_are_flipped_and_shifts_are_uniform():
    images = torch.arange(9.0).view(1, 1, 3, 3).expand(4000, 1, 3, 3) + 1
    flipped = augment(crop=0)(images, draw())[:, 0, 0, 0] == 3
    assert abs(flipped.double().mean().item() - 0.5) < 0.03  # four standard errors of 4000 coins
    centre = augment(crop=1, flip=False)(images, draw())[:, 0, 1, 1]
    counts = torch.bincount(centre.long(), minlength=10)[1:]
    assert (counts / 4000 - 1 / 9).abs().max() < 0.02  # four standard errors


def test_rotations_keep_a_disc_and_are_as_long_as_asked():
    """The mean angle of a spot far from the centre is 0, its largest the one given."""
    grid = torch.linspace(-1, 1, 65)
    spot = torch.exp(-((grid[None, :] - 0.6) ** 2 + grid[:, None] ** 2) / 0.01).expand(2000, 1, 65, 65)
    turned = augment(crop=0, flip=False, rotation=30.0)(spot, draw())[:, 0]
    x, y = ((turned * axis).sum((1, 2)) / turned.sum((1, 2)) for axis in (grid[None, :], grid[:, None]))
    angles = torch.atan2(y, x).rad2deg()
    assert torch.allclose(x.square() + y.square(), torch.tensor(0.36), atol=0.01)  # interpolation of a narrow spot
    assert angles.abs().max() < 30.1
    assert angles.abs().max() > 29
    assert abs(angles.mean()) < 1.6  # four standard errors of a uniform angle


@pytest.mark.parametrize("size", [(33, 65), (65, 33)])
def test_rotations_of_oblong_images_do_not_shear(size):
    """A spot keeps its distance from the centre in pixels, whatever the sides are."""
    rows, columns = (torch.arange(n) - (n - 1) / 2 for n in size)
    spot = torch.exp(-((rows[:, None] - 6) ** 2 + (columns[None, :] - 8) ** 2) / 4).expand(200, 1, *size)
    turned = augment(crop=0, flip=False, rotation=180.0)(spot, draw())[:, 0]
    y, x = ((turned * axis).sum((1, 2)) / turned.sum((1, 2)) for axis in (rows[:, None], columns[None, :]))
    angles = torch.atan2(y, x)
    assert torch.allclose(x.square() + y.square(), torch.tensor(100.0), atol=1.0)  # interpolation of a narrow spot
    assert angles.max() > 3
    assert angles.min() < -3


def test_a_rotation_by_nothing_changes_nothing_and_dtype_and_batch_stay():
    images = torch.rand(3, 2, 5, 7, generator=draw()).double()
    torch.testing.assert_close(augment(crop=0, flip=False, rotation=1e-9)(images, draw()), images, rtol=0, atol=1e-9)
    assert augment(rotation=15.0)(images.bfloat16(), draw()).dtype == torch.bfloat16
    assert augment()(images[:0], draw()).shape == (0, 2, 5, 7)
    assert augment()((255 * images).to(torch.uint8), draw()).dtype == torch.uint8


def test_errors():
    for options in ({"crop": -1}, {"rotation": -5.0}, {"rotation": 181.0}):
        with pytest.raises(ValueError, match="crop >= 0 and 0 <= rotation <= 180 expected"):
            augment(**options)
    with pytest.raises(ValueError, match=r"images \(N, C, H, W\) expected, got torch.float32 of shape \(3, 8, 8\)"):
        augment()(torch.rand(3, 8, 8), draw())
    with pytest.raises(ValueError, match="floating-point images .* expected, got torch.uint8"):
        augment(rotation=15.0)(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), draw())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.accelerator.is_available(), reason="needs an accelerator")
def test_on_an_accelerator():
    device = torch.accelerator.current_accelerator()
    images = torch.rand(16, 3, 8, 8, generator=draw())
    there = augment(rotation=15.0)(images.to(device), draw())
    assert there.device.type == device.type
    # the same draws; interpolation in float32
    torch.testing.assert_close(there.cpu(), augment(rotation=15.0)(images, draw()), rtol=0, atol=1e-5)
    own = augment(rotation=15.0)(images.to(device), torch.Generator(device).manual_seed(0))
    assert own.shape == images.shape


def test_augmented_batches_are_the_same_after_a_resume_and_differ_between_epochs():
    images = torch.rand(10, 1, 6, 6)

    def make() -> Batches:
        return Batches(images, torch.arange(10), batch_size=4, generator=draw(), augment=augment())

    whole = make()
    first, second = [x for x, _ in whole], [x for x, _ in whole]
    assert not torch.equal(first[0].sum(), second[0].sum())
    torn = make()
    stream = iter(torn)
    next(stream)
    state = torn.state_dict()
    resumed = make()
    resumed.load_state_dict(state)
    rest = [x for x, _ in resumed] + [x for x, _ in resumed]
    assert all(torch.equal(a, b) for a, b in zip(rest, first[1:] + second, strict=True))


def test_augmentation_of_a_fixed_order_is_refused():
    with pytest.raises(ValueError, match="shuffle"):
        Batches(
            torch.rand(2, 1, 2, 2), torch.arange(2), batch_size=1, generator=draw(), shuffle=False, augment=augment()
        )
