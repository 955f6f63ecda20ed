"""What the paper profile is rehearsed on: the real shapes, at a thousandth of the size.

It stands here, beside the random models of the timings: it narrows the published configurations of
`heima.planning`, which the toy may not import, and `timings.device` runs it on a GPU.
"""
