"""`vlmkit train`: config.py holds the settings, run.py the frame of a run, contrastive/ and vlm/ the stages."""
