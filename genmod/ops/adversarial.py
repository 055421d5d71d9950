import torch.nn.functional as F


def critic_loss(*, real, fake, kind):
    assert kind == "non_saturating"
    return F.softplus(-real).mean() + F.softplus(fake).mean()
