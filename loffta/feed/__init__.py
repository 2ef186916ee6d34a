"""The feed of stage two: batches of cached features on the device, as fast as disk and memory give them.

`batches` has the Feed; `modes` says where features are kept, `order` in which order images come, `sources` reads and
`copies` moves to the device. Nothing here knows images, backbones or heads.
"""
