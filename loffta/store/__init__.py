"""The cache on disk: format 1, as docs/store-format.md says it. Knows neither images, backbones nor heads.

In:  tokens of a unit, or a request for some rows of some taps.   Out: committed shards and done files, or bytes in
ready buffers. `extraction` writes it; `dataset`, `feed` and `verify` read it.
"""

FORMAT = 1
