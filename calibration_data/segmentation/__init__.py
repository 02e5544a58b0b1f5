"""The segmentation demo: a U-Net that names the garment at each pixel of a composed scene."""
