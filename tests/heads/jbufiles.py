"""FeatUp's published files, in miniature: weights of the true names and shapes, and what its code makes of them."""

import torch
import torch.nn.functional as F

PREFIXES = ("", "upsampler.", "state_dict.upsampler.")  # bare; of a hub model; of a training's checkpoint
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


def stack_weights(dim, prefix="", norm=None, seed=0):
    """Of `JBUStack(dim)` in featup/upsamplers.py of github.com/mhamilton723/FeatUp.

    `norm` is what the names of the LayerNorm begin with; None: there is none.
    """
    rng = torch.Generator().manual_seed(seed)

    def conv(n_inputs, n_outputs):
        return torch.randn(n_outputs, n_inputs, 1, 1, generator=rng) / n_inputs**0.5

    found = {}
    for stage in ("up1.", "up2.", "up3.", "up4."):
        found[f"{stage}range_temp"] = torch.randn((), generator=rng)
        found[f"{stage}sigma_spatial"] = 0.5 + torch.rand((), generator=rng)
        for name, (n_inputs, n_hidden) in {"range_proj": (3, 32), "fixup_proj": (52, 49)}.items():
            found[f"{stage}{name}.0.weight"] = conv(n_inputs, n_hidden)
            found[f"{stage}{name}.0.bias"] = torch.randn(n_hidden, generator=rng)
            found[f"{stage}{name}.3.weight"] = conv(n_hidden, n_hidden)
            found[f"{stage}{name}.3.bias"] = torch.randn(n_hidden, generator=rng)
    found["fixup_proj.1.weight"] = conv(dim, dim)
    found["fixup_proj.1.bias"] = torch.randn(dim, generator=rng)
    found = {prefix + name: value for name, value in found.items()}
    if norm is not None:
        found[f"{norm}model.1.norm.weight"] = 0.5 + torch.rand(dim, generator=rng)
        found[f"{norm}model.1.norm.bias"] = torch.randn(dim, generator=rng)
        found[f"{norm}model.0.model.norm.weight"] = torch.ones(dim)  # of the backbone, and not meant
    return found


def slow_stack(weights, maps, image, norm=None):
    """The official forward pass, all channels to the end and neighbourhoods unfolded. `weights` have no prefix."""
    dim = maps.shape[1]
    if norm is not None:
        maps = F.layer_norm(maps.permute(0, 2, 3, 1), (dim,), *norm).permute(0, 3, 1, 2)
    for stage in ("up1.", "up2.", "up3.", "up4."):
        size = (2 * maps.shape[2], 2 * maps.shape[3])
        guide = F.adaptive_avg_pool2d(image, size)
        maps = _slow_stage({k.removeprefix(stage): v for k, v in weights.items()}, maps, guide)
    return 0.1 * F.conv2d(maps, weights["fixup_proj.1.weight"], weights["fixup_proj.1.bias"]) + maps


def _unfold(maps):
    """[B, D, 49, H, W]: the neighbours of every pixel."""
    return F.unfold(F.pad(maps, [3] * 4, mode="reflect"), 7).reshape(*maps.shape[:2], 49, *maps.shape[2:])


def _slow_stage(weights, maps, guide):
    def project(name, x):
        for i in (0, 3):
            x = F.conv2d(F.gelu(x) if i else x, weights[f"{name}.{i}.weight"], weights[f"{name}.{i}.bias"])
        return x

    keys = project("range_proj", guide)
    alike = torch.einsum("bcphw,bchw->bphw", _unfold(keys), keys)
    near = (weights["range_temp"].exp().clamp(1e-4, 1e4) * alike).softmax(dim=1)
    line = torch.linspace(-1, 1, 7)
    bell = torch.exp(-(line[:, None] ** 2 + line**2) / (2 * weights["sigma_spatial"] ** 2)).reshape(1, 49, 1, 1)
    kernel = near * bell
    kernel = kernel / kernel.sum(dim=1, keepdim=True).clamp(min=1e-7)
    kernel = kernel + 0.1 * project("fixup_proj", torch.cat([kernel, guide], dim=1))
    large = F.interpolate(maps, guide.shape[2:], mode="bicubic", align_corners=False)
    return torch.einsum("bphw,bdphw->bdhw", kernel, _unfold(large))


def as_guide(thumbs):
    """Thumbnails [B, 1, T, T, 3] of uint8 as FeatUp's stages see images: standardised by ImageNet's colours."""
    return ((thumbs[:, 0].float() / 255 - MEAN) / STD).permute(0, 3, 1, 2)
