"""The denoising demo: a residual CNN that removes noise from parts of composed scenes."""
