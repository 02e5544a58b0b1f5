"""Data: sample sets, streamed and preprocessed."""
