"""Our own callbacks of Lightning's: conf/config.yaml has them by name."""

from ltexp.training.callbacks.batch_norm import AgreeOnStatistics
from ltexp.training.callbacks.last_weights import KeepLastWeights
from ltexp.training.callbacks.monitor import Monitor
from ltexp.training.callbacks.norms import FeatureNorms
from ltexp.training.callbacks.progress import Progress
from ltexp.training.callbacks.prune import Prune
from ltexp.training.callbacks.resume import ResumeCheckpoint

__all__ = ["AgreeOnStatistics", "FeatureNorms", "KeepLastWeights", "Monitor", "Progress", "Prune", "ResumeCheckpoint"]
