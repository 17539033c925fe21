"""What made the demo model: scenes, questions, trainer, export and evaluation."""
