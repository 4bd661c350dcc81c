"""What a proof says, in words that promise no more than it shows."""

from __future__ import annotations

from collections.abc import Sequence

from graphopt.rewrite.contract import Proof

WEIGHTS = {
    "all": "and of the weights",
    "large": "and of the weights of more than 16 elements (smaller ones were taken as they are)",
    "none": "with the weights as they are",
}
LEFT_OUT = (
    "It says nothing of rounding, overflow, NaN, infinities, -0.0, integers that wrap around "
    "or the kernels of runtimes."
)


def claim(proof: Proof, shapes: Sequence[Sequence[int]] = ()) -> str:
    """One application's proof in words.

    Args:
        shapes: of the inputs at which it was made.
    """
    if not proof.holds:
        return f"{proof.level}: {proof.reason}"
    if proof.log2_error is None:
        return "Both sides are the same expression of the same weights."
    at = f", at shapes {', '.join('x'.join(map(str, s)) or 'scalar' for s in shapes)}" if shapes else ""
    smaller = ", which are smaller than the model's" if proof.reduced else ""
    said = [
        "Equal as expressions of real numbers for every value of the real inputs "
        f"{WEIGHTS[proof.weights]}{at}{smaller}.",
        f"The chance that a wrong rewrite passes is at most 2^{proof.log2_error:.0f}.",
    ]
    if proof.functions:
        said.append(f"Treated as unknown functions: {', '.join(proof.functions)}.")
    if proof.laws:
        said.append(f"Law used: {', '.join(proof.laws)}; that it is sound over finite fields is conjectured.")
    if proof.sampled:
        said.append(f"Drawn, not left open: {', '.join(proof.sampled)}.")
    said.append(
        "Assumes that denominators are not zero, that arguments of roots and logarithms lie in their domain, and reads "
        "infinities in constants as unknown numbers."
    )
    return " ".join([*said, LEFT_OUT])
