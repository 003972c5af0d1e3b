"""From trained weights to answers: ``device`` chooses where and how precisely to compute, ``predictor`` classifies images."""
