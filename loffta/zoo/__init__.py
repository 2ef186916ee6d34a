"""Which backbones there are, answered without torch.

In:  a name, a query or a pattern.   Out: timm's id; shapes, licence and advice. Called when a configuration is parsed,
and by `loffta models` and `loffta fetch`.
"""
