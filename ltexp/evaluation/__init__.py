"""Accuracy by shot, calibration, and the record of a run."""

from ltexp.evaluation.calibration import expected_calibration_error, maximum_calibration_error

__all__ = ["expected_calibration_error", "maximum_calibration_error"]
