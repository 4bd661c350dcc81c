"""Convolutions with kernels of 3 × 3 by the minimal filtering algorithm of Winograd: fewer products, more sums."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from graphopt.ir.graph import Dim, TensorType, Value
from graphopt.ir.weights import TensorRef, as_ref
from graphopt.passes.channel_maps import check_not_shared
from graphopt.pipeline.pass_ import RulePass
from graphopt.rewrite.contract import Rounding
from graphopt.rewrite.pattern import OpPattern, PatternOps, Var, any_, const, opt
from graphopt.rewrite.rule import Match, Rule, rule

if TYPE_CHECKING:
    from graphopt.rewrite.builder import Builder

OF_KERNEL = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
"""G of F(2, 3): A^T [(G g) ⊙ (B^T d)] are the two results of a filter g of three taps on four inputs d."""
POINTS = len(OF_KERNEL)


def winograd_conv(channels: int = 1, tiles: int = 1) -> Rule:
    """The rule for convolutions from and to at least so many channels, of at least so many tiles of 2 × 2."""

    class WinogradConv:
        """conv(x, w, b) with a kernel of 3 × 3 is F(2 × 2, 3 × 3): A^T [sum over channels of (G w G^T) ⊙ (B^T d B)] A,
        plus b, for each 4 × 4 piece d of the padded x that begins at an even row and column.

        Mathematics: B^T d = (d0 - d2, d1 + d2, d2 - d1, d1 - d3), A^T m = (m0 + m1 + m2, m1 - m2 - m3), and G as
        `OF_KERNEL` has it; so 16 products stand for 36. The sums over channels are 16 products of matrices, [tiles,
        in] by [in, out]. Channels are last between. An odd size gets a row more, which is cut off.
        Preconditions: two spatial axes of known sizes, stride, dilation and groups 1, float32 or float64, a constant
        weight, nobody else's. Contract: rounding, for finite inputs: two infinities may meet in a difference. Source:
        Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016, section 4.1.
        """

        def pattern(self, op: PatternOps, x: Var, w: Var, b: Var) -> OpPattern:
            fields = dict.fromkeys(("stride", "pads", "dilation", "groups"), any_)
            return op.conv(x, const(w), opt(b), **fields).named("conv")

        def check(self, m: Match) -> None:
            for name in ("stride", "dilation", "groups"):
                if not np.all(np.equal(m.conv.fields[name], 1)):
                    m.fail("{} {} is not 1", name, m.conv.fields[name])
            if m.w.shape[2:] != (3, 3):
                m.fail("the kernel is {}, not [3, 3]", list(m.w.shape[2:]))
            if m.w.dtype not in ("float32", "float64"):
                m.fail("sums before the products would lose digits of {}", m.w.dtype)
            if min(m.conv.fields["pads"]) < 0:
                m.fail("pads are {}", m.conv.fields["pads"])
            _sizes(m)
            check_not_shared(m)

        def pays(self, m: Match) -> None:
            out, into = m.w.shape[:2]
            if min(out, into) < channels:
                m.fail("{} channels in and {} out: fewer than {}", into, out, channels)
            batch, height, width = _sizes(m)
            number = -(-height // 2) * -(-width // 2) * (batch if isinstance(batch, int) else 1)
            if number < tiles:
                m.fail("{} tiles: fewer than {}", number, tiles)

        def rewrite(self, m: Match, build: Builder) -> Value:
            return _Writing(m, build).convolution()

    return rule(contract=Rounding(special=False))(WinogradConv)


def _sizes(m: Match) -> tuple[Dim, int, int]:
    """Batch, height and width of the result; refuses the match unless the last two are known and not 0."""
    rank, shape = m.rank(m.x), m.type(m.x).shape or ()
    if rank != 4 or shape[1] != m.w.shape[1]:
        m.fail("the input is {}", list(shape))
    pads = m.conv.fields["pads"]
    sizes = [
        size + begin + end - 2 if isinstance(size, int) else 0
        for size, begin, end in zip(shape[2:], pads[:2], pads[2:], strict=True)
    ]
    if min(sizes) < 1 or shape[0] == 0:
        m.fail("the sizes of the input are {}", list(shape))
    return shape[0], sizes[0], sizes[1]


class _Writing:
    """One convolution as it is written: values are [N, height, width, C], tile by tile [POINTS, tiles, C]."""

    def __init__(self, m: Match, build: Builder) -> None:
        self.m, self.build = m, build
        self.batch, self.height, self.width = _sizes(m)
        self.rows, self.columns = -(-self.height // 2), -(-self.width // 2)
        self.out, self.into = m.w.shape[:2]

    def convolution(self) -> Value:
        products = [self.product(tiles, column) for column, tiles in enumerate(self.inputs(self.padded()))]
        y = self.image([self.results(column) for column in self.after(products, self.tiles_type(POINTS, self.out))])
        if self.m.b is not None:
            y = self.build.add(y, self.m.b, like=self.type(self.batch, self.height, self.width, self.out))
        return self.build.transpose(y, perm=(0, 3, 1, 2), like=self.m.out)

    def padded(self) -> Value:
        """x with its channels last and all that the tiles, of which each reads 4 × 4, reach of what surrounds it."""
        shape = self.m.type(self.m.x).shape or ()
        x = self.build.transpose(self.m.x, perm=(0, 2, 3, 1), like=self.type(*(shape[i] for i in (0, 2, 3, 1))))
        top, left, bottom, right = self.m.conv.fields["pads"]
        below, beyond = bottom + 2 * self.rows - self.height, right + 2 * self.columns - self.width
        pads = (0, top, left, 0, 0, below, beyond, 0)
        return self.build.pad(x, pads=pads, like=self.type(self.batch, *self.reach, self.into)) if any(pads) else x

    @property
    def reach(self) -> tuple[int, int]:
        return 2 * self.rows + 2, 2 * self.columns + 2

    def inputs(self, x: Value) -> list[Value]:
        """B^T d B of every tile, as one value for each column of points."""
        of_rows = self.type(self.batch, self.rows, self.reach[1], self.into)
        rows = self.before(self.every_second(x, 1, self.rows, of_rows), of_rows)
        points = POINTS * self.batch if isinstance(self.batch, int) else None
        joined = self.build.concat(*rows, axis=0, like=self.type(points, self.rows, self.reach[1], self.into))
        of_columns = self.type(points, self.rows, self.columns, self.into)
        columns = self.before(self.every_second(joined, 2, self.columns, of_columns), of_columns)
        like = self.tiles_type(POINTS, self.into)
        return [self.build.reshape(c, shape=(POINTS, -1, self.into), like=like) for c in columns]

    def product(self, tiles: Value, column: int) -> Value:
        """The sums over channels of what `tiles` has at one column of points times G w G^T there."""
        taps = as_ref(np.kron(OF_KERNEL, OF_KERNEL[column]).T, self.m.w.dtype)
        weight: TensorRef = self.m.w.reshape(self.out * self.into, 9) @ taps
        weight = weight.reshape(self.out, self.into, POINTS).transpose(2, 1, 0)
        return self.build.matmul(tiles, weight, like=self.tiles_type(POINTS, self.out))

    def results(self, column: Value) -> tuple[Value, ...]:
        """The two rows of results of every tile at one of its columns."""
        like = self.tiles_type(1, self.out)
        return self.after([self.cut(column, 0, i, i + 1, 1, like) for i in range(POINTS)], like)

    def image(self, results: Sequence[Sequence[Value]]) -> Value:
        """The result of which every tile has 2 × 2, [column][row]."""
        build, tiled = self.build, (2, 2, self.batch, self.rows, self.columns, self.out)
        y = build.concat(*(column[r] for r in (0, 1) for column in results), axis=0, like=self.tiles_type(4, self.out))
        y = build.reshape(y, shape=(*tiled[:2], -1, *tiled[3:]), like=self.type(*tiled))
        order = (2, 3, 0, 4, 1, 5)
        y = build.transpose(y, perm=order, like=self.type(*(tiled[i] for i in order)))
        height, width = 2 * self.rows, 2 * self.columns
        like = self.type(self.batch, height, width, self.out)
        y = build.reshape(y, shape=(-1, height, width, self.out), like=like)
        if self.height < height:
            y = self.cut(y, 1, 0, self.height, 1, self.type(self.batch, self.height, width, self.out))
        if self.width < width:
            y = self.cut(y, 2, 0, self.width, 1, self.type(self.batch, self.height, self.width, self.out))
        return y

    # ---- the transforms of one axis ----------------------------------------------------------------------------

    def before(self, d: Sequence[Value], like: TensorType) -> tuple[Value, ...]:
        """B^T d."""
        add, sub = self.build.add, self.build.sub
        ends = sub(d[0], d[2], like=like), sub(d[1], d[3], like=like)
        return ends[0], add(d[1], d[2], like=like), sub(d[2], d[1], like=like), ends[1]

    def after(self, m: Sequence[Value], like: TensorType) -> tuple[Value, Value]:
        """A^T m."""
        add, sub = self.build.add, self.build.sub
        return add(add(m[0], m[1], like=like), m[2], like=like), sub(sub(m[1], m[2], like=like), m[3], like=like)

    # ---- pieces ------------------------------------------------------------------------------------------------

    def every_second(self, x: Value, axis: int, count: int, like: TensorType) -> list[Value]:
        """`count` elements along `axis`, every second from each of the first four on."""
        return [self.cut(x, axis, i, i + 2 * count - 1, 2, like) for i in range(POINTS)]

    def cut(self, x: Value, axis: int, start: int, end: int, step: int, like: TensorType) -> Value:
        return self.build.slice_(x, starts=(start,), ends=(end,), axes=(axis,), steps=(step,), like=like)

    @property
    def tiles(self) -> int | None:
        return self.batch * self.rows * self.columns if isinstance(self.batch, int) else None

    def tiles_type(self, points: int, channels: int) -> TensorType:
        return self.type(points, self.tiles, channels)

    def type(self, *shape: Dim) -> TensorType:
        return TensorType(self.m.w.dtype, shape)


@dataclass(frozen=True)
class Winograd(RulePass):
    """Computes convolutions with kernels of 3 × 3 by F(2 × 2, 3 × 3): 4 in place of 9 products a result and pair of
    channels, and sums around them that grow with the channels and not with their pairs.

    Mathematics: a tile of 2 × 2 results needs 4 × 4 inputs. In bases in which a filter of three taps is evaluated at
    the points 0, 1, -1 and infinity, convolution is multiplication, 16 products for 36. Everything is written with
    products of matrices, sums, slices and reshapes, so it runs wherever these do. A weight of 9 becomes one of 16
    numbers.

    It pays where the products weigh more than the sums, and where there are tiles enough to read a larger weight for:
    from 128 channels on, one core takes 0.66 to 0.97 of the time in onnxruntime, 0.68 to 1.00 in torch and 0.58 to 0.91
    on XLA (`python -m benchmarks.convolutions`). onnxruntime cuts and joins tiles on one
    thread, so that with two nothing is saved.

    Refused, with the reason: other kernels, strides, dilations and groups, unknown sizes, half precision, fewer
    channels or tiles than asked for, weights that others read or that are not constant. F(4 × 4, 3 × 3) is not
    offered: in float32 its error is 12 to 20 times that of the convolution, more than rounding may be.

    Contract: rounding, for finite inputs. Source: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks",
    CVPR 2016; Winograd, "Arithmetic Complexity of Computations", 1980.
    """

    name: ClassVar[str] = "winograd"
    contract: ClassVar[str] = (
        "Rounding, for finite inputs: at most 8 times the rounding error of the original, per application"
    )

    channels: int = 128
    "Least number of channels, of the input and of the result, from which a convolution is taken."
    tiles: int = 32
    "Least number of tiles of 2 × 2 results in a batch; a batch of unknown size counts as one image."

    def __post_init__(self) -> None:
        for name in ("channels", "tiles"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")

    def rules(self) -> Sequence[Any]:
        return (winograd_conv(self.channels, self.tiles),)


RULES = (winograd_conv(),)
"""The rule, for convolutions of every size."""
