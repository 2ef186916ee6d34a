"""Stage one: images through frozen backbones into a cache; what it will cost; and what mends it."""
