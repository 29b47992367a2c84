"""Optimizers for mixed precision: they take float16 gradients as they are, unscale and clip them on the way,
and skip the step when the gradient's norm is not finite."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import tensorflow as tf

from .averages import Ema as Ema
from .ewops import filter_values
from .tensors import TensorLike, as_float, as_float32, as_list, as_variable


def clip_by_global_norm(
    grads: Sequence[TensorLike],
    clip_norm: TensorLike = 1.0,
    grad_scale: TensorLike = 1.0,
    saturate: float = 0.0,
    zero_infs: bool = False,
    zero_nans: bool = False,
) -> tuple[tf.Tensor, tf.Tensor]:
    """(norm, norm_scale): the norm of grad_scale * all grads, and clip_norm / max(norm, clip_norm), float32
    scalars.

    It changes no gradient: give norm_scale to an optimizer below. norm_scale is 0 when the norm is not
    finite, which makes those skip the step. grads: float32, float16 or bfloat16; filtered as filter_tensor()
    says before all else.
    """
    grads = as_list(grads)
    missing = [i for i, grad in enumerate(grads) if grad is None]
    if missing or not grads:
        raise ValueError(
            f"grads has no tensor at {missing or 'all'}: leave out parameters the loss does not reach"
        )
    with tf.name_scope("ClipGlobalNorm"):
        filtered = (
            filter_values(as_float(f"grads[{i}]", g), grad_scale, saturate, zero_infs, zero_nans)
            for i, g in enumerate(grads)
        )
        norm = tf.sqrt(tf.add_n([tf.reduce_sum(tf.square(g)) for g in filtered]))
        clip_norm = as_float32(clip_norm)
        # 0 where both are 0: a clip_norm of 0 keeps nothing.
        scale = tf.math.divide_no_nan(clip_norm, tf.maximum(norm, clip_norm))
        return norm, tf.where(tf.math.is_finite(norm), scale, 0.0)


def global_norm(
    grads: Sequence[TensorLike],
    grad_scale: TensorLike = 1.0,
    saturate: float = 0.0,
    zero_infs: bool = False,
    zero_nans: bool = False,
) -> tf.Tensor:
    """The norm that clip_by_global_norm() returns."""
    return clip_by_global_norm(grads, 1.0, grad_scale, saturate, zero_infs, zero_nans)[0]


class _Optimizer(tf.compat.v1.train.Optimizer):
    """What the two below share: filtered float32 gradients, dense ones only, and steps skipped as a whole.

    learning_rate, norm_scale and grad_scale are numbers, scalar tensors, or (eagerly) functions that return
    one.
    """

    def __init__(self, learning_rate, norm_scale, grad_scale, saturate, zero_infs, zero_nans, name):
        super().__init__(False, name)
        self._rate, self._norm_scale, self._grad_scale = learning_rate, norm_scale, grad_scale
        self._filter = (saturate, zero_infs, zero_nans)

    def apply_gradients(self, grads_and_vars: Iterable, global_step=None, name: str | None = None):
        pairs = [(grad, as_variable(variable)) for grad, variable in grads_and_vars]
        for _, variable in pairs:
            if not variable.dtype.base_dtype.is_floating:
                raise TypeError(
                    f"{variable.name} is {variable.dtype.name}; an update is no whole number: train float variables"
                )
        return super().apply_gradients(pairs, global_step, name)

    def _prepare(self) -> None:
        norm_scale = 1.0 if self._norm_scale is None else as_float32(self._call_if_callable(self._norm_scale))
        self._scale = as_float32(self._call_if_callable(self._grad_scale)) * norm_scale
        self._skip = tf.equal(norm_scale, 0.0)
        self._learning_rate = as_float32(self._call_if_callable(self._rate))

    def _gradient(self, grad: tf.Tensor) -> tf.Tensor:
        return filter_values(grad, self._scale, *self._filter)

    def _assign(self, variable: tf.Variable, value: tf.Tensor) -> tf.Operation:
        """Assigns value, or what variable holds already when the step is skipped."""
        return variable.assign(
            tf.where(self._skip, variable.read_value(), tf.cast(value, variable.dtype.base_dtype))
        )

    def _power(self, name: str) -> tf.Variable:
        with tf.init_scope():  # a tf.function keeps its variables outside
            graph = None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()
        return self._get_non_slot_variable(name, graph=graph)

    def _finish_powers(
        self, update_ops: Iterable[tf.Operation], name_scope: str, **factors: float
    ) -> tf.Operation:
        with tf.control_dependencies(update_ops):
            powers = [(self._power(name), factor) for name, factor in factors.items()]
            done = [power.assign(power.read_value() * factor) for power, factor in powers]
        return tf.group(*update_ops, *done, name=name_scope)

    def _step(self, grad: tf.Tensor, lazy: bool, variable: tf.Variable) -> tf.Operation:
        """One parameter's update. grad: float32, filtered and scaled; lazy: it had the attribute `lazy`."""
        raise NotImplementedError

    def _apply_dense(self, grad: tf.Tensor, var: tf.Variable) -> tf.Operation:
        return self._step(self._gradient(grad), hasattr(grad, "lazy"), var)

    def _resource_apply_dense(self, grad: tf.Tensor, handle: tf.Variable) -> tf.Operation:
        return self._apply_dense(grad, handle)

    def _apply_sparse_duplicate_indices(self, grad: tf.IndexedSlices, var: tf.Variable) -> tf.Operation:
        return self._apply_dense(tf.convert_to_tensor(grad), var)

    def _resource_apply_sparse_duplicate_indices(
        self, grad: tf.Tensor, handle: tf.Tensor, indices: tf.Tensor
    ) -> tf.Operation:
        slices = tf.IndexedSlices(grad, indices, tf.shape(handle))
        return self._apply_dense(tf.convert_to_tensor(slices), handle)


class AdamOptimizer(_Optimizer):
    """Adam: m = b1 m + (1 - b1) g, v = b2 v + (1 - b2) g^2, p -= rate' m / (sqrt(v) + epsilon),
    rate' = rate sqrt(1 - b2^t) / (1 - b1^t), for g = grad_scale * norm_scale * gradient, filtered.

    clip_sigmas: if not 0, g is clipped to that many sqrt(v) before it enters m. fp16: keeps m and sqrt(v),
    both times 4096, in float16 for parameters of 8192 numbers and more (so beta2 up to 0.999 is not lost in
    rounding). zero_init_variables: b1^t and b2^t start at 0, for ranks whose variables are then summed with
    rank 0's. A gradient tensor with an attribute `lazy` leaves alone the rows in which it is all zero.
    """

    FP16_SCALE = 4096.0  # float16 has its full precision from 1.5e-8 to 16 then

    def __init__(
        self,
        learning_rate: TensorLike = 3e-4,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-8,
        clip_sigmas: TensorLike = 0.0,
        norm_scale: TensorLike = None,
        grad_scale: TensorLike = 1.0,
        saturate: float = 0.0,
        zero_infs: bool = False,
        zero_nans: bool = False,
        *,
        fp16: bool = False,
        zero_init_variables: bool = False,
        name: str = "Adam",
    ):
        super().__init__(learning_rate, norm_scale, grad_scale, saturate, zero_infs, zero_nans, name)
        self._beta1, self._beta2, self._epsilon = beta1, beta2, epsilon
        self._clip_sigmas, self._fp16, self._zero_init = clip_sigmas, fp16, zero_init_variables

    def _create_slots(self, var_list: Sequence[tf.Variable]) -> None:
        for name, beta in (("beta1_power", self._beta1), ("beta2_power", self._beta2)):
            start = 0.0 if self._zero_init else beta
            self._create_non_slot_variable(initial_value=start, name=name, colocate_with=var_list[0])
        for var in var_list:
            dtype = tf.float16 if self._fp16 and var.shape.num_elements() >= 8192 else tf.float32
            for slot in ("Mean", "Var"):
                self._get_or_make_slot(var, tf.zeros(var.shape, dtype), slot, self._name)

    def _prepare(self) -> None:
        super()._prepare()
        power1, power2 = (
            as_float32(self._power(name).read_value()) for name in ("beta1_power", "beta2_power")
        )
        self._rate_now = self._learning_rate * tf.sqrt(1 - power2) / (1 - power1)

    def _step(self, grad: tf.Tensor, lazy: bool, variable: tf.Variable) -> tf.Operation:
        mean, var = self.get_slot(variable, "Mean"), self.get_slot(variable, "Var")
        m, v = self._load(mean), self._load(var)
        v = tf.square(v) if var.dtype.base_dtype == tf.float16 else v
        p = as_float32(variable.read_value())
        new_v = self._beta2 * v + (1 - self._beta2) * tf.square(grad)
        sigma = tf.sqrt(new_v)
        clip = as_float32(self._clip_sigmas) * sigma
        clipped = tf.where(as_float32(self._clip_sigmas) > 0, tf.clip_by_value(grad, -clip, clip), grad)
        new_m = self._beta1 * m + (1 - self._beta1) * clipped
        new_p = p - self._rate_now * new_m / (sigma + self._epsilon)
        if lazy:
            seen = tf.reduce_any(tf.not_equal(grad, 0.0), axis=-1, keepdims=True)
            new_p, new_m, new_v = (
                tf.where(seen, new, old) for new, old in ((new_p, p), (new_m, m), (new_v, v))
            )
            sigma = tf.sqrt(new_v)
        kept_v = sigma if var.dtype.base_dtype == tf.float16 else new_v
        return tf.group(self._assign(variable, new_p), self._store(mean, new_m), self._store(var, kept_v))

    def _load(self, slot: tf.Variable) -> tf.Tensor:
        value = as_float32(slot.read_value())
        return value / self.FP16_SCALE if slot.dtype.base_dtype == tf.float16 else value

    def _store(self, slot: tf.Variable, value: tf.Tensor) -> tf.Operation:
        if slot.dtype.base_dtype == tf.float16:
            value = tf.clip_by_value(value * self.FP16_SCALE, tf.float16.min, tf.float16.max)
        return self._assign(slot, value)

    def _finish(self, update_ops: Iterable[tf.Operation], name_scope: str) -> tf.Operation:
        return self._finish_powers(update_ops, name_scope, beta1_power=self._beta1, beta2_power=self._beta2)


class AdafactorOptimizer(_Optimizer):
    """Adafactor (Shazeer and Stern, 2018) without momentum: second moments by row and column only.

    c = d c + (1 - d) mean(g^2 + epsilon) over rows, r the same over columns, x = g / sqrt(c r / mean(r)),
    p -= rate x / max(1, rms(x) / clip_thresh), d = b2 (1 - b2^t) / (1 - b2^(t + 1)), as OpenAI's kernels had
    it, for g = grad_scale * norm_scale * gradient, filtered. A vector or a [1, n] matrix keeps c = d c + (1 -
    d) (g^2 + epsilon) and uses x = g / sqrt(c). Raises ValueError for parameters of more than 2 axes.
    """

    def __init__(
        self,
        learning_rate: TensorLike = 5e-4,
        beta2: float = 0.999,
        epsilon: float = 1e-30,
        clip_thresh: TensorLike = 1.0,
        norm_scale: TensorLike = None,
        grad_scale: TensorLike = 1.0,
        saturate: float = 0.0,
        zero_infs: bool = False,
        zero_nans: bool = False,
        name: str = "Adafactor",
        zero_init_variables: bool = False,
    ):
        super().__init__(learning_rate, norm_scale, grad_scale, saturate, zero_infs, zero_nans, name)
        self._beta2, self._epsilon, self._clip_thresh = beta2, epsilon, clip_thresh
        self._zero_init = zero_init_variables

    def _create_slots(self, var_list: Sequence[tf.Variable]) -> None:
        for name, power in (("decay1_power", self._beta2), ("decay2_power", self._beta2**2)):
            start = 0.0 if self._zero_init else power
            self._create_non_slot_variable(initial_value=start, name=name, colocate_with=var_list[0])
        for var in var_list:
            if var.shape.rank not in (1, 2):
                raise ValueError(
                    f"{var.name} is {var.shape}, but Adafactor takes 1 or 2 axes: give it to AdamOptimizer"
                )
            self._get_or_make_slot(var, tf.zeros(var.shape[-1:]), "cv", self._name + "CV")
            if _is_matrix(var):
                self._get_or_make_slot(var, tf.zeros(var.shape[:1]), "rv", self._name + "RV")

    def _prepare(self) -> None:
        super()._prepare()
        power1, power2 = (
            as_float32(self._power(name).read_value()) for name in ("decay1_power", "decay2_power")
        )
        self._decay = self._beta2 * (1 - power1) / (1 - power2)

    def _step(self, grad: tf.Tensor, lazy: bool, variable: tf.Variable) -> tf.Operation:
        squares = tf.square(grad) + self._epsilon
        columns = self.get_slot(variable, "cv")
        new_c = self._mix(columns, tf.reduce_mean(tf.reshape(squares, [-1, columns.shape[0]]), axis=0))
        done = [self._assign(columns, new_c)]
        update = grad * tf.math.rsqrt(new_c)
        if _is_matrix(variable):
            rows = self.get_slot(variable, "rv")
            new_r = self._mix(rows, tf.reduce_mean(squares, axis=1))
            done.append(self._assign(rows, new_r))
            update *= tf.math.rsqrt(new_r / tf.reduce_mean(new_r))[:, tf.newaxis]
        rms = tf.sqrt(tf.reduce_mean(tf.square(update)))
        rate = self._learning_rate / tf.maximum(1.0, rms / as_float32(self._clip_thresh))
        done.append(self._assign(variable, as_float32(variable.read_value()) - rate * update))
        return tf.group(done)

    def _mix(self, slot: tf.Variable, value: tf.Tensor) -> tf.Tensor:
        return self._decay * slot.read_value() + (1 - self._decay) * value

    def _finish(self, update_ops: Iterable[tf.Operation], name_scope: str) -> tf.Operation:
        return self._finish_powers(update_ops, name_scope, decay1_power=self._beta2, decay2_power=self._beta2)


def _is_matrix(variable: tf.Variable) -> bool:
    return variable.shape.rank == 2 and variable.shape[0] > 1
