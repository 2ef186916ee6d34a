"""Which backbones there are, answered without torch."""
