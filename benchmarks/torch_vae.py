"""The network and objective of hsjax in PyTorch, for `benchmarks.throughput` to compare with.

The latents' statistics are the paper's: an n x n mask and autodiff. Images are uint8 on the device,
gathered, flipped and scaled there as ours are. Everything runs eagerly, in PyTorch's own layout
[B, C, H, W]. PyTorch is no dependency of hsjax: nothing else imports this file.
"""

import itertools

import jax
import numpy as np
import torch
from torch import Tensor, nn

from hsjax.inference import Inference
from hsjax.posteriors import Gaussian


def _convolution(inputs: int, outputs: int, size: int, *, bias=False) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=bias)


def _activation(x: Tensor) -> Tensor:
    return nn.functional.leaky_relu(x, 0.2)


def _halve(x: Tensor) -> Tensor:
    return nn.functional.avg_pool2d(x, 2)


def _double(x: Tensor) -> Tensor:
    return nn.functional.interpolate(x, scale_factor=2, mode="nearest")


class Block(nn.Module):
    """`hsjax.models.Block`: [B, inputs, H, W] -> [B, outputs, H, W]."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv1 = _convolution(inputs, outputs, 3)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = _convolution(outputs, outputs, 3)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.skip = _convolution(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Both convolutions and the skip."""
        y = _activation(self.norm1(self.conv1(x)))
        return _activation(self.norm2(self.conv2(y)) + self.skip(x))


def _blocks(widths) -> nn.ModuleList:
    return nn.ModuleList(Block(a, b) for a, b in itertools.pairwise(widths))


class Encoder(nn.Module):
    """`hsjax.models.Encoder`: [B, C, H, W] -> μ and log σ², [B, n] each."""

    def __init__(self, shape, latent_dim: int, stages, dtype: torch.dtype):
        super().__init__()
        height, width, channels = shape
        scale = 2 ** len(stages)
        self.dtype = dtype
        self.stem = _convolution(channels, stages[0], 5)
        self.norm = nn.BatchNorm2d(stages[0])
        self.blocks = _blocks(stages)
        self.last = Block(stages[-1], stages[-1])
        self.head = nn.Linear(height // scale * (width // scale) * stages[-1], 2 * latent_dim)

    def forward(self, x: Tensor) -> Gaussian:
        """Convolutions in self.dtype, the linear layer in float32."""
        with torch.autocast(x.device.type, self.dtype, enabled=self.dtype != torch.float32):
            x = _halve(_activation(self.norm(self.stem(x))))
            for block in self.blocks:
                x = _halve(block(x))
            x = self.last(x)
        return Gaussian(*self.head(x.flatten(1).float()).chunk(2, dim=-1))


class Decoder(nn.Module):
    """`hsjax.models.Decoder`: [B, n] -> [B, C, H, W] in [0, 1]."""

    def __init__(self, shape, latent_dim: int, stages, dtype: torch.dtype):
        super().__init__()
        height, width, channels = shape
        scale = 2 ** len(stages)
        self.dtype = dtype
        self.small = (stages[-1], height // scale, width // scale)
        features = int(np.prod(self.small))
        self.head = nn.Linear(latent_dim, features)
        self.norm = nn.BatchNorm1d(features)
        self.blocks = _blocks([stages[-1], *reversed(stages)])
        self.last = Block(stages[0], stages[0])
        self.out = _convolution(stages[0], channels, 5, bias=True)

    def forward(self, z: Tensor) -> Tensor:
        """The linear layer in float32, convolutions in self.dtype."""
        x = self.head(z).to(self.dtype)
        with torch.autocast(z.device.type, self.dtype, enabled=self.dtype != torch.float32):
            x = _activation(self.norm(x)).unflatten(1, self.small)
            for block in self.blocks:
                x = _double(block(x))
            x = self.out(self.last(x))
        return torch.sigmoid(x.float())


class VAE(nn.Module):
    """`hsjax.models.VAE` that projects every z to ‖z‖ = √n (below equation 8)."""

    def __init__(self, shape, latent_dim: int, stages=(16, 32, 64), dtype=torch.float32):
        super().__init__()
        self.latent_dim = latent_dim
        self.encoder = Encoder(shape, latent_dim, stages, dtype)
        self.decoder = Decoder(shape, latent_dim, stages, dtype)

    def decode(self, z: Tensor) -> Tensor:
        """[B, n] -> images [B, C, H, W]."""
        return self.decoder(z * (self.latent_dim**0.5 / z.norm(dim=-1, keepdim=True)))


def sample(latent: Gaussian, noise: Tensor) -> Tensor:
    """z = μ + σ ε, [B, n]."""
    return latent.mean + (0.5 * latent.log_variance).exp() * noise


def squared_error(x: Tensor, reconstruction: Tensor) -> Tensor:
    """Equation (1): sum over an image's values, mean over the batch."""
    return ((x - reconstruction) ** 2).sum() / len(x)


def batch_statistics(x: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
    """[..., B, n] -> mean and variance of the cosines and the radius, [..., n], with a mask."""
    n = x.shape[-1]
    mask = torch.ones(n, n, device=x.device).triu()
    tails = ((x * x)[..., None, :] * mask).sum(-1).add(eps).sqrt()
    columns = torch.cat([(x / tails)[..., :-1], x.norm(dim=-1, keepdim=True)], dim=-1)
    return columns.mean(-2), columns.var(-2)


def spherical_kl(latent: Gaussian, spec) -> list[Tensor]:
    """The four terms of (4) and (5) for a `losses.paper_spec`, in the order of SphericalTerms."""
    x = torch.stack([latent.mean, (0.5 * latent.log_variance).exp()])
    average, variance = batch_statistics(x, spec.eps)
    spread = (variance + spec.variance_eps).sqrt()
    columns = spec.mean_gain * (average - spec.mean_target) ** 2
    columns = columns + spec.spread_gain * (spread - spec.spread_target) ** 2
    return [part for row in columns for part in (row[:-1].sum(), row[-1])]


def loss(images: Tensor, output: Tensor, latent: Gaussian, objective) -> Tensor:
    """MSE + β regulariser, equation (6)."""
    spec = objective.hyper
    terms = zip(spec.term_gains, spherical_kl(latent, spec), strict=True)
    return squared_error(images, output) + objective.beta * sum(g * t for g, t in terms)


def joint(model: VAE, objective, learning_rate: float):
    """A step that updates encoder and decoder together, as ours does."""
    optimizer = torch.optim.Adam(model.parameters(), learning_rate)

    def step(images, noise):
        latent = model.encoder(images)
        output = model.decode(sample(latent, noise))
        optimizer.zero_grad()
        loss(images, output, latent, objective).backward()
        optimizer.step()

    return step


def two_updates(model: VAE, objective, learning_rate: float):
    """A step that updates the encoder, decodes again, and updates the decoder.

    So does the authors' published code. The gradients are those of `joint`, since the regulariser
    does not touch the decoder.
    """
    of_encoder = torch.optim.Adam(model.encoder.parameters(), learning_rate)
    of_decoder = torch.optim.Adam(model.decoder.parameters(), learning_rate)

    def step(images, noise):
        model.decoder.requires_grad_(False)
        latent = model.encoder(images)
        z = sample(latent, noise)
        of_encoder.zero_grad()
        loss(images, model.decode(z), latent, objective).backward()
        of_encoder.step()

        model.decoder.requires_grad_(True)
        of_decoder.zero_grad()
        squared_error(images, model.decode(z.detach())).backward()
        of_decoder.step()

    return step


def tensors(tree, device: str = "cpu"):
    """A pytree of arrays with tensors instead."""
    return jax.tree.map(lambda x: torch.tensor(np.asarray(x), device=device), tree)


def prepare(images: Tensor, *, flip: bool = False) -> Tensor:
    """uint8 [B, C, H, W] -> float32 in [0, 1], each mirrored with probability 1/2 if flip."""
    if flip:
        mirrored = torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5
        images = torch.where(mirrored, images.flip(-1), images)
    return images.float() / 255


def trainer(step, images: Tensor, order: Tensor, latent_dim: int):
    """A function that takes a step for each row of `order`, and waits for the last one."""

    def run():
        for indices in order:
            batch = prepare(images[indices], flip=True)
            step(batch, torch.randn(len(batch), latent_dim, device=batch.device))
        if images.is_cuda:
            torch.cuda.synchronize()

    return run


def inference(model: VAE, device: str) -> Inference:
    """The functions that `hsjax.inference.embed` and `decode` call, from and to NumPy arrays."""

    @torch.inference_mode()
    def encode(_, images):
        model.eval()
        images = torch.as_tensor(images, device=device).permute(0, 3, 1, 2)
        return Gaussian(*(x.cpu().numpy() for x in model.encoder(prepare(images.contiguous()))))

    @torch.inference_mode()
    def decode(_, z):
        model.eval()
        output = model.decode(torch.tensor(z, device=device))
        return output.permute(0, 2, 3, 1).cpu().numpy()

    return Inference(encode, decode, errors=None, terms=None, prior=None)
