"""Small networks of every kind, their data, and the dense derivatives of their loss, made from the definition."""

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy, mse_loss, nll_loss

N, CLASSES = 7, 3


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=draw(seed), dtype=torch.float64)


class Residual(nn.Module):
    """Pre-activation block with a 1x1 shortcut, means by method and function, normalization in evaluation mode."""

    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(2), nn.BatchNorm2d(3, affine=False)
        self.conv1, self.conv2 = nn.Conv2d(2, 3, 3, stride=2, padding=1, bias=False), nn.Conv2d(3, 3, 3, padding=1)
        self.shortcut, self.last = nn.Conv2d(2, 3, 1, stride=2), nn.Linear(3, CLASSES)

    def forward(self, x):
        h = torch.relu(self.norm1(x))
        x = self.conv2(torch.tanh(self.norm2(self.conv1(h)))) + self.shortcut(h)
        return self.last(nn.functional.relu(x).mean((2, 3)))


class Tied(nn.Module):
    """One matrix in two layers, and the head is its transpose."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(5, 5)
        self.first, self.last = nn.Linear(5, 5), nn.Linear(5, CLASSES)
        self.first.weight = self.inner.weight

    def forward(self, x):
        return self.last(torch.sigmoid(self.inner(torch.sin(self.first(x))))) + self.last(x)


class Arithmetic(nn.Module):
    """Products, quotients, constants, slices and concatenations of activations; a parameter on its own."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.last = nn.Linear(5, 4), nn.Linear(5, 4), nn.Linear(8, CLASSES)
        self.scale = nn.Parameter(torch.ones(4))
        self.register_buffer("offset", torch.linspace(-1, 1, 4))

    def forward(self, x):
        a, b = self.a(x), self.b(x)
        gate = torch.sigmoid(a) * b * self.scale + self.offset
        ratio = (2.0 * a[:, :2] - 1.0) / (1.0 + b[:, 2:].square())
        both = torch.cat([gate, ratio / 3.0, a[:, 2:] * a[:, 2:]], 1)
        return self.last(both) - x.mean(1, keepdim=True)


class Attention(nn.Module):
    """Softmax attention written out, layer norm, an embedding: operations without a rule among those with one."""

    def __init__(self):
        super().__init__()
        self.embed, self.q, self.k = nn.Embedding(6, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.norm, self.last = nn.LayerNorm(4), nn.Linear(4, CLASSES)

    def forward(self, tokens):
        h = self.embed(tokens)
        weights = torch.softmax(self.q(h) @ self.k(h).transpose(1, 2) / 2.0, -1)
        return self.last(self.norm(weights @ h + h).mean(1))


class Recurrent(nn.Module):
    """A fused operation of many steps, which returns a tuple."""

    def __init__(self):
        super().__init__()
        self.embed, self.lstm, self.last = nn.Embedding(6, 4), nn.LSTM(4, 3, batch_first=True), nn.Linear(3, CLASSES)

    def forward(self, tokens):
        return self.last(self.lstm(self.embed(tokens))[0][:, -1])


class Transformer(nn.Module):
    """An encoder layer of torch, whose fused attention has no second derivative."""

    def __init__(self):
        super().__init__()
        self.embed, self.last = nn.Embedding(6, 4), nn.Linear(4, CLASSES)
        self.layer = nn.TransformerEncoderLayer(4, 2, 6, batch_first=True)

    def forward(self, tokens):
        return self.last(self.layer(self.embed(tokens)).mean(1))


class Branching(nn.Module):
    """Control flow that depends on data: no trace follows it."""

    def __init__(self):
        super().__init__()
        self.layer, self.last = nn.Linear(5, 4), nn.Linear(4, CLASSES)

    def forward(self, x):
        h = self.layer(x)
        return self.last(torch.tanh(h) if h.sum() > -1e9 else h)


class InPlace(nn.Module):
    """Activations changed in place under another name, which a trace misses."""

    def __init__(self):
        super().__init__()
        self.layer, self.last = nn.Linear(5, 4), nn.Linear(4, CLASSES)

    def forward(self, x):
        h = self.layer(x)
        h.mul_(2.0)
        return self.last(torch.tanh(h))


def conv1d():
    return nn.Sequential(
        nn.Conv1d(2, 3, 3, padding=1), nn.ReLU(), nn.MaxPool1d(3, 2), nn.Conv1d(3, 4, 2, dilation=2), nn.BatchNorm1d(4),
        nn.SiLU(), nn.AvgPool1d(2), nn.AdaptiveMaxPool1d(2), nn.Flatten(), nn.Linear(8, CLASSES),
    )  # fmt: skip


def conv2d():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular"), nn.ReLU(inplace=True), nn.MaxPool2d(2, stride=1),
        nn.Conv2d(4, 4, 3, stride=2, groups=2, bias=False), nn.BatchNorm2d(4), nn.LeakyReLU(inplace=True),
        nn.ConvTranspose2d(4, 2, 2, stride=2), nn.GELU(), nn.AdaptiveAvgPool2d(2), nn.Dropout(0.5),
        nn.Conv2d(2, 3, 3, padding="same"), nn.Flatten(), nn.Linear(12, CLASSES),
    )  # fmt: skip


def group_norm():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.ELU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(36, 3)
    )


def smooth_mlp():
    return nn.Sequential(
        nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 5), nn.Softplus(), nn.Linear(5, 4), nn.Mish(), nn.Linear(4, CLASSES)
    )  # fmt: skip


def relu_mlp():
    return nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, CLASSES))


def log_softmax():
    return nn.Sequential(nn.Linear(5, CLASSES), nn.LogSoftmax(1))


class Skew(nn.Module):
    def forward(self, w):
        return w.triu() - w.triu().T


def parametrized():
    layer = nn.utils.parametrize.register_parametrization(nn.Linear(5, 5), "weight", Skew())
    return nn.Sequential(layer, nn.Tanh(), nn.Linear(5, CLASSES))


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, CLASSES)).double()


def pairs(n=N):
    return normal(n, 5), torch.randint(CLASSES, (n,), generator=draw())


def weighted_entropy(z, y):
    """A mean over samples weighted by class: no mean over samples."""
    return cross_entropy(z, y, weight=torch.tensor([1.0, 2.0, 5.0], dtype=z.dtype))


def images(size=8):
    return normal(N, 2, size, size, seed=1)


# network, input, loss, whether the trace is followed
NETWORKS = {
    "MLP": (relu_mlp, lambda: normal(N, 5), cross_entropy, True),
    "MLP, squared error": (smooth_mlp, lambda: normal(N, 5), mse_loss, True),
    "tokens through linear layers": (smooth_mlp, lambda: normal(N, 4, 5), mse_loss, True),
    "1-D convolutions": (conv1d, lambda: normal(N, 2, 18), cross_entropy, True),
    "2-D convolutions": (conv2d, images, cross_entropy, True),
    "residual": (Residual, images, cross_entropy, True),
    "weight sharing": (Tied, lambda: normal(N, 5), cross_entropy, True),
    "arithmetic": (Arithmetic, lambda: normal(N, 5), mse_loss, True),
    "attention": (Attention, lambda: torch.randint(6, (N, 4), generator=draw()), cross_entropy, True),
    "LSTM": (Recurrent, lambda: torch.randint(6, (N, 4), generator=draw()), cross_entropy, False),
    "transformer": (Transformer, lambda: torch.randint(6, (N, 4), generator=draw()), cross_entropy, True),
    "group norm": (group_norm, images, mse_loss, True),
    "log-probabilities": (log_softmax, lambda: normal(N, 5), nll_loss, True),
    "weights computed from others": (parametrized, lambda: normal(N, 5), cross_entropy, True),
    "not traceable": (Branching, lambda: normal(N, 5), cross_entropy, False),
    "in place": (InPlace, lambda: normal(N, 5), mse_loss, False),
    "loss that is no sample mean": (smooth_mlp, lambda: normal(N, 5), weighted_entropy, True),
}  # fmt: skip


def build(case):
    make, x, loss_fn, followed = NETWORKS[case]
    torch.manual_seed(0)  # layers draw their weights from the global state
    model = make().double().eval()
    with torch.no_grad():
        for norm in model.modules():
            if isinstance(norm, nn.modules.batchnorm._BatchNorm):
                norm.running_mean.normal_(generator=draw()), norm.running_var.uniform_(0.5, 2.0, generator=draw())
                if norm.affine:
                    norm.weight.uniform_(0.5, 2.0, generator=draw()), norm.bias.normal_(generator=draw())
        x = x()
        z = model(x)
    target = torch.randint(CLASSES, (N,), generator=draw()) if loss_fn is not mse_loss else normal(*z.shape, seed=5)
    return model, loss_fn, x, target, followed


def dense(model, loss_fn, x, y, names=None):
    """Gradient, H and H_O row by row by double backward, whose derivatives autograd makes from the definition.

    Not torch.func.hessian: in torch 2.13 neither forward nor reverse over reverse is symmetric for the gain of a layer
    norm over (n, tokens, d), nor for weight norm; finite differences agree with the double backward.
    """
    params = [p for name, p in model.named_parameters() if names is None or name in names]

    def rows(vector, leaves):
        parts = [
            torch.autograd.grad(e, leaves, retain_graph=True, allow_unused=True) for e in vector if e.requires_grad
        ]
        return torch.stack([flat(part, leaves) for part in parts])

    with sdpa_kernel(SDPBackend.MATH):  # fused attention has no double backward
        z = model(x)
    gradient = flat(torch.autograd.grad(loss_fn(z, y), params, create_graph=True), params)
    J = rows(z.reshape(-1), params)
    leaf = z.detach().requires_grad_()
    A = rows(torch.autograd.grad(loss_fn(leaf, y), leaf, create_graph=True)[0].reshape(-1), [leaf])
    return gradient.detach(), rows(gradient, params), J.mT @ A @ J


def flat(parts, like):
    return torch.cat([(torch.zeros_like(p) if a is None else a).reshape(-1) for a, p in zip(parts, like, strict=True)])


def close(actual, expected, tolerance=1e-10):
    """Relative to the largest entry; 1e-10 is the promise for products in float64."""
    actual, expected = actual.detach(), expected.detach()
    assert float((actual - expected).abs().max()) <= tolerance * max(1.0, float(expected.abs().max()))
