"""Adam and AdamW in one fused pass a tensor; the rest is mlx.optimizers.

Arguments, defaults and state trees are those of :mod:`mlx.optimizers`: states and
checkpoints go either way. All tensors of a step form one node of the graph, which
waits for every gradient: if a device failed on the way, nothing is written.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
from mlx import optimizers

from mlx_ane import _adam, _ext

__all__ = ["Adam", "AdamW"]

Schedule = Callable[[mx.array], mx.array]

#: Names of the dtypes that moments can have.
STATE_DTYPES = ("float32", "float16", "bfloat16")
#: What `state_dtype` takes, with its dtype.
_STATE_DTYPES: dict[object, mx.Dtype | None] = {None: None} | {
    key: getattr(mx, name) for name in STATE_DTYPES for key in (name, getattr(mx, name))
}


class _Fused(optimizers.Adam):
    """The fused update of both classes; Adam has no weight_decay."""

    weight_decay: float = 0.0
    state_dtype: mx.Dtype | None
    stochastic_rounding: bool
    max_norm: float | None

    def _set_extras(
        self,
        state_dtype: mx.Dtype | str | None,
        stochastic_rounding: bool,
        max_norm: float | None,
    ) -> None:
        name = type(self).__name__
        if state_dtype not in _STATE_DTYPES:
            raise ValueError(
                f"[mlx_ane.optimizers.{name}] state_dtype is {state_dtype!r}, need "
                f"mx.float32, mx.float16, mx.bfloat16, one of their names, or None."
            )
        if max_norm is not None and not max_norm > 0.0:
            raise ValueError(
                f"[mlx_ane.optimizers.{name}] max_norm is {max_norm}, need a "
                f"positive number or None."
            )
        self.state_dtype = _STATE_DTYPES[state_dtype]
        self.stochastic_rounding = bool(stochastic_rounding)
        self.max_norm = max_norm

    def init_single(self, parameter: mx.array, state: dict[str, Any]) -> None:
        """Zeros of the parameter's shape for both moments."""
        if not mx.issubdtype(parameter.dtype, mx.floating):
            raise ValueError(
                f"[mlx_ane.optimizers.{type(self).__name__}] a parameter of shape "
                f"{tuple(parameter.shape)} is {parameter.dtype}, need a float type; "
                f"freeze it."
            )
        dtype = self.state_dtype or parameter.dtype
        state["m"] = mx.zeros(parameter.shape, dtype)
        state["v"] = mx.zeros(parameter.shape, dtype)

    def apply_gradients(self, gradients: Any, parameters: Any) -> Any:
        """The updated parameters, in the tree of the gradients.

        Args:
            gradients (dict): Tree of gradients.
            parameters (dict): Tree of parameters; may hold more than ``gradients``.

        Returns:
            dict: Tree of new parameters; moments and step are in :attr:`state`.
        """
        if not self._initialized:
            self.init(gradients)
        for name, scheduler in self._schedulers.items():
            self.state[name] = scheduler(self.step)
        self.state["step"] = self.step + 1
        leaves = _Leaves()
        tree = leaves.collect(gradients, parameters, self.state)
        updated = self._update(leaves.gradients, leaves.parameters, leaves.states)
        return leaves.fill(tree, updated)

    def apply_single(
        self, gradient: mx.array, parameter: mx.array, state: dict[str, Any]
    ) -> mx.array:
        """The updated parameter; moments are replaced in ``state``."""
        if self.max_norm is not None:
            raise ValueError(
                f"[mlx_ane.optimizers.{type(self).__name__}] max_norm needs all "
                f"gradients at once; call apply_gradients or update."
            )
        return self._update([gradient], [parameter], [state])[0]

    def _update(
        self,
        gradients: list[mx.array],
        parameters: list[mx.array],
        states: list[dict[str, Any]],
    ) -> list[mx.array]:
        if not gradients:
            return []
        _adam.choose()
        updated, m, v = _ext.adam(
            parameters,
            gradients,
            [state["m"] for state in states],
            [state["v"] for state in states],
            self._scalars(),
            betas=tuple(self.betas),
            eps=self.eps,
            weight_decay=self.weight_decay,
            max_norm=self.max_norm,
            stochastic=self.stochastic_rounding,
        )
        for i, state in enumerate(states):
            state["m"], state["v"] = m[i], v[i]
        return list(updated)

    def _scalars(self) -> mx.array:
        """[learning_rate, c1, c2, step] of this step, fp32, part of the graph.

        With bias correction c1 = lr / (1 - b1^t) and c2 = (1 - b2^t)^-1/2 (Kingma
        and Ba, ICLR 2015, section 2); expm1 keeps the digits that 1 - b^t loses.
        """
        with mx.stream(mx.cpu):
            rate = self.learning_rate.astype(mx.float32)
            step = self.step.astype(mx.float32)
            if not self.bias_correction:
                return mx.stack([rate, rate, mx.array(1.0), step])
            log1, log2 = (math.log(b) if b > 0 else -math.inf for b in self.betas)
            c1 = rate / -mx.expm1(step * log1)
            c2 = mx.rsqrt(-mx.expm1(step * log2))
            return mx.stack([rate, c1, c2, step])


class Adam(_Fused, optimizers.Adam):
    r"""Adam, as :class:`mlx.optimizers.Adam`, in one pass over each tensor.

    .. math::

        m &\leftarrow \beta_1 m + (1 - \beta_1) g \\
        v &\leftarrow \beta_2 v + (1 - \beta_2) g^2 \\
        p &\leftarrow p - c_1 m / (\sqrt{v} \, c_2 + \epsilon)

    with :math:`c_1 = \eta, c_2 = 1`, or the bias corrections of Kingma and Ba.
    The arithmetic is fp32 whatever the dtype of parameters and state.

    Args:
        learning_rate (float or callable): The learning rate :math:`\eta`, or a
            schedule of the step.
        betas (Sequence[float]): Decay of the moments. Default: ``(0.9, 0.999)``.
        eps (float): Added to the denominator. Default: ``1e-8``.
        bias_correction (bool): Default: ``False``, as in MLX.
        state_dtype (Dtype or str, optional): dtype of the moments; None is MLX's rule,
            the dtype of the parameter.
        stochastic_rounding (bool): Round 16-bit parameters at random, without
            bias, reproducibly by step and element. Default: ``False``.
        max_norm (float, optional): Scale all gradients so that their joint norm
            is at most this.

    Example:
        >>> optimizer = ane.optimizers.Adam(learning_rate=1e-3)
        >>> optimizer.update(model, gradients)
    """

    def __init__(
        self,
        learning_rate: float | Schedule,
        betas: Sequence[float] = (0.9, 0.999),
        eps: float = 1e-8,
        bias_correction: bool = False,
        *,
        state_dtype: mx.Dtype | str | None = None,
        stochastic_rounding: bool = False,
        max_norm: float | None = None,
    ) -> None:
        super().__init__(learning_rate, list(betas), eps, bias_correction)
        self._set_extras(state_dtype, stochastic_rounding, max_norm)


class AdamW(_Fused, optimizers.AdamW):
    r"""AdamW, as :class:`mlx.optimizers.AdamW`, in one pass over each tensor.

    The step of :class:`Adam` after :math:`p \leftarrow p (1 - \eta \lambda)`
    (Loshchilov and Hutter, ICLR 2019).

    Args:
        learning_rate (float or callable): The learning rate :math:`\eta`, or a
            schedule of the step.
        betas (Sequence[float]): Decay of the moments. Default: ``(0.9, 0.999)``.
        eps (float): Added to the denominator. Default: ``1e-8``.
        weight_decay (float): :math:`\lambda`. Default: ``0.01``.
        bias_correction (bool): Default: ``False``, as in MLX.
        state_dtype (Dtype or str, optional): See :class:`Adam`.
        stochastic_rounding (bool): See :class:`Adam`.
        max_norm (float, optional): See :class:`Adam`.
    """

    def __init__(
        self,
        learning_rate: float | Schedule,
        betas: Sequence[float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        bias_correction: bool = False,
        *,
        state_dtype: mx.Dtype | str | None = None,
        stochastic_rounding: bool = False,
        max_norm: float | None = None,
    ) -> None:
        super().__init__(learning_rate, list(betas), eps, weight_decay, bias_correction)
        self._set_extras(state_dtype, stochastic_rounding, max_norm)


class _Leaves:
    """The leaves of three trees of one structure, in order."""

    def __init__(self) -> None:
        self.gradients: list[mx.array] = []
        self.parameters: list[mx.array] = []
        self.states: list[dict[str, Any]] = []

    def collect(self, gradient: Any, parameter: Any, state: Any) -> Any:
        """Append the leaves below; returns the tree with their indices."""
        if isinstance(gradient, dict):
            return {
                key: self.collect(value, parameter[key], state[key])
                for key, value in gradient.items()
            }
        if isinstance(gradient, (list, tuple)):
            return type(gradient)(
                self.collect(value, parameter[i], state[i])
                for i, value in enumerate(gradient)
            )
        self.gradients.append(gradient)
        self.parameters.append(parameter)
        self.states.append(state)
        return len(self.gradients) - 1

    def fill(self, tree: Any, values: list[mx.array]) -> Any:
        """The tree that collect returned with values for indices."""
        if isinstance(tree, dict):
            return {key: self.fill(value, values) for key, value in tree.items()}
        if isinstance(tree, (list, tuple)):
            return type(tree)(self.fill(value, values) for value in tree)
        return values[tree]
