"""Losses: one family a file, each a pure function beside a thin `torch.nn.Module`.

Every loss is built as `Loss(class_counts=n, **settings)` and called as `loss(output, target)`; see `ltexp.losses.base`.
"""
