"""What the decision trees ask: a folder for each topic."""
