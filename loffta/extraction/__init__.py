"""Stage one: images through frozen backbones into a cache; what it will cost; and what mends it.

In:  an ExtractConfig.   Out: finished units, and a summary. `extract` is the driver, called by `loffta extract`;
`plan`, `repair` and `recheck` serve the commands `plan` and `verify`.
"""
