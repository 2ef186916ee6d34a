"""Image sets: where images come from, and how a file becomes a square of pixels.

In:  SOURCE as the user writes it.   Out: a listing, which no image is opened for, and then batches of uint8 pixels with
every image's status. Called by `extraction` and `online`; what a bad image is, is decided here.
"""
