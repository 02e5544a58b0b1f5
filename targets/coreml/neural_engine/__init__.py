"""What is known of the Neural Engine without a device.

``placement`` says by published rules which operators are likely to leave it; ``estimates`` predicts latency by a
roofline that was fitted to published figures and checked on others.
"""

from targets.coreml.neural_engine.latency import estimates
from targets.coreml.neural_engine.rules import placement

__all__ = ["estimates", "placement"]
