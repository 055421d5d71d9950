# %% [markdown]
# # A critic with an exact gradient penalty
# The same gradient twice: the way it is usually written, and in one call that needs two thirds of the convolutions.

# %%
import torch

from genmod import nn, penalties

torch.manual_seed(0)
critic = torch.nn.Sequential(
    nn.CriticConv2d(3, 32, 4, 2, 1),
    nn.CriticLeakyReLU(0.2),
    nn.CriticConv2d(32, 64, 4, 2, 1),
    nn.CriticLeakyReLU(0.2),
    torch.nn.Flatten(),
    nn.CriticLinear(64 * 8 * 8, 1),
)
real, fake = torch.randn(16, 3, 32, 32), torch.randn(16, 3, 32, 32)

# %% As it is usually written: R1 = gamma / 2 · mean |dD(x)/dx|², with a graph through the gradient.
x = real.clone().requires_grad_()
real_logits, fake_logits = critic(x), critic(fake)
(gradient,) = torch.autograd.grad(real_logits.sum(), x, create_graph=True)
penalty = 5.0 * gradient.square().flatten(1).sum(1).mean()
loss = torch.nn.functional.softplus(-real_logits).mean() + torch.nn.functional.softplus(fake_logits).mean()
(loss + penalty).backward()
usual = [parameter.grad.clone() for parameter in critic.parameters()]

# %% In one call, which fills `.grad`.
critic.zero_grad()
step = penalties.critic_step(critic, real, fake, loss="non_saturating", penalty="r1", gamma=10.0)
torch.testing.assert_close(step.loss, loss.detach())
torch.testing.assert_close(step.penalty, penalty.detach())
for parameter, expected in zip(critic.parameters(), usual, strict=True):
    torch.testing.assert_close(parameter.grad, expected)
print(f"loss {step.loss.item():.4f}, penalty {step.penalty.item():.4f}: equal, and so are all gradients")
