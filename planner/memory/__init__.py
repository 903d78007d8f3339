"""Bytes over time: named terms on a timeline, and the fold that finds the peak."""
