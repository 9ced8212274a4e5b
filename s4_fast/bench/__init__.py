"""Measuring the ops against the direct evaluations: cases, measurements, reports."""
