import copy
import io

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from thalweg.lab.data.batches import Batches


def make(n: int, batch_size: int, seed: int = 0, shuffle: bool = True) -> Batches:
    inputs = torch.arange(n, dtype=torch.float32)[:, None] + 0.5
    generator = torch.Generator().manual_seed(seed)
    return Batches(inputs, torch.arange(n), batch_size=batch_size, generator=generator, shuffle=shuffle)


def epoch(batches: Batches) -> list[torch.Tensor]:
    return [targets for _, targets in batches]


sizes = {"n": st.integers(1, 40), "batch_size": st.integers(1, 45), "seed": st.integers(0, 2**31)}


@given(**sizes, shuffle=st.booleans())
def test_every_epoch_gives_every_sample_once_with_its_own_target(n, batch_size, seed, shuffle):
    batches = make(n, batch_size, seed, shuffle)
    for _ in range(3):
        seen = []
        for k, (inputs, targets) in enumerate(batches):
            assert batches.position == k + 1
            assert torch.equal(inputs[:, 0], targets + 0.5)
            assert len(targets) == min(batch_size, n - k * batch_size)  # the last, smaller one is kept
            seen.append(targets)
        assert len(seen) == len(batches)
        assert batches.position == 0
        assert sorted(torch.cat(seen).tolist()) == list(range(n))


def test_the_order_is_randperm_of_the_generator_and_changes_by_epoch():
    batches, generator = make(50, 8, seed=3), torch.Generator().manual_seed(3)
    orders = [torch.cat(epoch(batches)) for _ in range(3)]
    for order in orders:
        assert torch.equal(order, torch.randperm(50, generator=generator))
    assert not torch.equal(orders[0], orders[1])


@given(**sizes, shuffle=st.booleans(), epochs=st.integers(0, 2), data=st.data())
def test_resuming_anywhere_continues_bit_for_bit(n, batch_size, seed, shuffle, epochs, data):
    batches = make(n, batch_size, seed, shuffle)
    for _ in range(epochs):
        epoch(batches)
    position = data.draw(st.integers(0, len(batches)))
    steps = iter(batches)
    for _ in range(position):
        next(steps)
    file = io.BytesIO()
    torch.save(batches.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    assert state["position"] == position
    assert state["generator"].dtype == torch.uint8

    resumed = make(n, batch_size, seed + 1, shuffle)  # another seed: all must come from the state
    resumed.load_state_dict(state)
    assert resumed.position == position
    again = resumed.state_dict()
    assert again["position"] == position
    assert torch.equal(again["generator"], state["generator"])

    rest = [targets for _, targets in steps]
    for _ in range(2):
        rest += epoch(batches)
    continued = [targets for _ in range(3) for targets in epoch(resumed)]
    assert len(continued) == len(rest)
    assert all(torch.equal(a, b) for a, b in zip(continued, rest, strict=True))
    assert torch.equal(resumed._generator.get_state(), batches._generator.get_state())


def test_a_broken_loop_continues_where_it_stopped():
    whole, broken = torch.cat(epoch(make(10, 3))), make(10, 3)
    seen = []
    for _, targets in broken:
        seen.append(targets)
        if broken.position == 2:
            break
    assert broken.position == 2
    assert torch.equal(torch.cat(seen + epoch(broken)), whole)


def test_a_state_taken_after_the_last_batch_has_nothing_left_of_its_epoch():
    batches, resumed = make(10, 5), make(10, 5, seed=1)
    for _ in batches:
        state = copy.deepcopy(batches.state_dict())
    assert state["position"] == len(batches)
    resumed.load_state_dict(state)
    assert epoch(resumed) == []
    assert torch.equal(torch.cat(epoch(resumed)), torch.cat(epoch(batches)))


def test_unshuffled_batches_keep_the_order_and_leave_the_generator_alone():
    batches = make(7, 3, shuffle=False)
    before = batches.state_dict()["generator"].clone()
    assert [targets.tolist() for targets in epoch(batches)] == [[0, 1, 2], [3, 4, 5], [6]]
    assert torch.equal(batches.state_dict()["generator"], before)


def test_orders_do_not_depend_on_the_global_generator_nor_touch_it():
    first, second = make(20, 4), make(20, 4)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    order = torch.cat(epoch(first))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(torch.cat(epoch(second)), order)


@pytest.mark.parametrize("shuffle", [True, False])
def test_an_autoencoder_gets_one_batch_twice(shuffle):
    images = torch.rand(6, 2)
    for inputs, targets in Batches(images, images, batch_size=4, generator=torch.Generator(), shuffle=shuffle):
        assert targets is inputs


def test_shuffled_batches_are_copies():
    batches = make(6, 4)
    for inputs, _ in batches:
        inputs.zero_()
    assert batches.inputs.min() == 0.5


@pytest.mark.parametrize(
    ("n", "m", "batch_size", "said"),
    [
        (3, 3, 0, "batch_size=0"),
        (3, 3, -1, "batch_size=-1"),
        (3, 2, 1, "3 inputs and 2 targets"),
        (0, 0, 1, "at least one sample"),
    ],
)
def test_bad_arguments_are_refused(n, m, batch_size, said):
    with pytest.raises(ValueError, match=said):
        Batches(torch.zeros(n, 1), torch.zeros(m), batch_size=batch_size, generator=torch.Generator())


def test_two_devices_are_refused():
    with pytest.raises(ValueError, match="inputs on meta and targets on cpu"):
        Batches(torch.zeros(2, device="meta"), torch.zeros(2), batch_size=1, generator=torch.Generator())


@pytest.mark.parametrize("position", [-1, 4])
def test_a_state_of_other_batches_is_refused_and_changes_nothing(position):
    batches = make(6, 2)
    before = batches.state_dict()["generator"].clone()
    with pytest.raises(ValueError, match="0 to 3 expected"):
        batches.load_state_dict({"generator": torch.Generator().manual_seed(9).get_state(), "position": position})
    assert torch.equal(batches.state_dict()["generator"], before)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_batches_on_a_gpu_come_in_the_order_of_the_cpu():
    inputs = torch.arange(20, device="cuda")
    with pytest.raises(ValueError, match="CPU generator expected"):
        Batches(inputs, inputs, batch_size=3, generator=torch.Generator("cuda"))
    batches = Batches(inputs, inputs, batch_size=3, generator=torch.Generator().manual_seed(0))
    order = torch.cat(epoch(batches))
    assert order.device.type == "cuda"
    assert torch.equal(order.cpu(), torch.cat(epoch(make(20, 3))))
