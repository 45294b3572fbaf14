"""Where each model family keeps what the guard edits and what calibration reads."""
