"""The micro-batch of a training: cut or joined inside the step, checked, searched for and kept."""
