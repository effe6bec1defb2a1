"""Adaptation of pretrained networks to new data: TGD beside its peers, on four tasks. See docs/adapting.md."""
