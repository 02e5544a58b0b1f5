"""Scenes composed from Fashion-MNIST's images: the data of the detection, segmentation and denoise demos."""
