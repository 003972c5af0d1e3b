"""Why the network answered so: what its attention, its layers and its patches say. Maps are made here, and drawn.

``capture`` looks on while a network computes, ``maps`` turn what it saw, or gradients, into one number for each patch,
``sheet`` draws them beside the image.
"""
