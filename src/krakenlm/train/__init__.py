"""Training: a recipe, Hugging Face's Trainer, a run that resumes."""
