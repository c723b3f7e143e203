"""The trainer that runs a plan file: ``python -m llmcheck_trainer.train --plan plan.json --data FOLDER --output FOLDER``."""
