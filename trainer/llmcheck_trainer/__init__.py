"""The trainer that runs a plan file. Not written yet; see trainer/README.md."""
