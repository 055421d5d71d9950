# %% [markdown]
# # A VAE by hand, out of genmod's parts
# Encoder and decoder are ordinary modules; the two lines in the middle are genmod's. Images: the digits of
# scikit-learn.

# %%
import argparse

import torch
from sklearn.datasets import load_digits

from genmod import nn

arguments = argparse.ArgumentParser()
arguments.add_argument("--steps", type=int, default=500)
steps = arguments.parse_args().steps

torch.manual_seed(0)
images = torch.tensor(load_digits().images[:, None] / 16, dtype=torch.float32)  # [1797, 1, 8, 8] in [0, 1]

# %%
encoder = torch.nn.Sequential(
    torch.nn.Conv2d(1, 32, 4, 2, 1),
    nn.GroupNormAct(8, 32),  # GroupNorm and SiLU, in one pass
    torch.nn.Conv2d(32, 64, 4, 2, 1),
    nn.GroupNormAct(8, 64),
    torch.nn.Flatten(),
    torch.nn.Linear(64 * 2 * 2, 2 * 8),  # means of 8 latents, then their log-variances
)
decoder = torch.nn.Sequential(
    torch.nn.Linear(8, 64 * 2 * 2),
    torch.nn.Unflatten(1, (64, 2, 2)),
    nn.UpsampleBlock(64, 32, norm="group", activation="silu", num_groups=8),
    nn.UpsampleBlock(32, 1, norm="none", activation="identity"),  # logits of the pixels
)
sampler = nn.GaussianSampler()  # z and KL in one pass, the noise drawn inside
reconstruction = nn.ReconstructionLoss("bernoulli")

# %% Train on the negative ELBO, in nats per image.
optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], 2e-3)
history = []
for _ in range(steps):
    batch = images[torch.randint(len(images), (64,))]
    z, kl = sampler(encoder(batch))
    loss = reconstruction(decoder(z), batch) + kl
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    history.append(loss.item())

# %%
print(f"negative ELBO: {history[0]:.1f} nats at first, {sum(history[-10:]) / len(history[-10:]):.1f} in the last steps")
assert history[-1] < history[0], "it should have learned something"
