"""The cache on disk: format 1, as docs/store-format.md says it. Knows neither images, backbones nor heads."""

FORMAT = 1
