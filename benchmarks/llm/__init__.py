"""The particle filter on the chains models, against loops on `transformers`."""
