"""Modules that tests of both ways to XLA lower."""

import torch


class Function(torch.nn.Module):
    """A function of tensors as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *args):
        return self.function(*args)


class Counter(torch.nn.Module):
    """Counts its calls in a buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x):
        self.count.add_(1)
        return x + self.count


def check_numbers_and_texts_stay_in_their_places(lowered):
    """`lowered(module, x)` makes what is called like the module."""
    module = Function(lambda x: {"first": 5, "sum": x + 1, "none": None, "text": "a", "product": (x * 2, 1.5, True)})
    x = torch.arange(3.0)
    result = lowered(module, x)(x)
    assert torch.equal(result.pop("sum"), x + 1)
    product, *others = result.pop("product")
    assert torch.equal(product, x * 2) and others == [1.5, True]
    assert result == {"first": 5, "none": None, "text": "a"}
