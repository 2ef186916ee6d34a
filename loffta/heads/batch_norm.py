"""Batch normalisation over batches that several processes share: the statistics are those of the whole batch.

In: a head.   Out: the same head, whose BatchNorms ask for sums over all processes. torch's SyncBatchNorm does this on
CUDA alone, and refuses tensors of the CPU.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Total = Callable[[Tensor], Tensor]  # the sum of a tensor over all processes, through which gradients pass


class SharedBatchNorm(_BatchNorm):
    """torch's BatchNorm of a whole batch, with its weights, its buffers and their names.

    Args:
        norm: what it takes the place of, whose parameters it keeps.
        total: of the processes.
        is_shared: whether the batch at hand is shared, and not each process's own.
    """

    def __init__(self, norm: _BatchNorm, total: Total, is_shared: Callable[[], bool]) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        self._parameters, self._buffers = norm._parameters, norm._buffers
        self._total, self._is_shared = total, is_shared
        self.train(norm.training)

    @property
    def is_shared(self) -> bool:
        """Whether other processes have images of the batch at hand."""
        return self._is_shared()

    def forward(self, input: Tensor) -> Tensor:
        """In training by the statistics of all processes; in evaluation, and of a batch of its own, as torch's."""
        if not (self.training and self.is_shared):
            return super().forward(input)
        axes = [axis for axis in range(input.ndim) if axis != 1]
        values = input.float()
        n = self._total(values.new_tensor(float(values.numel() // values.shape[1])))
        mean = self._total(values.sum(axes)) / n
        centred = values - _across(mean, values)
        variance = self._total(centred.square().sum(axes)) / n  # by a second pass: of large means, squares lose digits
        self._keep_running(mean.detach(), variance.detach() * (n / (n - 1)))
        normed = centred * _across((variance + self.eps).rsqrt(), values)
        if self.affine:
            normed = normed * _across(self.weight, values) + _across(self.bias, values)
        return normed.to(input.dtype)

    def _keep_running(self, mean: Tensor, variance: Tensor) -> None:
        """As torch does, which keeps the unbiased variance."""
        if not self.track_running_stats:
            return
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance, share)

    def _check_input_dim(self, input: Tensor) -> None:
        """That of what it takes the place of has been built for its input."""


def share_batch_norms(module: nn.Module, total: Total, is_shared: Callable[[], bool]) -> None:
    """Puts a SharedBatchNorm in the place of every BatchNorm below `module`."""
    for name, child in module.named_children():
        if isinstance(child, _BatchNorm) and not isinstance(child, SharedBatchNorm):
            setattr(module, name, SharedBatchNorm(child, total, is_shared))
        else:
            share_batch_norms(child, total, is_shared)


def _across(values: Tensor, like: Tensor) -> Tensor:
    """[D] so that it goes with [B, D, ...]."""
    return values.view(-1, *[1] * (like.ndim - 2))
