"""Params files, stages, papermill execution and rendered reports: files and notebooks, no retrieval and no models."""
