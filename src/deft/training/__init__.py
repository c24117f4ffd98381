"""Fine-tuning: token sequences in, a checkpoint that carries its chat format out."""
