"""Fashion-MNIST: images of clothing, the demo's network and the scripts that made both."""
