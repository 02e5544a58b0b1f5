"""Training: the one training loop, its log, losses and augmentation."""
